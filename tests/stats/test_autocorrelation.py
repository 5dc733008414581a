import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as h
from scipy import sparse

from stdenoise._base.random import torch_generator
from stdenoise.stats.autocorrelation import Statistic, Weights, centre

GRID = sparse.csr_matrix(
    np.array([[abs(a // 3 - b // 3) + abs(a % 3 - b % 3) == 1 for b in range(6)] for a in range(6)], dtype=float)
)
KINDS = h.sampled_from(["moran", "geary"])
WEIGHTINGS = h.sampled_from(["row", "binary"])


def weights_of(matrix, kind):
    return Weights.of(sparse.csr_matrix(matrix), kind)


def of_dense(kind, values, weights):
    return Statistic(kind, weights).of_centred(*centre(torch.tensor(np.asarray(values, dtype=float)))).numpy()


def directed_graph(seed, n):
    rng = np.random.default_rng(seed)
    matrix = (rng.random((n, n)) < 0.3).astype(float)
    matrix[0, 1] = 1
    return matrix


def dense_weights(matrix, kind):
    matrix = matrix * (1 - np.eye(len(matrix)))
    total = matrix.sum(1, keepdims=True)
    return matrix / np.where(total > 0, total, 1) if kind == "row" else matrix


def brute(kind, values, w):
    z = values - values.mean(0)
    n = len(z)
    if kind == "moran":
        return n / w.sum() * np.einsum("ig,ij,jg->g", z, w, z) / (z**2).sum(0)
    squared = (z[:, None] - z[None]) ** 2
    return (n - 1) / (2 * w.sum()) * np.einsum("ij,ijg->g", w, squared) / (z**2).sum(0)


@pytest.mark.parametrize(("kind", "expected"), [("binary", 0.392857), ("row", 0.458333)])
def test_the_published_example(kind, expected):
    values = np.array([1.0, 2, 4, 1, 3, 5])[:, None]
    assert of_dense("moran", values, weights_of(GRID, kind)) == pytest.approx([expected], abs=1e-6)


@given(h.integers(0, 1000), h.integers(3, 12), WEIGHTINGS, KINDS)
def test_both_equal_their_definition(seed, n, weighting, kind):
    matrix = directed_graph(seed, n)
    values = np.random.default_rng(seed).normal(size=(n, 5)) + 3
    expected = brute(kind, values, dense_weights(matrix, weighting))
    np.testing.assert_allclose(of_dense(kind, values, weights_of(matrix, weighting)), expected, rtol=1e-9, atol=1e-12)


@given(h.integers(0, 1000), WEIGHTINGS, KINDS, h.sampled_from([np.float32, np.int64]), h.sampled_from([3, 1024]))
def test_sparse_values_equal_their_definition(seed, weighting, kind, dtype, rows):
    matrix = directed_graph(seed, 14)
    values = np.random.default_rng(seed).poisson(1.0, size=(14, 6))
    values[0, values.min(0) == values.max(0)] += 1
    counts = sparse.csr_matrix(values.astype(dtype))
    expected = brute(kind, values, dense_weights(matrix, weighting))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stdenoise.stats.autocorrelation._ROWS", rows)
        measured = Statistic(kind, weights_of(matrix, weighting)).of_sparse(counts)
    np.testing.assert_allclose(measured, expected, rtol=1e-9, atol=1e-12)


def test_sparse_values_that_sums_cannot_centre_are_handed_back():
    values = np.random.default_rng(0).normal(size=(6, 3))
    values[:, 1] += 1e4
    values[:, 2] = 0.1
    measured = Statistic("moran", weights_of(GRID, "row")).of_sparse(sparse.csr_matrix(values))
    assert np.isfinite(measured[0])
    assert np.isinf(measured[1])
    assert np.isnan(measured[2])


@pytest.mark.parametrize("weighting", ["row", "binary"])
def test_moments_equal_their_definition(weighting):
    w = dense_weights(directed_graph(3, 15), weighting)
    weights = weights_of(directed_graph(3, 15), weighting)
    assert weights.s0 == pytest.approx(w.sum())
    assert weights.s1 == pytest.approx(((w + w.T) ** 2).sum() / 2)
    assert weights.s2 == pytest.approx(((w.sum(0) + w.sum(1)) ** 2).sum())


@pytest.mark.parametrize("kind", ["moran", "geary"])
def test_expectation_and_variance_are_those_of_independent_normal_values(kind):
    weights = weights_of(directed_graph(5, 20), "row")
    drawn = of_dense(kind, np.random.default_rng(0).normal(size=(20, 40_000)), weights)
    assert drawn.mean() == pytest.approx(weights.expected(kind), abs=4 * drawn.std() / 200)
    assert drawn.var() == pytest.approx(weights.variance(kind), rel=0.03)


@given(h.integers(0, 1000), WEIGHTINGS, KINDS)
def test_a_permutation_moves_the_values_of_all_genes(seed, weighting, kind):
    matrix = directed_graph(seed, 9)
    values = np.random.default_rng(seed).normal(size=(9, 3))
    centred, spread = centre(torch.tensor(values))
    statistic = Statistic(kind, weights_of(matrix, weighting))
    drawn = statistic.permuted(centred, spread, n_permutations=4, generator=torch_generator(seed))
    generator = torch_generator(seed)
    for row in drawn:
        moved = values[torch.randperm(9, generator=generator).numpy()]
        np.testing.assert_allclose(row, brute(kind, moved, dense_weights(matrix, weighting)), rtol=1e-9, atol=1e-12)


def test_constant_columns_have_no_spread():
    rng = np.random.default_rng(0)
    nearly = 3.0 + np.float64(1e-8) * rng.normal(size=50)
    _, spread = centre(torch.tensor(np.column_stack([np.full(50, 0.1), nearly, np.zeros(50), rng.normal(size=50)])))
    assert spread.isnan().tolist() == [True, True, True, False]
