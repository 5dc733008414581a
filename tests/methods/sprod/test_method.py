import numpy as np
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise.methods.sprod import Sprod
from stdenoise.methods.sprod.config import SprodConfig
from stdenoise.methods.sprod.features import memberships, standardised
from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.spots import Context, make_spots


def graph_of(result):
    crow, col, weights = result.attention
    return SpatialGraph(crow, col), weights


def spots_of(counts, coordinates, libraries=None, features=None):
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    context = Context(
        coordinates=torch.tensor(np.asarray(coordinates, dtype=float)),
        libraries=None if libraries is None else torch.as_tensor(libraries),
        features=None if features is None else torch.as_tensor(features, dtype=torch.float32),
    )
    genes = [f"gene{j}" for j in range(counts.shape[1])]
    return make_spots(counts, genes, positions=None, context=context, device=torch.device("cpu"))


def drawn(seed, n_spots, n_genes, **extras):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.7, 3.0, size=(n_spots, n_genes)))
    counts[0, 0] += 1
    return spots_of(counts, rng.uniform(0, 10, (n_spots, 2)), **extras)


def fit(spots, seed=0, **params):
    return Sprod(**params).fit(spots, seed=seed, progress=False)


def dense_weights(result, n, strength=0.4):
    graph, weights = graph_of(result)
    adjacency = np.zeros((n, n))
    adjacency[graph.row.long(), graph.col.long()] = weights
    np.testing.assert_array_equal(adjacency, adjacency.T)
    return adjacency, np.linalg.inv(np.eye(n) + strength * (np.diag(adjacency.sum(1)) - adjacency))


@pytest.mark.parametrize("features", [None, np.random.default_rng(0).normal(size=(50, 4))])
@pytest.mark.parametrize("strength", [0.4, 3.0])
def test_the_mean_is_the_smoothed_expression(features, strength):
    spots = drawn(0, 50, 6, features=features)
    result = fit(spots, radius=3.0, smoothing=strength, return_graph=True)
    _, weights = dense_weights(result, 50, strength)
    np.testing.assert_allclose(result.mean, weights @ spots.lognorm.to_dense().numpy(), atol=1e-4)
    np.testing.assert_allclose(weights.sum(1), 1)


def test_edges_only():
    spots = drawn(1, 50, 6)
    result = fit(spots, radius=3.0, edges_only=True, return_graph=True)
    adjacency, weights = dense_weights(result, 50)
    weights = weights * ((adjacency > 0) + np.eye(50))
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(result.mean, weights @ spots.lognorm.to_dense().numpy(), atol=1e-4)


def test_no_smoothing_changes_nothing():
    spots = drawn(2, 30, 5)
    np.testing.assert_allclose(fit(spots, radius=3.0, smoothing=0).mean, spots.lognorm.to_dense(), atol=1e-6)


def test_image_features_keep_halves_apart():
    coordinates = np.array([[x, y] for x in range(8) for y in range(8)], dtype=float)
    side = coordinates[:, 0] >= 4
    features = side[:, None] + np.random.default_rng(3).normal(scale=0.05, size=(64, 1))
    counts = np.random.default_rng(4).poisson(20.0, (64, 3))
    spots = spots_of(counts, coordinates, features=features)
    graph, weights = graph_of(fit(spots, radius=1.5, lambda_scale=10, return_graph=True))
    across = side[graph.row.long()] != side[graph.col.long()]
    # A tenth of the candidate pairs cross the border.
    assert weights[torch.from_numpy(across)].sum() < 0.02 * weights.sum()


def test_the_scale_of_image_features_does_not_matter():
    features = np.random.default_rng(5).normal(size=(40, 3))
    one = fit(drawn(6, 40, 4, features=features), radius=3.0).mean
    other = fit(drawn(6, 40, 4, features=features * [1, 100, 0.01] + 7), radius=3.0).mean
    torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


@pytest.mark.parametrize("with_features", [False, True])
def test_libraries_are_smoothed_on_their_own(with_features):
    rng = np.random.default_rng(7)
    counts, coordinates = rng.poisson(3.0, (60, 6)), rng.uniform(0, 10, (60, 2))
    features = rng.normal(size=(60, 2)) if with_features else None
    library = rng.integers(0, 2, 60) * 4
    whole = fit(spots_of(counts, coordinates, library, features), radius=3.0).mean
    for code in (0, 4):
        own = library == code
        part = None if features is None else features[own]
        alone = fit(spots_of(counts[own], coordinates[own], features=part), radius=3.0).mean
        torch.testing.assert_close(whole[torch.from_numpy(own)], alone, rtol=0, atol=1e-5)


