"""How unlike two spots are in their features: neighbour probabilities of a given perplexity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BLOCK_ENTRIES = 2**18
"""Entries of a block of rows of the squared distances, which stays in cache while the bandwidths are sought."""
_FAR = 1e200
"""Squared distance at which a similarity is 0, finite so that its product with 0 is a number."""


def dissimilarities(
    features: Tensor, row: Tensor, col: Tensor, *, perplexity: float, margin: float
) -> tuple[Tensor, Tensor]:
    """Dissimilarity of pairs of spots, between 0 and 1.

    The bandwidth of a spot is chosen by bisection so that the Gaussian similarities of all other spots to it, as
    probabilities, have the entropy `log(perplexity)`. The dissimilarity of a pair is `(1 - p) ** (n / 7)`, where `p` is the mean
    of the two probabilities. Probabilities are computed for blocks of spots and kept only for the pairs.
    """
    n = len(features)
    norm = features.square().sum(1)
    sigma = features.new_empty(n)
    p = features.new_zeros(len(row))
    # Each pair is looked up from both its ends, in the block of rows that holds that end.
    spot = torch.cat([row, col])
    other, pair = torch.cat([col, row]), torch.arange(len(row), device=row.device).repeat(2)
    order = torch.argsort(spot, stable=True)
    spot, other, pair = spot[order], other[order], pair[order]
    height = max(1, _BLOCK_ENTRIES // n)
    ends = torch.searchsorted(spot, torch.arange(0, n + height, height, device=row.device)).tolist()
    for block, start in enumerate(range(0, n, height)):
        rows = torch.arange(start, min(start + height, n), device=features.device)
        squares = torch.addmm(norm[rows, None] + norm, features[rows], features.t(), alpha=-2).clamp_(min=0)
        itself = (rows - start, rows)
        squares[itself] = 0
        highest = (10 * squares.amax(1)).sqrt()
        stop = margin * (squares.sum(1) / max(n - 1, 1)).sqrt()
        # Probabilities do not change when all squares fall by the least, and then the nearest spot never underflows.
        squares[itself] = torch.inf
        squares -= squares.amin(1, keepdim=True)
        squares[itself] = _FAR
        sigma[rows] = _bandwidths(squares, highest, stop, entropy=math.log(perplexity))
        similarity = _gaussian(squares, sigma[rows])
        similarity /= similarity.sum(1, keepdim=True)
        ours = slice(ends[block], ends[block + 1])
        # A pair gets two terms, whose order does not matter for the sum.
        p.index_add_(0, pair[ours], similarity[spot[ours] - start, other[ours]])
    return (1 - p / 2).clamp_(0, 1) ** (n / 7), sigma


def _gaussian(squares: Tensor, sigma: Tensor) -> Tensor:
    return (squares * (-0.5 / sigma.square())[:, None]).exp_()


def _bandwidths(squares: Tensor, high: Tensor, stop: Tensor, *, entropy: float) -> Tensor:
    """Bisect for the bandwidth of each row, between 0 and the highest, until the bracket is shorter than its bound."""
    low = torch.zeros_like(high)
    while True:
        middle = (low + high) / 2
        # Spots equal to all others have a bracket of length 0, and any bandwidth.
        open_ = (high - low >= stop) & (high > low)
        if not open_.any():
            return torch.where(middle > 0, middle, 1.0)
        sigma = torch.where(middle > 0, middle, 1.0)
        similarity = _gaussian(squares, sigma)
        total = similarity.sum(1)
        mean_square = torch.bmm(similarity[:, None], squares[:, :, None])[:, 0, 0] / total
        above = total.log() + mean_square / (2 * sigma.square()) > entropy
        high = torch.where(open_ & above, middle, high)
        low = torch.where(open_ & ~above, middle, low)
