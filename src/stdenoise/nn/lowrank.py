"""Truncated singular value decomposition and principal components of sparse or dense matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stdenoise.graph.csr import transpose_csr

_OVERSAMPLE = 10


def truncated_svd(
    matrix: Tensor, rank: int, *, generator: torch.Generator, n_iterations: int = 10, mean: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest singular values and vectors, by randomised subspace iteration (Halko, Martinsson and Tropp 2011).

    Exact up to rounding where `rank + 10` reaches the smaller side of the matrix, and close to it where the spectrum falls.

    Parameters
    ----------
    matrix
        CSR or dense, shape `(n, m)`; only multiplied, never made dense.
    rank
        Number of singular values, at most `min(n, m)`.
    generator
        Source of the random start, on the CPU.
    n_iterations
        Power iterations, of two products each.
    mean
        Row that is subtracted from every row without forming the difference, shape `(m,)`.

    Returns
    -------
    `U`, shape `(n, rank)`; singular values, falling; `V'`, shape `(rank, m)`. Double precision. The largest entry of every
    row of `V'` is positive.
    """
    n, m = matrix.shape
    if not 1 <= rank <= min(n, m):
        raise ValueError(f"rank={rank} must lie between 1 and the smaller side of the matrix, {n} x {m}.")
    matrix = matrix.double()
    transposed = matrix.t() if matrix.layout == torch.strided else transpose_csr(matrix)
    shift = torch.zeros(m, dtype=torch.float64, device=matrix.device) if mean is None else mean.double()

    def times(right: Tensor) -> Tensor:
        return matrix @ right - shift @ right

    def transposed_times(left: Tensor) -> Tensor:
        return transposed @ left - shift[:, None] * left.sum(0)

    width = min(rank + _OVERSAMPLE, n, m)
    start = torch.randn(m, width, generator=generator, dtype=torch.float64).to(matrix.device)
    basis = torch.linalg.qr(times(start)).Q
    for _ in range(n_iterations):
        basis = torch.linalg.qr(times(torch.linalg.qr(transposed_times(basis)).Q)).Q
    u, s, vt = torch.linalg.svd(transposed_times(basis).t(), full_matrices=False)
    largest = vt.gather(1, vt.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return (basis @ u)[:, :rank] * sign[:rank, 0], s[:rank], (vt * sign)[:rank]


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
