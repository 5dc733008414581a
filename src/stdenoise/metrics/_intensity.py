"""Intensity of an image channel under each spot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stdenoise import _keys
from stdenoise._validate import check_anndata, check_number, lookup, read_coordinates

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def spot_intensity(
    adata: AnnData,
    *,
    channel: int = 0,
    library_id: str | None = None,
    image_key: str = "hires",
    image: np.ndarray | None = None,
    scale_factor: float | None = None,
    diameter: float | None = None,
    background_percentile: float | None = 5.0,
    spatial_key: str = _keys.SPATIAL,
) -> pd.Series:
    """Average a channel of an image over the disc of each spot.

    Reads images and scale factors as 10x writes them and scanpy and squidpy load them. Coordinates are in pixels of the full
    image, x and y; times `scale_factor` they are in pixels of the image that is read, the centre of whose first pixel is at
    0, 0. A pixel counts if its centre lies in the disc.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    channel
        Position of the channel in the last dimension of the image.
    library_id
        Name of the library in `uns["spatial"]`; the only one there if not given.
    image_key
        Name of the image in `uns["spatial"][library_id]["images"]`.
    image
        An image, shape `(height, width)` or `(height, width, n_channels)`, in place of the stored one.
    scale_factor
        Pixels of the image per pixel of the full one. If not given, `scalefactors["tissue_<image_key>_scalef"]` for a stored
        image, and 1 for one that is handed in.
    diameter
        Of the spots, in pixels of the full image; `scalefactors["spot_diameter_fullres"]` if not given.
    background_percentile
        Percentile of the channel over the whole image that is subtracted as background; values below it become 0. `None`
        subtracts nothing.
    spatial_key
        Key of the coordinates in `obsm`.

    Returns
    -------
    Series with a value per spot, in units of the image. A disc that is partly outside the image has the mean of the part
    inside, and a disc outside has NaN.

    Raises
    ------
    KeyError
        There is no such library, image, scale factor or key.
    TypeError, ValueError
        The image, its channel or an argument is not valid, or no spot lies on the image.

    Examples
    --------
    >>> import numpy as np
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> image = np.full((1500, 1500), 7.0)
    >>> intensity = st.metrics.spot_intensity(adata, image=image, diameter=55, background_percentile=None)
    >>> float(intensity.mean())
    7.0
    """
    check_anndata(adata)
    check_number("channel", channel, minimum=0, integer=True)
    if background_percentile is not None:
        check_number("background_percentile", background_percentile, minimum=0)
        if background_percentile > 100:
            raise ValueError(f"background_percentile must be at most 100, not {background_percentile!r}.")
    coordinates = read_coordinates(adata, spatial_key)
    if coordinates.shape[1] != 2:
        raise ValueError(f"adata.obsm[{spatial_key!r}] has {coordinates.shape[1]} columns; an image needs x and y.")
    stored = image is None or diameter is None
    library, where = _read_library(adata, library_id) if stored or library_id is not None else ({}, "")
    factors = library.get("scalefactors", {})
    if image is None:
        images = lookup(library, "images", where=where)
        image = np.asarray(lookup(images, image_key, where=f"{where}['images']"))
        if scale_factor is None:
            name = f"tissue_{image_key}_scalef"
            scale_factor = lookup(factors, name, where=f"{where}['scalefactors']", advice="Pass scale_factor=.")
    if diameter is None:
        diameter = lookup(factors, "spot_diameter_fullres", where=f"{where}['scalefactors']", advice="Pass diameter=.")
    factor = 1.0 if scale_factor is None else float(scale_factor)
    check_number("scale_factor", factor, above=0)
    check_number("diameter", float(diameter), above=0)

    import pandas as pd

    from stdenoise.scores.discs import disc_means

    plane = _channel(np.asarray(image), channel)
    means = disc_means(plane, coordinates * factor, float(diameter) * factor / 2)
    if np.isnan(means).all():
        raise ValueError(
            f"no spot lies on the image of {plane.shape[1]} x {plane.shape[0]} pixels: with scale_factor={factor:g}, spots "
            f"reach from {(coordinates.min(0) * factor).round(1)} to {(coordinates.max(0) * factor).round(1)}."
        )
    if background_percentile is not None:
        means = np.maximum(means - np.percentile(plane, background_percentile), 0)
    return pd.Series(means, index=adata.obs_names, name="intensity")


def _read_library(adata: AnnData, library_id: str | None) -> tuple[Mapping[str, Any], str]:
    libraries = lookup(
        adata.uns, "spatial", where="adata.uns", advice="Pass image= and diameter= where no 10x image is stored."
    )
    if library_id is None:
        if len(libraries) != 1:
            raise ValueError(f"adata.uns['spatial'] has the libraries {list(libraries)}; choose one with library_id=.")
        library_id = next(iter(libraries))
    return lookup(libraries, library_id, where="adata.uns['spatial']"), f"adata.uns['spatial'][{library_id!r}]"


def _channel(image: np.ndarray, channel: int) -> np.ndarray:
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"image must have shape (height, width) or (height, width, n_channels), not {image.shape}.")
    if image.dtype.kind not in "iufb":
        raise TypeError(f"image must hold real numbers, not {image.dtype}.")
    stack = image if image.ndim == 3 else image[:, :, None]
    if channel >= stack.shape[2]:
        raise ValueError(f"channel={channel} is not in the image, which has {stack.shape[2]}: shape {image.shape}.")
    return stack[:, :, channel]
