import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy.spatial import procrustes
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from stdenoise.methods.magic import MAGIC, enough_steps
from stdenoise.spatial.normalize import lognorm
from stdenoise.stats.diffusion import diffusion_operator


def dense_magic(counts, *, knn=5, t=3, n_pca=None, transform="sqrt", approximate=False):
    """The method from its equations, with dense arrays; the smooth kernel only."""
    values = lognorm(np.asarray(counts, dtype=float))
    values = np.sqrt(np.expm1(values)) if transform == "sqrt" else values
    pca = PCA(n_pca, svd_solver="full").fit(values) if n_pca else None
    points = pca.transform(values) if pca else values
    distances = cdist(points, points)
    np.fill_diagonal(distances, -1)
    order = np.argsort(distances, axis=1, kind="stable")
    np.fill_diagonal(distances, 0)
    bandwidth = np.take_along_axis(distances, order, axis=1)[:, knn]
    kernel = np.exp(-distances / bandwidth[:, None])
    rank = np.argsort(order, axis=1)
    kernel[(rank > 3 * knn) | (kernel < 1e-4)] = 0
    kernel += kernel.T
    walk = np.linalg.matrix_power(kernel / kernel.sum(axis=1, keepdims=True), t)
    mean = pca.inverse_transform(walk @ points) if approximate else walk @ values
    mean = mean.clip(min=0)
    return np.log1p(mean**2) if transform == "sqrt" else mean


@pytest.mark.parametrize("transform", ["sqrt", "log1p"])
def test_it_equals_a_dense_evaluation(transform, fit, drawn):
    counts = drawn(0, 60, 12)
    for params in ({"t": 1, "n_pca": None}, {"t": 3, "n_pca": None}, {"t": 1, "n_pca": 4}, {"t": 3, "n_pca": 4}):
        result = fit(MAGIC(transform=transform, **params), counts)
        np.testing.assert_allclose(result.mean, dense_magic(counts, transform=transform, **params), atol=2e-5)
        assert result.scale == "log1p"
    # The approximate solver diffuses the components.
    approximate = fit(MAGIC(transform=transform, n_pca=4, solver="approximate"), counts)
    expected = dense_magic(counts, transform=transform, n_pca=4, approximate=True)
    np.testing.assert_allclose(approximate.mean, expected, atol=2e-5)
    assert np.abs(expected - result.mean.numpy()).max() > 0.01


def test_the_approximate_solver(fit, drawn):
    counts = drawn(1, 40, 12)
    # Without components both solvers are one.
    assert torch.equal(fit(MAGIC(solver="approximate"), counts).mean, fit(MAGIC(), counts).mean)
    # What it puts below zero becomes zero.
    sparse = np.random.default_rng(0).poisson(0.3, size=(60, 30))
    sparse[0, 0] = 1
    mean = fit(MAGIC(n_pca=2, solver="approximate", t=1), sparse).mean.numpy()
    assert (mean == 0).any()
    assert (mean >= 0).all()


@given(some.integers(0, 10**6), some.sampled_from([5, 40]), some.sampled_from([1, 2, 9]))
def test_values_stay_within_those_of_their_gene(fit, drawn, seed, n_spots, n_genes):
    counts = drawn(seed, n_spots, n_genes)
    values = lognorm(counts.astype(float))
    for transform in ("sqrt", "log1p"):
        mean = fit(MAGIC(n_pca=3, transform=transform), counts).mean.numpy()
        assert (mean >= values.min(axis=0) - 1e-4).all()
        assert (mean <= values.max(axis=0) + 1e-4).all()


@given(some.integers(0, 10**6), some.integers(1, 6), some.integers(1, 6), some.sampled_from([1, 5, 1_000_000]))
def test_tiny_data(fit, drawn, seed, n_spots, n_genes, scale):
    counts = drawn(seed, n_spots, n_genes) * scale
    for params in ({"n_pca": 1}, {"n_pca": 1, "solver": "approximate"}, {"t": "auto"}, {"decay": None}):
        mean = fit(MAGIC(**params), counts).mean
        assert mean.shape == (n_spots, n_genes)
        assert torch.isfinite(mean).all()


@pytest.mark.parametrize("counts", [np.array([[3, 0, 7]]), np.tile([3, 0, 7, 1], (30, 1))], ids=["alone", "equal"])
def test_a_profile_without_others_stays_as_it_is(fit, counts):
    np.testing.assert_allclose(fit(MAGIC(n_pca=2, t="auto"), counts).mean, lognorm(counts * 1.0), atol=1e-5)


def test_the_automatic_number_of_steps_follows_the_procrustes_disparity():
    points = torch.tensor(np.random.default_rng(0).normal(size=(40, 5)))
    operator = diffusion_operator(points, knn=5, knn_max=15, decay=1, thresh=1e-4)
    n_steps, disparity = enough_steps(operator, points, t_max=20)
    values = points
    for entry in disparity:
        previous, values = values, operator @ values
        assert entry == pytest.approx(procrustes(previous.numpy(), values.numpy())[2], abs=1e-12)
    assert n_steps == len(disparity) + 1 == np.flatnonzero(np.array(disparity) < 1e-3)[0] + 2


@pytest.mark.parametrize("solver", ["exact", "approximate"])
def test_the_automatic_number_of_steps_is_one_to_ask_for(fit, drawn, solver):
    # More genes than are compared.
    counts = drawn(3, 50, 520)
    settings = {"n_pca": 10, "solver": solver}
    result = fit(MAGIC(t="auto", **settings), counts)
    t = len(result.history["disparity"]) + 1
    assert 2 < t < 20
    asked_for = fit(MAGIC(t=t, **settings), counts)
    assert torch.equal(result.mean, asked_for.mean)
    assert "disparity" not in asked_for.history


def test_small_data_are_announced(fit, drawn, caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        fit(MAGIC(), drawn(0, 8, 5))
        assert "only 8 spots" in caplog.text
        caplog.clear()
        fit(MAGIC(), drawn(0, 16, 5))
        assert "only" not in caplog.text
