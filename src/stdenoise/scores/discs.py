"""Mean intensity of an image in discs."""

from __future__ import annotations

import numpy as np


def disc_means(image: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Mean of the pixels whose centre lies in each disc, shape `(n_spots,)`.

    A disc that is partly outside the image has the mean of the part inside, one that is outside NaN, and one so small that
    it holds no pixel centre the value of the nearest pixel.

    Parameters
    ----------
    image
        One channel, shape `(height, width)`.
    centres
        x and y in pixels, shape `(n_spots, 2)`; the centre of the first pixel is at 0, 0.
    radius
        In pixels.
    """
    height, width = image.shape
    means = np.full(len(centres), np.nan)
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
            means[spot] = image[top : bottom + 1, left : right + 1][inside].mean(dtype=np.float64)
    return means
