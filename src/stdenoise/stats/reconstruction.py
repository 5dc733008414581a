"""How close an estimate is to the truth: errors, cosine similarity and structural similarity on grids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d

_SIGMA, _REACH = 1.5, 5
"""The window of the structural similarity: a Gaussian in cells, cut at 3.5 standard deviations."""

_K1, _K2 = 0.01, 0.03
"""Its constants, as shares of the range of the truth."""


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine similarity of the columns; NaN where one is zero throughout."""
    return (left * right).sum(0) / (left.square().sum(0).sqrt() * right.square().sum(0).sqrt())


@dataclass(frozen=True)
class Grid:
    """Spots as cells of a rectangular grid.

    Parameters
    ----------
    cell
        Position of each spot among the cells, row by row, shape `(n_spots,)`.
    shape
        Rows and columns.
    """

    cell: Tensor
    shape: tuple[int, int]


def find_grid(coordinates: np.ndarray, *, device: torch.device | str = "cpu") -> Grid | None:
    """Find the rectangular grid that the spots lie on; `None` where they lie on none.

    The grid is parallel to the axes, its steps are the smallest gaps between coordinates, every spot lies within 5 % of a
    step of a cell of its own, a tenth of the cells is taken, and spots have two neighbours in rows and columns on average.
    A hexagonal array has none there.

    Parameters
    ----------
    coordinates
        Shape `(n_spots, 2)`; other shapes have no grid.
    device
        Of the grid.
    """
    n_spots, n_dimensions = coordinates.shape
    if n_dimensions != 2 or n_spots < 4:
        return None
    index = []
    for values in coordinates.T:
        gaps = np.diff(np.sort(values))
        gaps = gaps[gaps > 1e-6 * np.ptp(values)]
        if len(gaps) == 0:
            return None
        exact = (values - values.min()) / gaps.min()
        index.append(np.rint(exact).astype(np.int64))
        if np.abs(exact - index[-1]).max() > 0.05:
            return None
    column, row = index
    height, width = int(row.max()) + 1, int(column.max()) + 1
    if height * width > 10 * n_spots:
        return None
    taken = np.zeros((height, width), dtype=bool)
    taken[row, column] = True
    n_pairs = (taken[1:] & taken[:-1]).sum() + (taken[:, 1:] & taken[:, :-1]).sum()
    if taken.sum() < n_spots or n_pairs < n_spots:
        return None
    return Grid(torch.from_numpy(row * width + column).to(device), (height, width))


def ssim(predicted: Tensor, truth: Tensor, grid: Grid) -> Tensor:
    """Structural similarity around every spot, shape `(n_spots, n_genes)`; NaN for genes whose truth is constant.

    A Gaussian window of standard deviation 1.5 cells, over the cells that hold a spot; the range of each gene is that of
    its truth.

    Parameters
    ----------
    predicted, truth
        float64, shape `(n_spots, n_genes)`.
    grid
        Where the spots lie.
    """
    weight = _blur(predicted.new_ones(len(predicted), 1), grid)

    def local_mean(values: Tensor) -> Tensor:
        return _blur(values, grid) / weight

    p, t = local_mean(predicted), local_mean(truth)
    variances = local_mean(predicted.square()) - p.square() + local_mean(truth.square()) - t.square()
    covariance = local_mean(predicted * truth) - p * t
    extent = truth.amax(0) - truth.amin(0)
    c1, c2 = (_K1 * extent).square(), (_K2 * extent).square()
    similarity = (2 * p * t + c1) * (2 * covariance + c2) / ((p.square() + t.square() + c1) * (variances + c2))
    return similarity.masked_fill(extent <= 1e-6 * truth.abs().amax(0), torch.nan)


def _blur(values: Tensor, grid: Grid) -> Tensor:
    """Gaussian-weighted sum of the values around each spot; empty cells add nothing."""
    height, width = grid.shape
    image = values.new_zeros(values.shape[1], height * width)
    image[:, grid.cell] = values.T
    offsets = torch.arange(-_REACH, _REACH + 1, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (offsets / _SIGMA).square())
    kernel = kernel / kernel.sum()
    blurred = conv2d(image.view(-1, 1, height, width), kernel.view(1, 1, -1, 1), padding=(_REACH, 0))
    blurred = conv2d(blurred, kernel.view(1, 1, 1, -1), padding=(0, _REACH))
    return blurred.view(-1, height * width)[:, grid.cell].T
