"""Mini-batches of DCA: standardised input, made from sparse counts for the spots of a batch only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stdenoise.nn.counts import CountBlock
from stdenoise.spatial.graph import row_sum, transpose_csr, with_values
from stdenoise.train.patches import Patch, Patches


@dataclass(frozen=True)
class Batch:
    """Some spots.

    Parameters
    ----------
    x
        Standardised input, dense, shape `(n_batch, n_genes)`.
    block
        Their counts.
    size_factors
        Shape `(n_batch,)`.
    """

    x: Tensor
    block: CountBlock
    size_factors: Tensor


def make_batch(patch: Patch, scale: Tensor, input_of_zero: Tensor) -> Batch:
    """Make the batch of a patch."""
    n_rows, n_genes = patch.counts.shape
    row, column = _positions(patch.counts)
    position = row * n_genes + column
    value = _log_depth_normalized(patch.counts, patch.size_factors, row) * scale[column]
    x = input_of_zero.repeat(n_rows, 1)
    x.view(-1).scatter_add_(0, position, value.to(x.dtype))
    count = patch.counts.values().double()
    return Batch(x, CountBlock(0, n_rows, position, count, torch.lgamma(count + 1).sum()), patch.size_factors)


def standardization(data: Patches, n_nonempty: int) -> tuple[Tensor, Tensor]:
    """Return the factor that gives each gene unit variance, and what a zero count becomes, each of shape `(n_genes,)`."""
    n_genes = data.spots.counts.shape[1]
    total, square, n_stored = (torch.zeros(n_genes, dtype=torch.float64, device=data.device) for _ in range(3))
    for columns in _columns(data):
        total += row_sum(columns)
        n_stored += columns.crow_indices().diff()
    mean = total / n_nonempty
    for columns in _columns(data):
        residual = columns.values() - mean[torch.repeat_interleave(columns.crow_indices().diff())]
        square += row_sum(with_values(columns, residual**2))
    square += (n_nonempty - n_stored) * mean**2
    sd = (square / max(n_nonempty - 1, 1)).sqrt()
    # Rounding leaves a constant gene with a tiny spread.
    scale = torch.where(sd > 1e-6 * mean, 1 / sd, 0.0)
    return scale, -mean * scale


def _columns(data: Patches) -> Iterator[Tensor]:
    """Normalised values of blocks of spots, gene by gene."""
    start = 0
    for block in data.row_blocks():
        counts = block.to(data.device)
        stop = start + counts.shape[0]
        size_factors = data.spots.size_factors[start:stop].to(data.device)
        row, _ = _positions(counts)
        yield transpose_csr(with_values(counts, _log_depth_normalized(counts, size_factors, row)))
        start = stop


def _positions(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each stored entry."""
    return torch.repeat_interleave(counts.crow_indices().diff()), counts.col_indices().long()


def _log_depth_normalized(counts: Tensor, size_factors: Tensor, row: Tensor) -> Tensor:
    return torch.log1p(counts.values().double() / size_factors[row].double())
