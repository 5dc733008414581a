"""How close an estimate is to the truth: errors, cosine similarity and structural similarity on lattices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from stdenoise.spatial.lattice import Lattice

_SIGMA, _REACH = 1.5, 5
"""The window of the structural similarity: a Gaussian in cells, cut at 3.5 standard deviations."""

_K1, _K2 = 0.01, 0.03
"""Its constants, as shares of the range of the truth."""


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine similarity of the columns; NaN where one is zero throughout."""
    return (left * right).sum(0) / (left.square().sum(0).sqrt() * right.square().sum(0).sqrt())


def ssim(predicted: Tensor, truth: Tensor, lattice: Lattice) -> Tensor:
    """Structural similarity around every spot, shape `(n_spots, n_genes)`; NaN for genes whose truth is constant.

    A Gaussian window of standard deviation 1.5 cells, over the cells that hold a spot; the range of each gene is that of
    its truth.

    Parameters
    ----------
    predicted, truth
        float64, shape `(n_spots, n_genes)`.
    lattice
        Where the spots lie.
    """
    weight = _blur(predicted.new_ones(len(predicted), 1), lattice)

    def local_mean(values: Tensor) -> Tensor:
        return _blur(values, lattice) / weight

    p, t = local_mean(predicted), local_mean(truth)
    variances = local_mean(predicted.square()) - p.square() + local_mean(truth.square()) - t.square()
    covariance = local_mean(predicted * truth) - p * t
    extent = truth.amax(0) - truth.amin(0)
    c1, c2 = (_K1 * extent).square(), (_K2 * extent).square()
    similarity = (2 * p * t + c1) * (2 * covariance + c2) / ((p.square() + t.square() + c1) * (variances + c2))
    return similarity.masked_fill(extent <= 1e-6 * truth.abs().amax(0), torch.nan)


def _blur(values: Tensor, lattice: Lattice) -> Tensor:
    """Gaussian-weighted sum of the values around each spot; empty cells add nothing."""
    height, width = lattice.shape
    image = values.new_zeros(values.shape[1], height * width)
    image[:, lattice.cell] = values.T
    offsets = torch.arange(-_REACH, _REACH + 1, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (offsets / _SIGMA).square())
    kernel = kernel / kernel.sum()
    blurred = conv2d(image.view(-1, 1, height, width), kernel.view(1, 1, -1, 1), padding=(_REACH, 0))
    blurred = conv2d(blurred, kernel.view(1, 1, 1, -1), padding=(0, _REACH))
    return blurred.view(-1, height * width)[:, lattice.cell].T
