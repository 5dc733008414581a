"""Pearson and Spearman correlation, of columns and of resampled spots."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_CV = 1e-6
"""Values that vary by less than this share of their size are constant up to the rounding of float32."""


def is_constant(squared_deviations: Tensor, squares: Tensor) -> Tensor:
    """Whether values are constant up to rounding, from the sums of their squared deviations and of their squares.

    The mean of a gene, stored in float32 and normalised, varies in its last bits: to correlate those would report noise.
    """
    return squared_deviations <= _SMALLEST_CV**2 * squares


def pearson(left: Tensor, right: Tensor, weights: Tensor | None = None, *, dim: int = 0) -> Tensor:
    """Pearson correlation along a dimension; NaN where a side is constant or nothing is there.

    Parameters
    ----------
    left, right
        float64, of shapes that broadcast.
    weights
        How often each value counts; once if not given.
    dim
        Dimension that is summed over.
    """
    if weights is None:
        weights = left.new_ones(()).expand_as(left)
    total = weights.sum(dim, keepdim=True)
    a, b = (values - (weights * values).sum(dim, keepdim=True) / total for values in (left, right))
    aa, bb, ab = ((weights * product).sum(dim) for product in (a * a, b * b, a * b))
    constant = is_constant(aa, (weights * left.square()).sum(dim)) | is_constant(
        bb, (weights * right.square()).sum(dim)
    )
    return (ab / (aa.sqrt() * bb.sqrt())).clamp(-1, 1).masked_fill(constant, torch.nan)


def resampled_correlations(left: Tensor, right: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson and Spearman correlation of each resample, shapes `(n_resamples,)`.

    Parameters
    ----------
    left, right
        One value per spot, float64, shape `(n_spots,)`.
    weights
        How often each resample holds each spot: whole numbers as float64, shape `(n_resamples, n_spots)`. A single row of
        ones gives the correlations of the spots themselves.
    """
    left_ranks, right_ranks = (_resampled_ranks(values, weights) for values in (left, right))
    return pearson(left, right, weights, dim=1), pearson(left_ranks, right_ranks, weights, dim=1)


def _resampled_ranks(values: Tensor, weights: Tensor) -> Tensor:
    """Rank of each spot within each resample, ties sharing their mean rank; nothing is sorted twice."""
    distinct, group = values.unique(return_inverse=True)
    size = weights.new_zeros(len(weights), len(distinct))
    # Sums of whole numbers are exact in float64, so the order of the additions does not matter.
    size.index_add_(1, group, weights)
    return (size.cumsum(1) - (size - 1) / 2)[:, group]


def draw_weights(n_resamples: int, n_spots: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw how often each bootstrap resample holds each spot, shape `(n_resamples, n_spots)`."""
    drawn = torch.randint(n_spots, (n_resamples, n_spots), generator=generator)
    drawn += n_spots * torch.arange(n_resamples).unsqueeze(1)
    counts = torch.bincount(drawn.flatten(), minlength=n_resamples * n_spots)
    return counts.view(n_resamples, n_spots).to(device=device, dtype=torch.float64)
