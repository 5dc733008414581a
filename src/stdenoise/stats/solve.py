"""Conjugate gradients for sparse symmetric positive definite systems with many right-hand sides."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_ENTRIES = 2**17
"""Entries of a block of columns: the handful of arrays of one iteration then stay in cache."""
_MIN_COLUMNS = 16
"""Narrower blocks would read the matrix too often for what they compute."""


def diagonal(matrix: Tensor) -> Tensor:
    """Diagonal of a CSR tensor of shape `(n, n)`; 0 where nothing is stored."""
    crow, col = matrix.crow_indices(), matrix.col_indices()
    row = torch.repeat_interleave(torch.arange(len(crow) - 1, device=col.device, dtype=col.dtype), crow.diff())
    on_it = row == col
    out = matrix.values().new_zeros(len(crow) - 1)
    out[row[on_it].long()] = matrix.values()[on_it]
    return out


@torch.no_grad()
def conjugate_gradients(matrix: Tensor, right: Tensor, *, tol: float = 1e-6, max_iterations: int = 1000) -> Tensor:
    """Solve `matrix @ x = right` for many right-hand sides, in blocks of columns.

    The diagonal preconditions the system (Jacobi). A column is done when its residual falls below `tol` times its
    right-hand side in the Euclidean norm, as they are and divided by the diagonal: a row of small numbers counts too. Arithmetic is in the type of the matrix, so that a matrix of double
    precision can solve for values kept in single precision.

    Parameters
    ----------
    matrix
        CSR, shape `(n, n)`, symmetric and positive definite. Semi-definite will do where the system has a solution.
    right
        Shape `(n, k)`.
    tol
        Relative residual to reach.
    max_iterations
        Bound on the iterations for each block.

    Returns
    -------
    Shape `(n, k)`, in the type of `right`.

    Raises
    ------
    ValueError
        The matrix is found not to be positive definite.
    FloatingPointError
        A column did not converge.

    Examples
    --------
    >>> import torch
    >>> from stdenoise.stats.solve import conjugate_gradients
    >>> matrix = torch.tensor([[2.0, -1.0], [-1.0, 2.0]]).to_sparse_csr()
    >>> conjugate_gradients(matrix, torch.tensor([[3.0], [0.0]])).round(decimals=4).flatten()
    tensor([2., 1.])
    """
    scale = diagonal(matrix)
    if (scale < 0).any():
        raise ValueError("the matrix is not positive definite: its diagonal has negative entries.")
    # A spot on which nothing depends has a row of zeros; any positive number does there.
    scale = torch.where(scale > 0, scale, 1.0)[:, None]
    out = torch.empty_like(right)
    width = max(_MIN_COLUMNS, _BLOCK_ENTRIES // len(right))
    for start in range(0, right.shape[1], width):
        block = slice(start, start + width)
        out[:, block] = _solve(matrix, scale, right[:, block].to(matrix.dtype), tol, max_iterations)
    return out


def _solve(matrix: Tensor, scale: Tensor, right: Tensor, tol: float, max_iterations: int) -> Tensor:
    x = torch.zeros_like(right)
    residual = right.clone(memory_format=torch.contiguous_format)
    direction = residual / scale
    product = (residual * direction).sum(0)
    size = _norms(residual, direction)
    goal = tol * size
    for _ in range(max_iterations):
        # Written so that a residual that is no number never counts as converged.
        active = ~(size <= goal).all(0)
        if not active.any():
            return x
        image = matrix @ direction
        curvature = (direction * image).sum(0)
        if (curvature[active] <= 0).any():
            raise ValueError("the matrix is not positive definite: conjugate gradients met a negative curvature.")
        # A column that is done stays as it is.
        step = torch.where(active, product / curvature, 0.0)
        x.addcmul_(direction, step)
        residual.addcmul_(image, step, value=-1)
        preconditioned = residual / scale
        size = _norms(residual, preconditioned)
        before, product = product, (residual * preconditioned).sum(0)
        direction.mul_(torch.where(active, product / before, 0.0)).add_(preconditioned)
    failed = int((~(size <= goal).all(0)).sum())
    if failed:
        raise FloatingPointError(
            f"conjugate gradients did not reach a relative residual of {tol:.1e} in {max_iterations} iterations for "
            f"{failed} of {right.shape[1]} columns: the system is nearly singular, or its values are not finite."
        )
    return x


def _norms(residual: Tensor, preconditioned: Tensor) -> Tensor:
    return torch.stack([residual.norm(dim=0), preconditioned.norm(dim=0)])
