"""Whether a denoised matrix still holds what the counts show: how many components it has, and whether its genes are those of the counts."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def components(expression: Tensor) -> tuple[float, float]:
    """Share of the variance in the first two principal components, and the effective rank.

    The effective rank is exp(H) of the shares of all components: 2 where two hold half each, and 1 where there is no variance.

    Parameters
    ----------
    expression
        Shape `(n_spots, n_genes)`.

    References
    ----------
    Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    centred = expression.double()
    centred = centred - centred.mean(0)
    # The smaller of the two matrices of cross products has all eigenvalues that are not zero.
    products = centred @ centred.t() if len(centred) < centred.shape[1] else centred.t() @ centred
    if not torch.isfinite(products).all():
        return math.nan, math.nan
    values = torch.linalg.eigvalsh(products).flip(0).clamp(min=0)
    total = values.sum()
    # Rounding leaves some of a constant matrix.
    if total <= 1e-12 * expression.double().square().sum():
        return math.nan, 1.0
    shares = values / total
    return float(shares[:2].sum()), float(torch.special.entr(shares).sum().exp())


def gene_correlations(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of each column of two matrices of one shape; NaN where one of them is constant."""
    first, second = (x.double() - x.double().mean(0) for x in (first, second))
    scale = (first.square().sum(0) * second.square().sum(0)).sqrt()
    return (first * second).sum(0) / scale.masked_fill(scale <= 0, torch.nan)