def test_spots_of_their_own_keep_their_values():
    spots = drawn(8, 12, 4, libraries=np.arange(12))
    np.testing.assert_allclose(fit(spots).mean, spots.lognorm.to_dense(), atol=1e-6)


@pytest.mark.parametrize("edges_only", [False, True])
def test_oddities_give_finite_values(irregular, edges_only):
    library = irregular.obs["library"].cat.codes.to_numpy().astype(np.int64)
    spots = spots_of(irregular.X, irregular.obsm["spatial"], library)
    mean = fit(spots, radius=4.0, edges_only=edges_only).mean.numpy()
    assert np.isfinite(mean).all()
    assert (mean >= 0).all()
    np.testing.assert_allclose(mean[:, 3], 0, atol=1e-6)


@pytest.mark.parametrize("with_features", [False, True])
@pytest.mark.parametrize(("n_spots", "n_genes"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 5), (6, 1)])
def test_tiny_data(n_spots, n_genes, with_features):
    features = np.arange(n_spots)[:, None] if with_features else None
    spots = drawn(n_spots, n_spots, n_genes, features=features)
    for params in ({}, {"radius": 20.0}, {"radius": 20.0, "edges_only": True}):
        assert torch.isfinite(fit(spots, **params).mean).all()


def test_coincident_spots_and_large_counts():
    counts = np.random.default_rng(9).integers(0, 10**6, size=(12, 3))
    assert torch.isfinite(fit(spots_of(counts, np.zeros((12, 2)))).mean).all()


def test_equal_spots():
    coordinates = np.random.default_rng(10).uniform(0, 1, (12, 2))
    mean = fit(spots_of(np.full((12, 3), 5), coordinates), radius=0.5).mean
    assert float(mean.std()) < 1e-5


def test_three_dimensions(volume):
    assert torch.isfinite(fit(spots_of(volume.X, volume.obsm["spatial"]), radius=4.0).mean).all()


def test_same_seed_same_bits():
    spots = drawn(11, 60, 8)
    one, other = (fit(spots, radius=3.0, seed=4).mean for _ in range(2))
    assert torch.equal(one, other)


def test_memberships_find_groups():
    rng = np.random.default_rng(12)
    group = np.repeat([0, 1], 40)
    rates = np.where(group[:, None] == np.arange(2).repeat(5), 20.0, 1.0)
    spots = spots_of(rng.poisson(rates), rng.uniform(0, 1, (80, 2)))
    config = SprodConfig(pseudo_components=3, pseudo_clusters=2)
    found = memberships(spots.lognorm, config, seed=0, generator=torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(found.sum(1), 1)
    assert len(set(zip(group, found.argmax(1), strict=True))) == 2
    assert found.shape == (80, 2)


def test_standardised_features():
    features = torch.tensor([[1.0, 5, 7], [3, 5, 1], [2, 5, 4.5]], dtype=torch.float32)
    scored = standardised(features, None, generator=torch.Generator()).numpy()
    np.testing.assert_allclose(scored.std(0, ddof=1), [1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(scored.mean(0), 0, atol=1e-12)
    rotated = standardised(features, 1, generator=torch.Generator().manual_seed(0))
    left, s, _ = np.linalg.svd(scored, full_matrices=False)
    np.testing.assert_allclose(rotated[:, 0].abs(), np.abs(left[:, 0] * s[0]), atol=1e-9)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"radius_ratio": 0}, ValueError),
        ({"radius": -1.0}, ValueError),
        ({"perplexity": 1.0}, ValueError),
        ({"margin": 0}, ValueError),
        ({"capacity": 0}, ValueError),
        ({"lambda_scale": 0}, ValueError),
        ({"smoothing": -0.1}, ValueError),
        ({"edges_only": 3}, ValueError),
        ({"n_components": 0}, ValueError),
        ({"pseudo_clusters": 1.5}, TypeError),
        ({"max_iterations": 0}, ValueError),
        ({"K": 10}, TypeError),
    ],
)
def test_bad_parameters(params, error):
    with pytest.raises(error, match=next(iter(params))):
        Sprod(**params)


def test_through_the_verb(hexagonal, unchanged):
    with unchanged(hexagonal):
        out = st.tl.denoise(hexagonal, Sprod(return_graph=True), copy=True)
    assert out.layers["sprod_mean"].shape == hexagonal.shape
    assert out.obsp["sprod_attention"].shape == (61, 61)
