import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

from stdenoise.spatial.graph import to_csr_tensor
from stdenoise.stats import solve
from stdenoise.stats.solve import conjugate_gradients, diagonal


def laplacian_system(n, seed, *, strength=3.0, density=0.2):
    """`I + strength L` of a random weighted graph."""
    rng = np.random.default_rng(seed)
    weights = sparse.triu(sparse.random(n, n, density=density, random_state=rng), 1)
    weights = weights + weights.T
    degree = sparse.diags(np.asarray(weights.sum(0)).ravel())
    return sparse.csr_matrix(sparse.identity(n) + strength * (degree - weights)), rng


def csr(matrix, dtype=torch.float64):
    return to_csr_tensor(sparse.csr_matrix(matrix), dtype=dtype)


@given(
    n=some.integers(1, 40),
    k=some.integers(1, 40),
    seed=some.integers(0, 2**32),
    strength=some.floats(0, 1e3),
    tol=some.sampled_from([1e-1, 1e-3, 1e-10]),
)
def test_every_column_reaches_the_tolerance_and_so_a_dense_solve(n, k, seed, strength, tol):
    matrix, rng = laplacian_system(n, seed, strength=strength)
    right = rng.normal(size=(n, k)) * 10.0 ** rng.integers(-6, 6, size=k)
    right[:, k // 2] = 0
    solution = conjugate_gradients(csr(matrix), torch.from_numpy(right), tol=tol).numpy()
    assert (solution[:, k // 2] == 0).all()
    residual, size = np.linalg.norm(matrix @ solution - right, axis=0), np.linalg.norm(right, axis=0)
    assert (residual <= tol * (1 + 1e-5) * size).all()
    # All eigenvalues are at least 1, so that the error is no longer than the residual.
    error = np.linalg.norm(solution - np.linalg.solve(matrix.toarray(), right), axis=0)
    assert (error <= max(tol * (1 + 1e-5), 1e-9) * size).all()


def test_blocks_of_columns_do_not_matter(monkeypatch):
    matrix, rng = laplacian_system(20, 0)
    right = torch.from_numpy(rng.normal(size=(20, 50)))
    whole = conjugate_gradients(csr(matrix), right, tol=1e-12)
    monkeypatch.setattr(solve, "_BLOCK_ENTRIES", 1)
    monkeypatch.setattr(solve, "_MIN_COLUMNS", 3)
    torch.testing.assert_close(conjugate_gradients(csr(matrix), right, tol=1e-12), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "tol", "limits"),
    [(torch.float64, 1e-12, {"rtol": 1e-6, "atol": 1e-7}), (torch.float32, 1e-6, {"rtol": 1e-7, "atol": 2e-5})],
)
def test_values_in_single_precision(dtype, tol, limits):
    matrix, rng = laplacian_system(30, 2)
    right = torch.from_numpy(rng.normal(size=(30, 4))).float()
    solution = conjugate_gradients(csr(matrix, dtype), right, tol=tol)
    assert solution.dtype == torch.float32
    np.testing.assert_allclose(solution, np.linalg.solve(matrix.toarray(), right.double().numpy()), **limits)


def test_a_diagonal_needs_one_iteration_even_where_it_is_singular():
    # A spot that nothing touches has a row of zeros.
    matrix, right = csr(np.diag([1.0, 1e3, 0.0, 1e6])), torch.tensor([[1.0], [1.0], [0.0], [1.0]]).double()
    solution = conjugate_gradients(matrix, right, tol=1e-12, max_iterations=2)
    np.testing.assert_allclose(solution.flatten(), [1, 1e-3, 0, 1e-6], rtol=1e-12)


@pytest.mark.parametrize("matrix", [[[1.0, 3.0], [3.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
def test_an_indefinite_matrix_is_refused(matrix):
    with pytest.raises(ValueError, match="not positive definite"):
        conjugate_gradients(csr(np.array(matrix)), torch.tensor([[1.0], [-1.0]], dtype=torch.float64))


@pytest.mark.parametrize(("bad", "failed"), [(1.0, "in 3 .* 2 of 2"), (np.nan, "1 of 2"), (np.inf, "1 of 2")])
def test_no_convergence_and_values_that_are_no_numbers_are_errors(bad, failed):
    matrix, rng = laplacian_system(40, 3, strength=1e3 if bad == 1 else 0)
    right = torch.from_numpy(rng.normal(size=(40, 2)))
    right[2, 1] = bad
    with pytest.raises(FloatingPointError, match=failed):
        conjugate_gradients(csr(matrix), right, tol=1e-12, max_iterations=3)


@given(n=some.integers(1, 20), seed=some.integers(0, 2**32))
def test_diagonal(n, seed):
    matrix = sparse.random(n, n, density=0.3, random_state=np.random.default_rng(seed), format="csr")
    np.testing.assert_array_equal(diagonal(csr(matrix)).numpy(), matrix.diagonal())
