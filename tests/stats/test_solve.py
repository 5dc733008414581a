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


@given(n=some.integers(1, 40), k=some.integers(1, 40), seed=some.integers(0, 2**32), strength=some.floats(0, 1e3))
def test_equals_a_dense_solve(n, k, seed, strength):
    matrix, rng = laplacian_system(n, seed, strength=strength)
    right = rng.normal(size=(n, k)) * 10.0 ** rng.integers(-6, 6, size=k)
    solution = conjugate_gradients(csr(matrix), torch.from_numpy(right), tol=1e-10).numpy()
    expected = np.linalg.solve(matrix.toarray(), right)
    # All eigenvalues are at least 1, so that the error is no longer than the residual.
    error = np.linalg.norm(solution - expected, axis=0)
    assert (error <= 1e-9 * np.linalg.norm(right, axis=0)).all()


@given(seed=some.integers(0, 2**32), tol=some.sampled_from([1e-1, 1e-3, 1e-8]))
def test_every_column_reaches_the_tolerance(seed, tol):
    matrix, rng = laplacian_system(30, seed)
    right = rng.normal(size=(30, 7)) * 10.0 ** np.arange(-3, 4)
    solution = conjugate_gradients(csr(matrix), torch.from_numpy(right), tol=tol).numpy()
    residual = np.linalg.norm(matrix @ solution - right, axis=0) / np.linalg.norm(right, axis=0)
    assert (residual <= tol * (1 + 1e-6)).all()


def test_blocks_of_columns_do_not_matter(monkeypatch):
    matrix, rng = laplacian_system(20, 0)
    right = torch.from_numpy(rng.normal(size=(20, 50)))
    whole = conjugate_gradients(csr(matrix), right, tol=1e-12)
    monkeypatch.setattr(solve, "_BLOCK_ENTRIES", 1)
    monkeypatch.setattr(solve, "_MIN_COLUMNS", 3)
    torch.testing.assert_close(conjugate_gradients(csr(matrix), right, tol=1e-12), whole, rtol=0, atol=1e-11)


def test_a_column_of_zeros_gives_zeros_beside_others():
    matrix, rng = laplacian_system(20, 1)
    right = torch.from_numpy(rng.normal(size=(20, 3)))
    right[:, 1] = 0
    solution = conjugate_gradients(csr(matrix), right, tol=1e-10)
    assert (solution[:, 1] == 0).all()
    np.testing.assert_allclose(solution, np.linalg.solve(matrix.toarray(), right.numpy()), atol=1e-9)


def test_single_precision_values_and_a_double_precision_matrix():
    matrix, rng = laplacian_system(30, 2)
    right = torch.from_numpy(rng.normal(size=(30, 4))).float()
    solution = conjugate_gradients(csr(matrix), right, tol=1e-12)
    assert solution.dtype == torch.float32
    expected = np.linalg.solve(matrix.toarray(), right.double().numpy())
    np.testing.assert_allclose(solution.numpy(), expected.astype(np.float32), rtol=1e-6, atol=1e-7)


def test_single_precision_throughout():
    matrix, rng = laplacian_system(30, 2)
    right = torch.from_numpy(rng.normal(size=(30, 4))).float()
    solution = conjugate_gradients(csr(matrix, torch.float32), right)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix.toarray(), right.numpy()), atol=2e-5)


def test_a_good_diagonal_needs_one_iteration():
    matrix = csr(np.diag([1.0, 1e3, 1e6]))
    right = torch.tensor([[1.0], [1.0], [1.0]], dtype=torch.float64)
    solution = conjugate_gradients(matrix, right, tol=1e-12, max_iterations=2)
    np.testing.assert_allclose(solution.flatten(), [1, 1e-3, 1e-6], rtol=1e-12)


def test_a_singular_system_with_a_solution_is_solved():
    # Two spots that nothing touches beside a proper system.
    matrix = csr(np.diag([2.0, 0.0, 4.0, 0.0]))
    right = torch.tensor([[2.0], [0.0], [2.0], [0.0]], dtype=torch.float64)
    np.testing.assert_allclose(conjugate_gradients(matrix, right).flatten(), [1, 0, 0.5, 0])


@pytest.mark.parametrize("matrix", [[[1.0, 3.0], [3.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]])
def test_an_indefinite_matrix_is_refused(matrix):
    with pytest.raises(ValueError, match="not positive definite"):
        conjugate_gradients(csr(np.array(matrix)), torch.tensor([[1.0], [-1.0]], dtype=torch.float64))


def test_no_convergence_is_an_error():
    matrix, rng = laplacian_system(40, 3, strength=1e3)
    right = torch.from_numpy(rng.normal(size=(40, 2)))
    with pytest.raises(FloatingPointError, match="in 3 iterations for 2 of 2 columns"):
        conjugate_gradients(csr(matrix), right, tol=1e-12, max_iterations=3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_an_error(bad):
    matrix, _ = laplacian_system(5, 4)
    right = torch.ones(5, 2, dtype=torch.float64)
    right[2, 1] = bad
    with pytest.raises(FloatingPointError, match="1 of 2 columns"):
        conjugate_gradients(csr(matrix), right, max_iterations=20)


@given(n=some.integers(1, 20), seed=some.integers(0, 2**32))
def test_diagonal(n, seed):
    matrix = sparse.random(n, n, density=0.3, random_state=np.random.default_rng(seed), format="csr")
    np.testing.assert_array_equal(diagonal(csr(matrix)).numpy(), matrix.diagonal())
