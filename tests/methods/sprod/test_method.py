import numpy as np
import pytest
import torch

import stdenoise as st
from stdenoise.methods.sprod import Sprod
from stdenoise.methods.sprod.config import SprodConfig
from stdenoise.methods.sprod.features import memberships, standardised


@pytest.fixture(scope="session")
def tissue(drawn, spots_of):
    """Spots at random places."""

    def tissue(seed, n_spots, n_genes, **extras):
        places = np.random.default_rng(seed + 1).uniform(0, 10, (n_spots, 2))
        return spots_of(drawn(seed, n_spots, n_genes), places, **extras)

    return tissue


@pytest.fixture(scope="session")
def smoothed(fit):
    return lambda spots, seed=0, **params: fit(Sprod(**params), spots, seed=seed).mean.numpy()


def dense_weights(result, n, strength=0.4):
    crow, col, weights = result.attention
    adjacency = torch.sparse_csr_tensor(crow, col, weights, (n, n)).to_dense().double().numpy()
    np.testing.assert_array_equal(adjacency, adjacency.T)
    return adjacency, np.linalg.inv(np.eye(n) + strength * (np.diag(adjacency.sum(1)) - adjacency))


@pytest.mark.parametrize("features", [None, np.random.default_rng(0).normal(size=(50, 4))], ids=["none", "image"])
@pytest.mark.parametrize("strength", [0, 0.4, 3.0])
def test_the_mean_is_the_smoothed_expression(tissue, fit, features, strength):
    spots = tissue(0, 50, 6, features=features)
    result = fit(Sprod(radius=3.0, smoothing=strength, return_graph=True), spots)
    adjacency, weights = dense_weights(result, 50, strength)
    values = spots.lognorm.to_dense().numpy()
    np.testing.assert_allclose(result.mean, weights @ values, atol=1e-4 if strength else 1e-6)
    np.testing.assert_allclose(weights.sum(1), 1)
    weights = weights * ((adjacency > 0) + np.eye(50))
    weights /= weights.sum(1, keepdims=True)
    result = fit(Sprod(radius=3.0, smoothing=strength, edges_only=True), spots)
    np.testing.assert_allclose(result.mean, weights @ values, atol=1e-4)
    assert result.attention is None


def test_image_features_keep_halves_apart(spots_of, fit):
    coordinates = np.array([[x, y] for x in range(8) for y in range(8)])
    side = coordinates[:, 0] >= 4
    features = side[:, None] + np.random.default_rng(3).normal(scale=0.05, size=(64, 1))
    spots = spots_of(np.random.default_rng(4).poisson(20.0, (64, 3)), coordinates, features=features)
    weights, _ = dense_weights(fit(Sprod(radius=1.5, lambda_scale=10, return_graph=True), spots), 64)
    # A tenth of the candidate pairs cross the border.
    assert weights[side[:, None] != side].sum() < 0.02 * weights.sum()


def test_the_scale_of_image_features_does_not_matter(tissue, smoothed):
    features = np.random.default_rng(5).normal(size=(40, 3))
    one, other = (smoothed(tissue(6, 40, 4, features=f), radius=3.0) for f in (features, features * [1, 100, 0.01] + 7))
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-3)


@pytest.mark.parametrize("features_key", [None, "image"])
def test_libraries_are_smoothed_on_their_own(irregular, features_key):
    # They lie over one another, one spot is empty, and one far from all others.
    irregular.obsm["spatial"][(irregular.obs["library"] == "right").to_numpy()] -= 50
    irregular.obsm["image"] = np.random.default_rng(7).normal(size=(41, 2))
    options = {"method": Sprod(radius=3.0), "features_key": features_key}
    st.tl.denoise(irregular, library_key="library", **options)
    for library in ("left", "right"):
        own = irregular[irregular.obs["library"] == library].copy()
        alone = st.tl.denoise(own, copy=True, **options).layers["sprod_mean"]
        np.testing.assert_allclose(own.layers["sprod_mean"], alone, rtol=0, atol=1e-5)


def test_spots_of_their_own_keep_their_values(tissue, smoothed):
    spots = tissue(8, 12, 4, libraries=np.arange(12))
    np.testing.assert_allclose(smoothed(spots), spots.lognorm.to_dense(), atol=1e-6)


@pytest.mark.parametrize("edges_only", [False, True])
def test_oddities_give_finite_values(irregular, volume, tissue, spots_of, smoothed, edges_only):
    mean = smoothed(
        spots_of(irregular.X, irregular.obsm["spatial"], libraries=irregular.obs["library"].cat.codes),
        radius=4.0,
        edges_only=edges_only,
    )
    assert (mean >= 0).all()
    np.testing.assert_allclose(mean[:, 3], 0, atol=1e-6)
    places = np.random.default_rng(10).uniform(0, 1, (12, 2))
    equal = smoothed(spots_of(np.full((12, 3), 5), places), radius=0.5, edges_only=edges_only)
    assert float(equal.std()) < 1e-5
    large = np.random.default_rng(9).integers(0, 10**6, size=(12, 3))
    tiny = [(1, 1), (1, 3), (2, 1), (2, 2), (3, 5), (6, 1)]
    odd = [
        spots_of(volume.X, volume.obsm["spatial"]),
        spots_of(large, np.zeros((12, 2))),
        *(tissue(n, n, n_genes) for n, n_genes in tiny),
        *(tissue(n, n, n_genes, features=np.arange(n)[:, None]) for n, n_genes in tiny),
    ]
    for spots in odd:
        assert np.isfinite(smoothed(spots, radius=20.0, edges_only=edges_only)).all()


def test_memberships_find_groups(spots_of, tissue, smoothed):
    rng = np.random.default_rng(12)
    group = np.repeat([0, 1], 40)
    rates = np.where(group[:, None] == np.arange(2).repeat(5), 20.0, 1.0)
    spots = spots_of(rng.poisson(rates), rng.uniform(0, 1, (80, 2)))
    config = SprodConfig(pseudo_components=3, pseudo_clusters=2)
    found = memberships(spots.lognorm, config, seed=0, generator=torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(found.sum(1), 1)
    assert len(set(zip(group, found.argmax(1), strict=True))) == 2
    assert found.shape == (80, 2)
    # Their start is that of the seed.
    one, other = (smoothed(tissue(11, 60, 8), radius=3.0, seed=seed) for seed in (4, 5))
    assert not np.array_equal(one, other)


def test_standardised_features():
    features = torch.tensor([[1.0, 5, 7], [3, 5, 1], [2, 5, 4.5]], dtype=torch.float32)
    scored = standardised(features, None, generator=torch.Generator()).numpy()
    np.testing.assert_allclose(scored.std(0, ddof=1), [1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(scored.mean(0), 0, atol=1e-12)
    rotated = standardised(features, 1, generator=torch.Generator().manual_seed(0))
    left, s, _ = np.linalg.svd(scored, full_matrices=False)
    np.testing.assert_allclose(rotated[:, 0].abs(), np.abs(left[:, 0] * s[0]), atol=1e-9)


def test_the_graph_is_written(hexagonal):
    st.tl.denoise(hexagonal, Sprod(radius=120, return_graph=True))
    weights = hexagonal.obsp["sprod_attention"].toarray()
    assert weights.shape == (61, 61)
    np.testing.assert_array_equal(weights, weights.T)
    assert 0 < weights.max() <= 1
