"""Mini-batches of DCA: standardised input, made from sparse counts for the spots of a batch only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stdenoise.graph.csr import select_rows, transpose_csr
from stdenoise.nn.counts import CountBlock


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


class Batches:
    """The spots of a data set, from which batches are taken.

    Parameters
    ----------
    counts
        CSR, shape `(n_spots, n_genes)`.
    size_factors
        Shape `(n_spots,)`.
    n_nonempty
        Number of spots with counts: mean and standard deviation of a gene are taken over these.

    Notes
    -----
    The input is the logarithm of one plus the counts over the size factor, brought to zero mean and unit variance (n - 1) per gene; genes
    that do not vary are 0. A zero count becomes the same number in every spot, so that a batch is that row, repeated, plus
    something at the non-zero counts.
    """

    def __init__(self, counts: Tensor, size_factors: Tensor, n_nonempty: int) -> None:
        crow, col, values = counts.crow_indices(), counts.col_indices(), counts.values()
        row = torch.repeat_interleave(crow.diff())
        value = torch.log1p(values.double() / size_factors[row].double())
        mean, sd = _moments(_like(counts, value), n_nonempty)
        # Rounding leaves a constant gene with a tiny spread.
        scale = torch.where(sd > 1e-6 * mean, 1 / sd, 0.0)
        self.shape = counts.shape
        self.size_factors = size_factors
        self._counts = values
        self._input = (value * scale[col]).to(values.dtype)
        self._input_of_zero = (-mean * scale).to(values.dtype)
        self._log_factorial = _row_sum(_like(counts, torch.lgamma(values.double() + 1)))
        # Rows of this matrix hold the positions of their entries.
        self._entries = _like(counts, torch.arange(len(values), device=values.device))

    def take(self, rows: Tensor) -> Batch:
        """Return the batch of these spots."""
        n_rows, n_genes = len(rows), self.shape[1]
        picked = select_rows(self._entries, rows)
        entry = picked.values()
        position = torch.repeat_interleave(picked.crow_indices().diff()) * n_genes + picked.col_indices()
        x = self._input_of_zero.repeat(n_rows, 1)
        x.view(-1).scatter_add_(0, position, self._input.index_select(0, entry))
        block = CountBlock(
            0, n_rows, position, self._counts.index_select(0, entry).double(), self._log_factorial[rows].sum()
        )
        return Batch(x, block, self.size_factors[rows])


def _like(matrix: Tensor, values: Tensor) -> Tensor:
    return torch.sparse_csr_tensor(matrix.crow_indices(), matrix.col_indices(), values, size=matrix.shape)


def _row_sum(matrix: Tensor) -> Tensor:
    return (matrix @ matrix.values().new_ones(matrix.shape[1], 1)).squeeze(1)


def _moments(matrix: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column over `n_rows` rows that include all non-zero ones."""
    columns = transpose_csr(matrix)
    n_stored = columns.crow_indices().diff()
    mean = _row_sum(columns) / n_rows
    residual = columns.values() - mean[torch.repeat_interleave(n_stored)]
    square = _row_sum(_like(columns, residual**2)) + (n_rows - n_stored) * mean**2
    return mean, (square / max(n_rows - 1, 1)).sqrt()
