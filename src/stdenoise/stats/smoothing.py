"""What a smoother does to expression: less variance, correlated genes, blurred borders."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def correlation_matrix(cross_products: Tensor) -> Tensor:
    """Correlations from the cross products of centred genes; NaN for genes without variance."""
    variance = cross_products.diagonal()
    scale = variance.sqrt().masked_fill(variance <= 0, torch.nan)
    return cross_products / scale.unsqueeze(0) / scale.unsqueeze(1)


def median_off_diagonal(correlations: Tensor) -> float:
    """Median absolute correlation of pairs of genes, pairs with NaN left out; NaN where no pair is left."""
    n_genes = len(correlations)
    row, col = torch.triu_indices(n_genes, n_genes, offset=1, device=correlations.device)
    values = correlations[row, col].abs()
    values = values[values.isfinite()].sort().values
    if len(values) == 0:
        return math.nan
    # torch's median is the lower of the middle two; the usual one is their mean.
    return float((values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2)


def squared_differences(values: Tensor, pairs: Tensor) -> Tensor:
    """Squared difference of two spots summed over genes, shape `(n_pairs,)`.

    Parameters
    ----------
    values
        Shape `(n_spots, n_genes)`.
    pairs
        Positions of the spots, shape `(2, n_pairs)`.
    """
    return (values[pairs[0]] - values[pairs[1]]).square().sum(1)


def edge_contrast(differences: Tensor, crosses: Tensor) -> float:
    """Mean difference across borders over mean difference within regions.

    NaN where either has no edge or nothing differs, infinite where spots of a region do not differ but for rounding.

    Parameters
    ----------
    differences
        Squared difference of the two ends of each edge, shape `(n_edges,)`.
    crosses
        Whether an edge joins two regions, shape `(n_edges,)`.
    """
    border, inner = float(differences[crosses].mean()), float(differences[~crosses].mean())
    if math.isnan(border + inner) or border == inner == 0:
        return math.nan
    # Differences below a millionth are the rounding of float32, here squared.
    return border / inner if inner > 1e-12 * border else math.inf
