"""Intensity of an image channel under each spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_number
from stdenoise._io.images import read_image, read_plane_coordinates
from stdenoise._io.read import check_anndata
from stdenoise.stats.discs import disc_means

if TYPE_CHECKING:
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
    coordinates = read_plane_coordinates(adata, spatial_key)
    on_image = read_image(
        adata, library_id=library_id, image_key=image_key, image=image, scale_factor=scale_factor, diameter=diameter
    )
    n_channels = on_image.pixels.shape[2]
    if channel >= n_channels:
        raise ValueError(
            f"channel={channel} is not in the image, which has {n_channels}: shape {on_image.pixels.shape}."
        )

    plane = on_image.pixels[:, :, channel]
    means = disc_means(plane, coordinates * on_image.scale_factor, on_image.radius)
    if np.isnan(means).all():
        raise ValueError(f"no spot lies on {on_image.describe(coordinates)}")
    if background_percentile is not None:
        means = np.maximum(means - np.percentile(plane, background_percentile), 0)
    return pd.Series(means, index=adata.obs_names, name="intensity")
