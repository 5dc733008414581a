"""Truncated singular value decomposition and principal components of sparse or dense matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stdenoise.spatial.graph import transpose_csr

_OVERSAMPLE = 10

_BASIS = 600
"""Columns of the Krylov basis, at least six blocks; smaller sides of a matrix are spanned whole."""


def truncated_svd(
    matrix: Tensor,
    rank: int,
    *,
    generator: torch.Generator,
    n_iterations: int | None = None,
    mean: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular values and vectors of a matrix that is only multiplied, never made dense.

    By block Krylov iteration (Musco and Musco 2015), which tells apart singular values as close as those of sparse counts; exact up
    to rounding where the smaller side of the matrix has at most 600 rows or columns.

    Parameters
    ----------
    matrix
        CSR or dense, shape `(n, m)`.
    rank
        Number of singular values, at most `min(n, m)`.
    generator
        Source of the random start, on the CPU.
    n_iterations
        Do so many iterations of the plain randomised scheme (Halko, Martinsson and Tropp 2011) instead, whose result depends
        on the start where singular values are close.
    mean
        Row that is subtracted from every row without forming the difference, shape `(m,)`.

    Returns
    -------
    `U`, shape `(n, rank)`; singular values, falling; `V'`, shape `(rank, m)`. Double precision. The largest entry of every
    row of `V'` is positive.
    """
    n, m = matrix.shape
    smaller = min(n, m)
    if not 1 <= rank <= smaller:
        raise ValueError(f"rank={rank} must lie between 1 and the smaller side of the matrix, {n} x {m}.")
    matrix = matrix.double()
    transposed = matrix.t() if matrix.layout == torch.strided else transpose_csr(matrix)
    shift = torch.zeros(m, dtype=torch.float64, device=matrix.device) if mean is None else mean.double()

    def times(right: Tensor) -> Tensor:
        return matrix @ right - shift @ right

    def transposed_times(left: Tensor) -> Tensor:
        return transposed @ left - shift[:, None] * left.sum(0)

    width = min(rank + _OVERSAMPLE, smaller)
    if n_iterations is None and smaller <= _BASIS:
        width, n_iterations = smaller, 0
    start = torch.randn(m, width, generator=generator, dtype=torch.float64).to(matrix.device)
    basis = torch.linalg.qr(times(start)).Q
    if n_iterations is None:
        n_blocks = min(max(_BASIS // width, 6), smaller // width)
        blocks = [basis]
        while len(blocks) < n_blocks:
            block = times(transposed_times(blocks[-1]))
            # Twice: once leaves what rounding took away.
            for _ in range(2):
                for previous in blocks:
                    block -= previous @ (previous.t() @ block)
            blocks.append(torch.linalg.qr(block).Q)
        basis = torch.cat(blocks, dim=1)
    else:
        for _ in range(n_iterations):
            basis = torch.linalg.qr(times(torch.linalg.qr(transposed_times(basis)).Q)).Q
    u, s, vt = torch.linalg.svd(transposed_times(basis).t(), full_matrices=False)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    largest = vt.gather(1, vt.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return (basis @ u) * sign[:, 0], s, vt * sign


@dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of a matrix.

    Parameters
    ----------
    scores
        Shape `(n, n_components)`.
    components
        Orthonormal rows, shape `(n_components, m)`.
    mean
        Mean of every column, shape `(m,)`.
    """

    scores: Tensor
    components: Tensor
    mean: Tensor


def principal_components(matrix: Tensor, n_components: int, *, generator: torch.Generator) -> PrincipalComponents:
    """Principal components of the rows of a CSR or dense matrix, centred implicitly; double precision.

    Parameters
    ----------
    matrix
        Shape `(n, m)`.
    n_components
        At most `min(n, m)`.
    generator
        Source of the random start, on the CPU.
    """
    ones = torch.ones(matrix.shape[0], 1, dtype=torch.float64, device=matrix.device)
    transposed = matrix.t() if matrix.layout == torch.strided else transpose_csr(matrix)
    mean = (transposed.double() @ ones).squeeze(1) / matrix.shape[0]
    u, s, vt = truncated_svd(matrix, n_components, generator=generator, mean=mean)
    return PrincipalComponents(u * s, vt, mean)
