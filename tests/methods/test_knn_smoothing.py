import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from stdenoise._base.random import torch_generator
from stdenoise.methods.knn_smoothing import KNNSmoothing, freeman_tukey, similar


def dense_smoothing(counts, k, d):
    """The sums from the definition, with dense arrays and without dither; ties are those of distances to 8 digits."""
    counts = np.asarray(counts, dtype=float)
    pooled = counts
    for step in range(1, int(np.ceil(np.log2(k))) + 1):
        scaled = pooled * np.median(pooled.sum(axis=1)) / pooled.sum(axis=1, keepdims=True)
        scores = PCA(d, svd_solver="full").fit_transform(np.sqrt(scaled) + np.sqrt(scaled + 1))
        near = np.argsort(cdist(scores, scores).round(8), axis=1, kind="stable")[:, : min(2**step, k)]
        pooled = counts[near].sum(axis=1)
    return pooled


def test_it_equals_a_dense_evaluation(fit, drawn):
    counts = drawn(0, 40, 20)
    for k in (1, 2, 3, 8, 15, 40):
        expected = dense_smoothing(counts, k, 5)
        result = fit(KNNSmoothing(k=k, d=5, dither=0, output="sum"), counts)
        np.testing.assert_array_equal(result.mean, expected)
        assert result.scale == "counts"
        mean = expected / expected.sum(axis=1, keepdims=True) * counts.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(fit(KNNSmoothing(k=k, d=5, dither=0), counts).mean, mean, rtol=1e-5)


@given(some.integers(0, 10**6), some.sampled_from([1, 2, 7, 30]), some.integers(1, 12), some.integers(1, 40))
def test_totals_are_kept(fit, drawn, seed, n_spots, n_genes, k):
    counts = drawn(seed, n_spots, n_genes)
    mean = fit(KNNSmoothing(k=k), counts).mean.numpy()
    assert (mean >= 0).all()
    np.testing.assert_allclose(mean.sum(axis=1), counts.sum(axis=1), rtol=1e-4)
    if k >= n_spots:
        sums = fit(KNNSmoothing(k=k, output="sum"), counts).mean.numpy()
        np.testing.assert_array_equal(sums, np.tile(counts.sum(axis=0), (n_spots, 1)))


def test_dither_is_uniform_over_its_share_of_the_range(monkeypatch, drawn):
    seen = []
    monkeypatch.setattr(
        "stdenoise.methods.knn_smoothing.nearest_neighbors", lambda scores, k, **_: seen.append(scores) or (None, None)
    )
    counts = torch.tensor(drawn(3, 400, 10), dtype=torch.float32)
    for dither in (0, 0.1):
        similar(counts, 2, d=3, dither=dither, generator=torch_generator(0))
    plain, dithered = seen
    noise = (dithered - plain) / (plain.amax(0) - plain.amin(0))
    assert 0.049 < noise.abs().max() <= 0.05
    assert noise.std().item() == pytest.approx(0.1 / np.sqrt(12), rel=0.05)


def test_equal_profiles_tie_and_the_lower_index_comes_first(drawn):
    counts = torch.tensor(drawn(4, 60, 30), dtype=torch.float32)
    counts[[7, 31, 55]] = counts[2].clone()
    near = similar(counts, 3, d=8, dither=0, generator=torch_generator(0))
    assert near[[2, 7, 31, 55]].tolist() == [[2, 7, 31]] * 4


def test_the_transform_ignores_empty_spots():
    counts = torch.tensor([[2.0, 2], [0, 0], [1, 1], [0, 0], [0, 0]])
    # Totals of 4 and 2: their median is 3.
    expected = np.sqrt(1.5) + np.sqrt(2.5)
    np.testing.assert_allclose(freeman_tukey(counts), [[expected] * 2, [1, 1], [expected] * 2, [1, 1], [1, 1]])
    assert (freeman_tukey(torch.zeros(3, 2)) == 1).all()


def test_small_data_are_announced(fit, drawn, caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        fit(KNNSmoothing(k=9), drawn(0, 8, 5))
        assert "only 8 spots" in caplog.text
        caplog.clear()
        fit(KNNSmoothing(k=8), drawn(0, 8, 5))
        assert "only" not in caplog.text


def test_the_seed_is_that_of_the_dither(fit, drawn):
    counts = drawn(6, 80, 40)
    first, second = (fit(KNNSmoothing(), counts, seed=seed).mean for seed in (3, 4))
    assert not torch.equal(first, second)


def test_empty_spots_and_genes(irregular, fit):
    empty = irregular.obs_names.get_loc("spot7")
    mean = fit(KNNSmoothing(), irregular.X).mean.numpy()
    np.testing.assert_array_equal(mean[:, 3], 0)
    np.testing.assert_array_equal(mean[empty], 0)
    # Sums are those of the neighbours.
    assert fit(KNNSmoothing(output="sum"), irregular.X).mean.numpy()[empty].sum() > 0
