import logging

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as some
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

import stdenoise as st
from stdenoise._base.random import torch_generator
from stdenoise.methods.smoother import Smoother, edge_weights, precision
from stdenoise.spatial.normalize import lognorm

# Values of rho for which every prior is positive definite.
PRIORS = {"icar": 0.9, "isar": 0.9, "car": 0.1, "sar": 0.1}


@pytest.fixture(scope="session")
def tissue(drawn, spots_of):
    """Spots at random places."""

    def tissue(seed, n_spots, n_genes, **extras):
        places = np.random.default_rng(seed + 1).uniform(0, 10, (n_spots, 2))
        return spots_of(drawn(seed, n_spots, n_genes), places, **extras)

    return tissue


@pytest.fixture(scope="session")
def smoothed(fit):
    return lambda spots, **params: fit(Smoother(**params), spots).mean.numpy()


def mutual(coordinates, k=6):
    """Dense mutual nearest neighbours."""
    distances = cdist(coordinates, coordinates)
    np.fill_diagonal(distances, np.inf)
    near = np.argsort(np.argsort(distances, axis=1, kind="stable"), axis=1) < min(k, len(distances) - 1)
    return (near & near.T).astype(float)


def loops_where_alone(weights):
    return weights + np.diag((weights.sum(1) == 0).astype(float))


def dense_precision(weights, prior, rho):
    eye = np.eye(len(weights))
    if prior == "icar":
        return np.diag(weights.sum(1)) - rho * weights
    if prior == "car":
        return eye - rho * weights
    factor = eye - rho * (weights / weights.sum(1, keepdims=True) if prior == "isar" else weights)
    return factor.T @ factor


def values_of(spots):
    return lognorm(spots.counts.to_dense().double().numpy())


def weights_of(spots, **params):
    return edge_weights(spots, Smoother(**params).config, generator=torch_generator(0)).toarray()


STRENGTHS = some.just(0.0) | some.floats(1e-9, 5)


@pytest.mark.parametrize("prior", PRIORS)
@example(seed=60213, n_spots=25, k=1, strength=2**-20)  # an empty spot, of which the equation has small numbers only
@given(seed=some.integers(0, 2**32), n_spots=some.integers(1, 40), k=some.integers(1, 6), strength=STRENGTHS)
def test_equals_a_dense_solve(tissue, smoothed, prior, seed, n_spots, k, strength):
    spots = tissue(seed, n_spots, 5)
    seen = np.diag(spots.nonempty.double().numpy())
    weights = loops_where_alone(mutual(spots.coordinates.numpy(), k))
    system = seen + strength * dense_precision(weights, prior, PRIORS[prior])
    # With rows of one size: of a weak prior, the equations of empty spots would pass for zeros.
    size = np.sqrt(np.where(np.diag(system) > 0, np.diag(system), 1))[:, None]
    expected = (np.linalg.lstsq(system / size / size.T, values_of(spots) / size, rcond=None)[0] / size).clip(min=0)
    mean = smoothed(spots, prior=prior, rho=PRIORS[prior], k=k, strength=strength, center=False)
    np.testing.assert_allclose(mean, expected, atol=2e-5)


@given(seed=some.integers(0, 2**32), rho=some.floats(0.1, 0.99))
def test_centring_smooths_the_deviations_from_the_mean(tissue, smoothed, seed, rho):
    spots = tissue(seed, 25, 4)
    values, seen = values_of(spots), spots.nonempty.numpy()
    means = values[seen].mean(0)
    weights = loops_where_alone(mutual(spots.coordinates.numpy()))
    system = np.diag(seen.astype(float)) + dense_precision(weights, "icar", rho)
    expected = means + np.linalg.solve(system, seen[:, None] * (values - means))
    np.testing.assert_allclose(smoothed(spots, rho=rho), expected, atol=2e-5)


def test_more_strength_is_smoother(tissue, smoothed):
    spots = tissue(4, 60, 6)
    np.testing.assert_allclose(smoothed(spots, strength=0), spots.lognorm.to_dense(), atol=1e-6)
    q = precision(edge_weights(spots, Smoother().config, generator=torch_generator(0)), "icar", 1.0)
    rough = [np.trace(mean.T @ (q @ mean)) for mean in (smoothed(spots, strength=s) for s in (0, 0.1, 1, 10))]
    assert (np.diff(rough) < 0).all()


def test_expression_weights_equal_dense_ones(tissue, caplog):
    spots = tissue(5, 40, 15)
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        weights = weights_of(spots, scale_by="expression", n_components=4)
    values = values_of(spots)
    scores = PCA(4, svd_solver="full").fit_transform((values - values.mean(0)) / values.std(0, ddof=1))
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    near = mutual(spots.coordinates.numpy())
    scaled = near * (scores @ scores.T).clip(min=0)
    np.testing.assert_allclose(weights, loops_where_alone(scaled), atol=1e-5)
    assert f"{(scaled > 0).sum() // 2} of {int(near.sum()) // 2} edges survive" in caplog.text


