import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy.spatial.distance import cdist

from stdenoise.methods.sprod import affinity
from stdenoise.methods.sprod.affinity import dissimilarities


def all_pairs(n):
    return torch.triu_indices(n, n, 1)


def probabilities(features, sigma):
    """Dense: column of the sheet as a row."""
    weights = np.exp(-(cdist(features, features) ** 2) / (2 * sigma[:, None] ** 2))
    np.fill_diagonal(weights, 0)
    return weights / weights.sum(1, keepdims=True)


@given(seed=some.integers(0, 2**32), n=some.integers(5, 40), scale=some.floats(1e-3, 1e3))
def test_equals_dense_probabilities_of_the_perplexity(seed, n, scale):
    features = scale * np.random.default_rng(seed).normal(size=(n, 3))
    row, col = all_pairs(n)
    perplexity = (n - 1) / 3
    cost, sigma = dissimilarities(torch.from_numpy(features), row, col, perplexity=perplexity, margin=1e-9)
    p = probabilities(features, sigma.numpy())
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(1)
    # A spot with near twins may have no bandwidth of so low an entropy.
    np.testing.assert_allclose(entropy, math.log(perplexity), atol=1e-4)
    expected = (1 - (p + p.T) / 2) ** (n / 7)
    np.testing.assert_allclose(cost, expected[row, col], atol=1e-9)


def test_neither_blocks_of_rows_nor_the_pairs_asked_for_matter(monkeypatch):
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    row, col = all_pairs(30)
    cost, sigma = dissimilarities(features, row, col, perplexity=7.0, margin=1e-3)
    few = torch.tensor([3, 100, 7])
    monkeypatch.setattr(affinity, "_BLOCK_ENTRIES", 100)
    for chosen in (torch.arange(len(row)), few):
        found = dissimilarities(features, row[chosen], col[chosen], perplexity=7.0, margin=1e-3)
        torch.testing.assert_close(found, (cost[chosen], sigma), rtol=1e-12, atol=1e-12)


def test_coincident_and_distant_features_give_numbers():
    threes = np.repeat([[0.0, 1], [1, 0], [1, 1]], 3, axis=0)
    far = np.array([[0.0], [1e-6], [2e-6], [3e-6], [1e6]])
    for features, margin in ((np.zeros((9, 2)), 1e-3), (threes, 1e-3), (far, 1e-12)):
        n = len(features)
        cost, sigma = dissimilarities(torch.from_numpy(features), *all_pairs(n), perplexity=(n - 1) / 3, margin=margin)
        assert ((cost >= 0) & (cost <= 1)).all()
        assert (sigma > 0).all()
    # Equal features are equally probable.
    cost, _ = dissimilarities(torch.zeros(6, 1, dtype=torch.float64), *all_pairs(6), perplexity=2.0, margin=1e-3)
    np.testing.assert_allclose(cost, (1 - 1 / 5) ** (6 / 7))
