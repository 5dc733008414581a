"""Spots as cells of a rectangular lattice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Lattice:
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


def find_lattice(coordinates: np.ndarray, *, device: torch.device | str = "cpu") -> Lattice | None:
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
    return Lattice(torch.from_numpy(row * width + column).to(device), (height, width))