def test_feature_weights_equal_dense_ones(tissue, smoothed):
    features = np.random.default_rng(1).normal(size=(40, 5)) * [1, 10, 0, 0.1, 100] + 3
    spots = tissue(5, 40, 4, features=features)
    kept = features[:, [0, 1, 3, 4]]
    scores = PCA(3, svd_solver="full").fit_transform((kept - kept.mean(0)) / kept.std(0, ddof=1))
    scores /= np.abs(scores).max()
    expected = mutual(spots.coordinates.numpy()) * np.exp(-(cdist(scores, scores) ** 2) / 0.02)
    weights = weights_of(spots, scale_by="features", n_components=3)
    np.testing.assert_allclose(weights, loops_where_alone(expected), atol=1e-5)
    # Equal features change nothing, and features must be there.
    equal = tissue(6, 30, 4, features=np.ones((30, 2)))
    np.testing.assert_allclose(smoothed(equal, scale_by="features"), smoothed(equal), atol=1e-6)
    with pytest.raises(ValueError, match="features_key="):
        smoothed(tissue(0, 10, 3), scale_by="features")


@pytest.mark.parametrize("params", [{}, {"scale_by": "expression", "n_components": 0}, {"prior": "isar"}])
def test_libraries_are_smoothed_on_their_own(irregular, params):
    # They lie over one another, one spot is empty, and one far from all others.
    irregular.obsm["spatial"][(irregular.obs["library"] == "right").to_numpy()] -= 50
    st.tl.denoise(irregular, Smoother(**params), library_key="library")
    for library in ("left", "right"):
        own = irregular[irregular.obs["library"] == library].copy()
        alone = st.tl.denoise(own, Smoother(**params), copy=True).layers["smoother_mean"]
        np.testing.assert_allclose(own.layers["smoother_mean"], alone, atol=1e-5)


def test_spots_of_their_own_keep_their_values(tissue, smoothed):
    spots = tissue(9, 12, 4, libraries=np.arange(12))
    np.testing.assert_allclose(smoothed(spots), spots.lognorm.to_dense(), atol=1e-5)


def test_an_empty_spot_takes_the_values_around_it(spots_of, smoothed):
    coordinates = np.array([[x, y] for x in range(7) for y in range(7)])
    counts = np.random.default_rng(10).poisson(30.0, size=(49, 3))
    counts[24] = 0
    mean = smoothed(spots_of(counts, coordinates), k=4, rho=1.0)
    np.testing.assert_allclose(mean[24], mean[[17, 23, 25, 31]].mean(0), rtol=1e-4)


def test_oddities_give_finite_values(irregular, spots_of, smoothed, tissue):
    library = irregular.obs["library"].cat.codes
    spots = spots_of(irregular.X, irregular.obsm["spatial"], libraries=library)
    for params in ({"scale_by": "expression"}, {"prior": "isar"}, {"compat": "reference"}):
        mean = smoothed(spots, **params)
        assert np.isfinite(mean).all()
        assert (mean >= 0).all()
        np.testing.assert_allclose(mean[:, 3], 0, atol=1e-6)
    for n_spots, n_genes in [(1, 1), (1, 3), (2, 1), (2, 2), (3, 5)]:
        tiny = tissue(n_spots, n_spots, n_genes, features=np.arange(n_spots)[:, None])
        for scale_by in ("expression", "features"):
            assert np.isfinite(smoothed(tiny, scale_by=scale_by)).all()


def test_reference_training_follows_the_loss_down(tissue, fit):
    spots = tissue(12, 30, 5)
    result = fit(Smoother(compat="reference", center=False), spots)
    loss, values = np.array(result.history["loss"]), values_of(spots)
    q = dense_precision(loops_where_alone(mutual(spots.coordinates.numpy())), "icar", 0.99)

    def loss_of(mean):
        return (((mean - values) ** 2).sum() + np.trace(mean.T @ q @ mean)) / values.size

    assert loss[0] == pytest.approx(loss_of(values), rel=1e-4)
    assert loss_of(result.mean.double().numpy()) == pytest.approx(loss[-1], rel=1e-2)
    assert loss[-1] > loss_of(np.linalg.solve(np.eye(30) + q, values))


def test_a_prior_that_is_not_positive_definite_is_named(tissue, smoothed):
    with pytest.raises(ValueError, match=r"prior='car', rho=0.99.*0.17"):
        smoothed(tissue(13, 60, 4), prior="car", rho=0.99, strength=10)
