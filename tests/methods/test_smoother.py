import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

import stdenoise as st
from stdenoise._base.random import torch_generator
from stdenoise.methods.smoother import Smoother, edge_weights, precision
from stdenoise.spatial.normalize import lognorm
from stdenoise.spatial.spots import Context, make_spots

# Values of rho for which every prior is positive definite.
PRIORS = {"icar": 0.9, "isar": 0.9, "car": 0.1, "sar": 0.1}


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


def fit(spots, **params):
    return Smoother(**params).fit(spots, seed=0, progress=False).mean.numpy()


def mutual(coordinates, k):
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


@pytest.mark.parametrize("prior", PRIORS)
@given(seed=some.integers(0, 2**32), n_spots=some.integers(1, 40), k=some.integers(1, 6), strength=some.floats(0, 5))
def test_equals_a_dense_solve(prior, seed, n_spots, k, strength):
    spots = drawn(seed, n_spots, 5)
    values = lognorm(spots.counts.to_dense().double().numpy())
    seen = np.diag(spots.nonempty.double().numpy())
    weights = loops_where_alone(mutual(spots.coordinates.numpy(), k))
    system = seen + strength * dense_precision(weights, prior, PRIORS[prior])
    expected = np.linalg.lstsq(system, values, rcond=None)[0].clip(min=0)
    mean = fit(spots, prior=prior, rho=PRIORS[prior], k=k, strength=strength, center=False)
    np.testing.assert_allclose(mean, expected, atol=2e-5)


@given(seed=some.integers(0, 2**32), rho=some.floats(0.1, 0.99))
def test_centring_smooths_the_deviations_from_the_mean(seed, rho):
    spots = drawn(seed, 25, 4)
    values = lognorm(spots.counts.to_dense().double().numpy())
    seen = spots.nonempty.numpy()
    means = values[seen].mean(0)
    weights = loops_where_alone(mutual(spots.coordinates.numpy(), 6))
    system = np.diag(seen.astype(float)) + dense_precision(weights, "icar", rho)
    expected = means + np.linalg.solve(system, seen[:, None] * (values - means))
    np.testing.assert_allclose(fit(spots, rho=rho), expected, atol=2e-5)


def test_a_constant_gene_keeps_its_level_with_centring_only():
    rng = np.random.default_rng(0)
    spots = spots_of(np.full((30, 3), 7), rng.uniform(0, 1, (30, 2)))
    level = spots.lognorm.values()[0].item()
    np.testing.assert_allclose(fit(spots), level, rtol=1e-5)
    degree = loops_where_alone(mutual(spots.coordinates.numpy(), 6)).sum(1)
    shrunk = fit(spots, center=False, rho=0.5)
    assert (shrunk < level * 0.9).all()
    # Alone in its row sum, a spot of degree d shrinks by 1 + (1 - rho) d where all have that degree.
    assert shrunk.min() >= level / (1 + 0.5 * degree.max()) * 0.999


def test_no_strength_changes_nothing():
    spots = drawn(3, 20, 4)
    np.testing.assert_allclose(fit(spots, strength=0), spots.lognorm.to_dense(), atol=1e-6)


def test_more_strength_is_smoother():
    spots = drawn(4, 60, 6)
    weights = edge_weights(spots, Smoother().config, generator=torch_generator(0))
    q = precision(weights, "icar", 1.0)
    rough = [np.trace(mean.T @ (q @ mean)) for mean in (fit(spots, strength=s) for s in (0, 0.1, 1, 10))]
    assert (np.diff(rough) < 0).all()


def test_expression_weights_equal_dense_ones():
    spots = drawn(5, 40, 15)
    weights = edge_weights(
        spots, Smoother(scale_by="expression", n_components=4).config, generator=torch_generator(0)
    ).toarray()
    values = lognorm(spots.counts.to_dense().double().numpy())
    scored = (values - values.mean(0)) / values.std(0, ddof=1)
    scores = PCA(4, svd_solver="full").fit_transform(scored)
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    expected = loops_where_alone(mutual(spots.coordinates.numpy(), 6) * (scores @ scores.T).clip(min=0))
    np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_feature_weights_equal_dense_ones():
    features = np.random.default_rng(1).normal(size=(40, 5)) * [1, 10, 0, 0.1, 100] + 3
    spots = drawn(5, 40, 4, features=features)
    weights = edge_weights(
        spots, Smoother(scale_by="features", n_components=3).config, generator=torch_generator(0)
    ).toarray()
    kept = features[:, [0, 1, 3, 4]]
    scores = PCA(3, svd_solver="full").fit_transform((kept - kept.mean(0)) / kept.std(0, ddof=1))
    scores /= np.abs(scores).max()
    expected = loops_where_alone(mutual(spots.coordinates.numpy(), 6) * np.exp(-(cdist(scores, scores) ** 2) / 0.02))
    np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_equal_features_change_nothing():
    spots = drawn(6, 30, 4, features=np.ones((30, 2)))
    np.testing.assert_allclose(fit(spots, scale_by="features"), fit(spots), atol=1e-6)


