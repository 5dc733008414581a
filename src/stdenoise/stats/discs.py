"""Pixels of an image in discs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def disc_means(image: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Mean of the pixels whose centre lies in each disc, shape `(n_spots,)` or `(n_spots, n_channels)`.

    A disc that is partly outside the image has the mean of the part inside, one that is outside NaN, and one so small that
    it holds no pixel centre the value of the nearest pixel.

    Parameters
    ----------
    image
        Shape `(height, width)` or `(height, width, n_channels)`.
    centres
        x and y in pixels, shape `(n_spots, 2)`; the centre of the first pixel is at 0, 0.
    radius
        In pixels.
    """
    means = np.full((len(centres), *image.shape[2:]), np.nan)
    for spot, pixels in disc_pixels(image, centres, radius):
        means[spot] = pixels.mean(axis=0, dtype=np.float64)
    return means


def disc_quantiles(image: np.ndarray, centres: np.ndarray, radius: float, quantiles: Sequence[float]) -> np.ndarray:
    """Quantiles of each channel over the pixels of each disc, shape `(n_spots, n_channels, n_quantiles)`.

    Parameters
    ----------
    image
        Shape `(height, width, n_channels)`.
    centres, radius
        As in `disc_means`, also what happens to discs partly or wholly outside the image.
    quantiles
        Between 0 and 1; linear interpolation.
    """
    found = np.full((len(centres), image.shape[2], len(quantiles)), np.nan)
    for spot, pixels in disc_pixels(image, centres, radius):
        found[spot] = np.quantile(pixels.astype(np.float64), quantiles, axis=0).T
    return found


def disc_pixels(image: np.ndarray, centres: np.ndarray, radius: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each disc that is on the image and its pixels, shape `(n_pixels,)` or `(n_pixels, n_channels)`.

    Parameters
    ----------
    image, centres, radius
        As in `disc_means`.
    """
    height, width = image.shape[:2]
    # Integers of the box around each disc; at least the nearest pixel.
    low = np.ceil(np.minimum(centres - radius, np.rint(centres))).astype(np.int64).clip(0)
    high = np.floor(np.maximum(centres + radius, np.rint(centres))).astype(np.int64).clip(-1, [width - 1, height - 1])
    for spot, (x, y) in enumerate(centres):
        (left, top), (right, bottom) = low[spot], high[spot]
        if left > right or top > bottom:
            continue
        distance = np.hypot(np.arange(left, right + 1) - x, np.arange(top, bottom + 1)[:, None] - y)
        inside = distance <= max(radius, np.hypot(x - np.rint(x), y - np.rint(y)))
        if inside.any():
            yield spot, image[top : bottom + 1, left : right + 1][inside]
