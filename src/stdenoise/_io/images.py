"""The image of a section, as 10x stores it and scanpy and squidpy load it, or handed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stdenoise._base.checks import check_number, lookup
from stdenoise._io.read import read_coordinates

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class SpotImage:
    """An image and how spots lie on it.

    Parameters
    ----------
    pixels
        Shape `(height, width, n_channels)`; may share memory with the AnnData, so it is never changed.
    scale_factor
        Pixels of this image per pixel of the full one, in which coordinates are.
    diameter
        Of the spots, in pixels of the full image; NaN where it was not asked for.
    """

    pixels: np.ndarray
    scale_factor: float
    diameter: float = np.nan

    @property
    def radius(self) -> float:
        """Radius of the spots in pixels of this image."""
        return self.diameter * self.scale_factor / 2

    def describe(self, coordinates: np.ndarray) -> str:
        """Say how large the image is and where the spots are, for messages about spots beside it."""
        height, width = self.pixels.shape[:2]
        low, high = ((f(axis=0) * self.scale_factor).round(1) for f in (coordinates.min, coordinates.max))
        return f"the image of {width} x {height} pixels: with scale_factor={self.scale_factor:g}, spots reach from {low} to {high}."


def read_plane_coordinates(adata: AnnData, spatial_key: str) -> np.ndarray:
    """Read coordinates on an image, shape `(n_spots, 2)`, or raise."""
    coordinates = read_coordinates(adata, spatial_key)
    if coordinates.shape[1] != 2:
        raise ValueError(f"adata.obsm[{spatial_key!r}] has {coordinates.shape[1]} columns; an image needs x and y.")
    return coordinates


def read_image(
    adata: AnnData,
    *,
    library_id: str | None,
    image_key: str,
    image: np.ndarray | None,
    scale_factor: float | None,
    diameter: float | None,
    need_diameter: bool = True,
) -> SpotImage:
    """Read an image with its scale, or raise.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    library_id
        Name of the library in `uns["spatial"]`; the only one there if not given.
    image_key
        Name of the image in `uns["spatial"][library_id]["images"]`.
    image
        An image, shape `(height, width)` or `(height, width, n_channels)`, in place of the stored one.
    scale_factor
        If not given, `scalefactors["tissue_<image_key>_scalef"]` for a stored image, and 1 for one that is handed in.
    diameter
        If not given, `scalefactors["spot_diameter_fullres"]`.
    need_diameter
        Whether a diameter is looked up where none is given.
    """
    need_diameter = need_diameter and diameter is None
    stored = image is None or need_diameter
    library, where = _read_library(adata, library_id) if stored or library_id is not None else ({}, "")
    factors = library.get("scalefactors", {})
    if image is None:
        images = lookup(library, "images", where=where)
        image = np.asarray(lookup(images, image_key, where=f"{where}['images']"))
        if scale_factor is None:
            name = f"tissue_{image_key}_scalef"
            scale_factor = lookup(factors, name, where=f"{where}['scalefactors']", advice="Pass scale_factor=.")
    if need_diameter:
        diameter = lookup(factors, "spot_diameter_fullres", where=f"{where}['scalefactors']", advice="Pass diameter=.")
    factor = 1.0 if scale_factor is None else float(scale_factor)
    check_number("scale_factor", factor, above=0)
    if diameter is None:
        return SpotImage(_stack(np.asarray(image)), factor)
    check_number("diameter", float(diameter), above=0)
    return SpotImage(_stack(np.asarray(image)), factor, float(diameter))


def on_image(pixels: np.ndarray, centres: np.ndarray, size: int) -> np.ndarray:
    """Whether any part of each tile is on the image, shape `(n_spots,)`; arguments as in `tiles`."""
    corner = _corner(centres, size)
    return np.asarray(((corner + size > 0) & (corner < [pixels.shape[1], pixels.shape[0]])).all(axis=1))


def tiles(pixels: np.ndarray, centres: np.ndarray, size: int) -> np.ndarray:
    """Cut squares out of an image; beyond its rim the pixels of the rim are repeated.

    Parameters
    ----------
    pixels
        Shape `(height, width, n_channels)`.
    centres
        x and y in pixels, shape `(n_spots, 2)`; the centre of the first pixel is at 0, 0.
    size
        Side in pixels.

    Returns
    -------
    Shape `(n_spots, size, size, n_channels)`.
    """
    x, y = (_corner(centres, size)[:, :, None] + np.arange(size)).transpose(1, 0, 2)
    x, y = x.clip(0, pixels.shape[1] - 1), y.clip(0, pixels.shape[0] - 1)
    return np.asarray(pixels[y[:, :, None], x[:, None, :]])


def _corner(centres: np.ndarray, size: int) -> np.ndarray:
    """First pixel of each tile, x and y."""
    return np.asarray(np.rint(centres - (size - 1) / 2).astype(np.int64))


def _read_library(adata: AnnData, library_id: str | None) -> tuple[Mapping[str, Any], str]:
    libraries = lookup(
        adata.uns, "spatial", where="adata.uns", advice="Pass image= and diameter= where no 10x image is stored."
    )
    if library_id is None:
        if len(libraries) != 1:
            raise ValueError(f"adata.uns['spatial'] has the libraries {list(libraries)}; choose one with library_id=.")
        library_id = next(iter(libraries))
    return lookup(libraries, library_id, where="adata.uns['spatial']"), f"adata.uns['spatial'][{library_id!r}]"


def _stack(image: np.ndarray) -> np.ndarray:
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"image must have shape (height, width) or (height, width, n_channels), not {image.shape}.")
    if image.dtype.kind not in "iufb":
        raise TypeError(f"image must hold real numbers, not {image.dtype}.")
    return image if image.ndim == 3 else image[:, :, None]
