import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as h
from scipy import sparse

from stdenoise.graph.csr import SpatialGraph
from stdenoise.scores.autocorrelation import Weights, autocorrelation, centre, permutations

GRID = sparse.csr_matrix(
    np.array([[abs(a // 3 - b // 3) + abs(a % 3 - b % 3) == 1 for b in range(6)] for a in range(6)], dtype=float)
)


def weights_of(matrix, kind):
    return Weights.of(SpatialGraph.from_scipy(sparse.csr_matrix(matrix)), kind)


def statistic(kind, values, weights, *, width=2):
    centred, spread = centre(torch.tensor(np.asarray(values, dtype=float)))
    return autocorrelation(kind, centred.split(width, dim=1), spread, weights).numpy()


def directed_graph(seed, n):
    rng = np.random.default_rng(seed)
    matrix = (rng.random((n, n)) < 0.3).astype(float)
    np.fill_diagonal(matrix, 0)
    matrix[0, 1] = 1
    return matrix


def dense_weights(matrix, kind):
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
    assert statistic("moran", values, weights_of(GRID, kind)) == pytest.approx([expected], abs=1e-6)


@given(h.integers(0, 1000), h.integers(3, 12), h.sampled_from(["row", "binary"]), h.sampled_from(["moran", "geary"]))
def test_both_equal_their_definition(seed, n, weighting, kind):
    matrix = directed_graph(seed, n)
    values = np.random.default_rng(seed).normal(size=(n, 5)) + 3
    expected = brute(kind, values, dense_weights(matrix, weighting))
    np.testing.assert_allclose(statistic(kind, values, weights_of(matrix, weighting)), expected, rtol=1e-9, atol=1e-12)


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
    values = np.random.default_rng(0).normal(size=(20, 40_000))
    drawn = statistic(kind, values, weights, width=1000)
    assert drawn.mean() == pytest.approx(weights.expected(kind), abs=4 * drawn.std() / 200)
    assert drawn.var() == pytest.approx(weights.variance(kind), rel=0.03)


@given(h.integers(0, 1000), h.sampled_from(["moran", "geary"]))
def test_moving_the_graph_is_moving_the_values(seed, kind):
    matrix = directed_graph(seed, 9)
    rng = np.random.default_rng(seed)
    values, order = rng.normal(size=(9, 3)), rng.permutation(9)
    weights = weights_of(matrix, "row")
    moved = np.empty_like(values)
    moved[order] = values
    # The spot that stands where order[i] stood has the value of spot i.
    np.testing.assert_allclose(
        statistic(kind, values, weights.permuted(order)), statistic(kind, moved, weights), rtol=1e-9, atol=1e-12
    )


def test_permutations_are_the_same_for_all_genes_and_seeds_repeat():
    weights = weights_of(GRID, "binary")
    values = torch.tensor(np.random.default_rng(0).normal(size=(6, 4)))
    values[:, 3] = values[:, 0]
    centred, spread = centre(values)

    def drawn(seed):
        return torch.stack(
            list(permutations("moran", centred.split(1, dim=1), spread, weights, n_permutations=20, seed=seed))
        )

    assert torch.equal(drawn(1)[:, 0], drawn(1)[:, 3])
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_constant_columns_have_no_spread():
    rng = np.random.default_rng(0)
    nearly = 3.0 + np.float64(1e-8) * rng.normal(size=50)
    _, spread = centre(torch.tensor(np.column_stack([np.full(50, 0.1), nearly, np.zeros(50), rng.normal(size=50)])))
    assert spread.isnan().tolist() == [True, True, True, False]
