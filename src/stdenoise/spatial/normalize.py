"""The one normalisation: `log1p` of counts per 10 000, of tensors and of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise.spatial.graph import row_sum, with_values

TARGET_SUM = 1e4
"""Counts per spot after normalisation, before the logarithm."""


Matrix: TypeAlias = Any
"""A numpy array or a scipy CSR matrix; scipy ships no types."""


def depth_normalized(counts: Tensor) -> Tensor:
    """Counts scaled to 10 000 per spot, CSR of the same pattern, double precision."""
    values = counts.values().double()
    factor = TARGET_SUM / row_sum(with_values(counts, values))
    return with_values(counts, values * factor.repeat_interleave(counts.crow_indices().diff()))


@overload
def lognorm(counts: Tensor) -> Tensor: ...
@overload
def lognorm(counts: Matrix, *, target_sum: float = ...) -> Matrix: ...
def lognorm(counts: Any, *, target_sum: float = TARGET_SUM) -> Any:
    """`log1p` of counts scaled to `target_sum` per spot; sparse stays sparse, an empty spot stays empty.

    Parameters
    ----------
    counts
        Raw or expected counts, dense or CSR, shape `(n_spots, n_genes)`; not changed. Of a CSR tensor, which is scaled to 10 000, the
        result has the same precision, though it is computed in double precision.
    target_sum
        Total of every spot after scaling.
    """
    if isinstance(counts, Tensor):
        scaled = depth_normalized(counts)
        return with_values(counts, scaled.values().log1p_().to(counts.dtype))
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    factor = target_sum / np.where(total > 0, total, 1.0)
    if sparse.issparse(counts):
        values = np.log1p(counts.data * np.repeat(factor, np.diff(counts.indptr)))
        return sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)
    scaled = counts * factor[:, None]
    return np.log1p(scaled, out=scaled)


def gene_blocks(
    values: Matrix, *, block_entries: int, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Cut a matrix into blocks of genes, as dense tensors of shape `(n_spots, n_block)`.

    Parameters
    ----------
    values
        Dense or CSR, shape `(n_spots, n_genes)`.
    block_entries
        Entries per block, at most.
    device, dtype
        Of the tensors.
    """
    n_spots, n_genes = values.shape
    columns = sparse.csc_matrix(values) if sparse.issparse(values) else values
    width = max(1, block_entries // max(1, n_spots))
    for start in range(0, n_genes, width):
        block = slice(start, min(start + width, n_genes))
        part = columns[:, block]
        # Fresh memory in either case: a block may be changed in place.
        dense = part.toarray(order="C") if sparse.issparse(part) else np.array(part, order="C")
        yield block, torch.from_numpy(dense).to(device=device, dtype=dtype)