def test_surviving_edges_are_reported(caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        fit(drawn(7, 40, 8), scale_by="expression")
    assert "edges survive the scaling by expression" in caplog.text


def test_features_must_be_there():
    with pytest.raises(ValueError, match="features_key="):
        fit(drawn(0, 10, 3), scale_by="features")


@pytest.mark.parametrize("params", [{}, {"scale_by": "expression", "n_components": 0}, {"prior": "isar"}])
def test_libraries_are_smoothed_on_their_own(params):
    rng = np.random.default_rng(8)
    counts = rng.poisson(2.0, size=(50, 6))
    counts[3] = 0
    coordinates = rng.uniform(0, 1, (50, 2))
    library = rng.integers(0, 2, 50) * 5
    whole = fit(spots_of(counts, coordinates, library), **params)
    for code in (0, 5):
        own = library == code
        np.testing.assert_allclose(whole[own], fit(spots_of(counts[own], coordinates[own]), **params), atol=1e-5)


def test_spots_of_their_own_keep_their_values():
    spots = drawn(9, 12, 4, libraries=np.arange(12))
    np.testing.assert_allclose(fit(spots), spots.lognorm.to_dense(), atol=1e-5)


def test_an_empty_spot_takes_the_values_around_it():
    coordinates = np.array([[x, y] for x in range(7) for y in range(7)]) * 1.0
    counts = np.random.default_rng(10).poisson(30.0, size=(49, 3))
    counts[24] = 0
    mean = fit(spots_of(counts, coordinates), k=4, rho=1.0)
    np.testing.assert_allclose(mean[24], mean[[17, 23, 25, 31]].mean(0), rtol=1e-4)


@pytest.mark.parametrize("params", [{}, {"scale_by": "expression"}, {"prior": "isar"}, {"compat": "reference"}])
def test_oddities_give_finite_values(irregular, params):
    library = irregular.obs["library"].cat.codes.to_numpy().astype(np.int64)
    spots = spots_of(irregular.X, irregular.obsm["spatial"], library)
    mean = fit(spots, **params)
    assert np.isfinite(mean).all()
    assert (mean >= 0).all()
    np.testing.assert_allclose(mean[:, 3], 0, atol=1e-6)


@pytest.mark.parametrize("scale_by", [None, "expression", "features"])
@pytest.mark.parametrize(("n_spots", "n_genes"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 5)])
def test_tiny_data(n_spots, n_genes, scale_by):
    spots = drawn(n_spots, n_spots, n_genes, features=np.arange(n_spots)[:, None])
    assert np.isfinite(fit(spots, scale_by=scale_by)).all()


def test_coincident_spots_and_large_counts():
    counts = np.random.default_rng(11).integers(0, 10**6, size=(9, 3))
    mean = fit(spots_of(counts, np.zeros((9, 2))))
    assert np.isfinite(mean).all()


def test_three_dimensions(volume):
    assert np.isfinite(fit(spots_of(volume.X, volume.obsm["spatial"]))).all()


def test_reference_training_follows_the_loss_down():
    spots = drawn(12, 30, 5)
    result = Smoother(compat="reference", center=False).fit(spots, seed=0, progress=False)
    loss = np.array(result.history["loss"])
    values = spots.lognorm.to_dense().double().numpy()
    q = dense_precision(loops_where_alone(mutual(spots.coordinates.numpy(), 6)), "icar", 0.99)
    assert loss[0] == pytest.approx(np.trace(values.T @ q @ values) / values.size, rel=1e-4)
    mean = result.mean.double().numpy()
    last = (((mean - values) ** 2).sum() + np.trace(mean.T @ q @ mean)) / values.size
    assert last == pytest.approx(loss[-1], rel=1e-2)
    best = np.linalg.solve(np.eye(30) + q, values)
    assert loss[-1] > (((best - values) ** 2).sum() + np.trace(best.T @ q @ best)) / values.size


def test_a_prior_that_is_not_positive_definite_is_named():
    with pytest.raises(ValueError, match=r"prior='car', rho=0.99.*below 0.17"):
        fit(drawn(13, 60, 4), prior="car", rho=0.99, strength=10)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"k": 0}, ValueError),
        ({"rho": 0}, ValueError),
        ({"rho": 1.1}, ValueError),
        ({"strength": -1}, ValueError),
        ({"prior": "sma"}, ValueError),
        ({"scale_by": "labels"}, ValueError),
        ({"compat": "published"}, ValueError),
        ({"center": 2}, ValueError),
        ({"n_components": -1}, ValueError),
        ({"lam": 1}, TypeError),
    ],
)
def test_bad_parameters(params, error):
    with pytest.raises(error, match=next(iter(params))):
        Smoother(**params)


def test_through_the_verb(hexagonal, unchanged):
    with unchanged(hexagonal):
        out = st.tl.denoise(hexagonal, Smoother(), copy=True)
    assert out.layers["smoother_mean"].shape == hexagonal.shape
    again = st.tl.denoise(hexagonal, Smoother(), copy=True, seed=5)
    np.testing.assert_array_equal(out.layers["smoother_mean"], again.layers["smoother_mean"])
