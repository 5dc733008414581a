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


def weights_of(matrix, weighting):
    return Weights.of(sparse.csr_matrix(matrix), weighting)


def of_dense(kind, values, weights):
    return Statistic(kind, weights).of_centred(*centre(torch.tensor(np.asarray(values, dtype=float)))).numpy()


def directed_graph(seed, n):
    matrix = (np.random.default_rng(seed).random((n, n)) < 0.3).astype(float)
    matrix[0, 1] = 1
    return matrix


def dense_weights(matrix, weighting):
    matrix = matrix * (1 - np.eye(len(matrix)))
    total = matrix.sum(1, keepdims=True)
    return matrix / np.where(total > 0, total, 1) if weighting == "row" else matrix


def brute(kind, values, w):
    z = values - values.mean(0)
    n = len(z)
    if kind == "moran":
        return n / w.sum() * (z * (w @ z)).sum(0) / (z**2).sum(0)
    squared = np.array([(w * (x[:, None] - x[None]) ** 2).sum() for x in z.T])
    return (n - 1) / (2 * w.sum()) * squared / (z**2).sum(0)


@pytest.mark.parametrize(("weighting", "expected"), [("binary", 0.392857), ("row", 0.458333)])
def test_the_published_example(weighting, expected):
    values = np.array([1.0, 2, 4, 1, 3, 5])[:, None]
    assert of_dense("moran", values, weights_of(GRID, weighting)) == pytest.approx([expected], abs=1e-6)


def check(seed, n, weighting, kind, dtype=np.float32):
    matrix = directed_graph(seed, n)
    w, weights = dense_weights(matrix, weighting), weights_of(matrix, weighting)
    values = np.random.default_rng(seed).poisson(1.0, size=(n, 5))
    values[0] += values.min(0) == values.max(0)
    counts, statistic = sparse.csr_matrix(values.astype(dtype)), Statistic(kind, weights)
    for measured in (of_dense(kind, values + 3, weights), statistic.of_sparse(counts)):
        np.testing.assert_allclose(measured, brute(kind, values, w), rtol=1e-9, atol=1e-12)
    sums = (w.sum(), ((w + w.T) ** 2).sum() / 2, ((w.sum(0) + w.sum(1)) ** 2).sum())
    assert (weights.s0, weights.s1, weights.s2) == pytest.approx(sums)
    drawn = statistic.permuted(
        *centre(torch.tensor(values.astype(float))), n_permutations=2, generator=torch_generator(seed)
    )
    generator = torch_generator(seed)
    for row in drawn:
        moved = values[torch.randperm(n, generator=generator).numpy()]
        np.testing.assert_allclose(row, brute(kind, moved, w), rtol=1e-9, atol=1e-12)


WEIGHTINGS, KINDS = ["row", "binary"], ["moran", "geary"]


@given(
    h.integers(0, 1000), h.integers(3, 14), h.sampled_from(WEIGHTINGS), h.sampled_from(KINDS),
    h.sampled_from([np.float32, np.int64]),
)  # fmt: skip
def test_dense_sparse_and_permuted_values_and_moments_equal_their_definition(seed, n, weighting, kind, dtype):
    check(seed, n, weighting, kind, dtype)


def test_blocks_of_many_spots_equal_the_definition():
    check(1, 1030, "row", "moran")


def test_sparse_values_that_sums_cannot_centre_are_handed_back():
    values = np.random.default_rng(0).normal(size=(6, 3))
    values[:, 1] += 1e4
    values[:, 2] = 0.1
    measured = Statistic("moran", weights_of(GRID, "row")).of_sparse(sparse.csr_matrix(values))
    assert np.isfinite(measured[0])
    assert np.isinf(measured[1])
    assert np.isnan(measured[2])


@pytest.mark.parametrize("kind", KINDS)
def test_expectation_and_variance_are_those_of_independent_normal_values(kind):
    weights = weights_of(directed_graph(5, 20), "row")
    drawn = of_dense(kind, np.random.default_rng(0).normal(size=(20, 40_000)), weights)
    assert drawn.mean() == pytest.approx(weights.expected(kind), abs=4 * drawn.std() / 200)
    assert drawn.var() == pytest.approx(weights.variance(kind), rel=0.03)


def test_constant_columns_have_no_spread():
    rng = np.random.default_rng(0)
    nearly = 3.0 + np.float64(1e-8) * rng.normal(size=50)
    _, spread = centre(torch.tensor(np.column_stack([np.full(50, 0.1), nearly, np.zeros(50), rng.normal(size=50)])))
    assert spread.isnan().tolist() == [True, True, True, False]
