import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse
from scipy.spatial import procrustes
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

import stdenoise as st
from stdenoise.methods.magic import MAGIC, enough_steps
from stdenoise.spatial.normalize import lognorm
from stdenoise.spatial.spots import Context, make_spots
from stdenoise.stats.diffusion import diffusion_operator


def spots_of(counts):
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    genes = [f"gene{j}" for j in range(counts.shape[1])]
    return make_spots(counts, genes, positions=None, context=Context(), device=torch.device("cpu"))


def drawn(seed, n_spots, n_genes):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.7, 3.0, size=(n_spots, n_genes)))
    counts[0, 0] += 1
    return counts


def fit(counts, *, seed=0, **params):
    return MAGIC(**params).fit(spots_of(counts), seed=seed, progress=False)


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
@pytest.mark.parametrize("n_pca", [None, 4])
@pytest.mark.parametrize("t", [1, 3])
def test_it_equals_a_dense_evaluation(transform, n_pca, t):
    counts = drawn(0, 60, 12)
    expected = dense_magic(counts, t=t, n_pca=n_pca, transform=transform)
    result = fit(counts, t=t, n_pca=n_pca, transform=transform)
    np.testing.assert_allclose(result.mean.numpy(), expected, atol=2e-5)
    assert result.scale == "log1p"


@pytest.mark.parametrize("transform", ["sqrt", "log1p"])
def test_the_approximate_solver_diffuses_the_components(transform):
    counts = drawn(1, 60, 12)
    settings = {"n_pca": 4, "transform": transform}
    expected = dense_magic(counts, approximate=True, **settings)
    result = fit(counts, solver="approximate", **settings)
    np.testing.assert_allclose(result.mean.numpy(), expected, atol=2e-5)
    assert np.abs(expected - fit(counts, **settings).mean.numpy()).max() > 0.01


def test_without_components_both_solvers_are_one():
    counts = drawn(1, 40, 12)
    assert torch.equal(fit(counts, solver="approximate").mean, fit(counts).mean)


def test_what_the_approximate_solver_puts_below_zero_becomes_zero():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, size=(60, 30))
    counts[0, 0] = 1
    mean = fit(counts, n_pca=2, solver="approximate", t=1).mean.numpy()
    assert (mean == 0).any()
    assert (mean >= 0).all()


@given(some.integers(0, 10**6), some.sampled_from([5, 40]), some.sampled_from([1, 2, 9]))
def test_values_stay_within_those_of_their_gene(seed, n_spots, n_genes):
    counts = drawn(seed, n_spots, n_genes)
    values = spots_of(counts).lognorm.to_dense().numpy()
    for transform in ("sqrt", "log1p"):
        mean = fit(counts, n_pca=3, transform=transform).mean.numpy()
        assert (mean >= values.min(axis=0) - 1e-4).all()
        assert (mean <= values.max(axis=0) + 1e-4).all()


@given(some.integers(0, 10**6), some.integers(1, 6), some.integers(1, 6), some.sampled_from([1, 5, 1_000_000]))
def test_tiny_data(seed, n_spots, n_genes, scale):
    counts = drawn(seed, n_spots, n_genes) * scale
    for params in ({}, {"n_pca": 1}, {"n_pca": 1, "solver": "approximate"}, {"t": "auto"}, {"decay": None}):
        mean = fit(counts, **params).mean
        assert mean.shape == (n_spots, n_genes)
        assert torch.isfinite(mean).all()


def test_a_spot_alone_stays_as_it_is():
    counts = [[3, 0, 7]]
    np.testing.assert_allclose(fit(counts, n_pca=2).mean, spots_of(counts).lognorm.to_dense(), atol=1e-5)


def test_equal_profiles_stay_as_they_are():
    counts = np.tile([3, 0, 7, 1], (30, 1))
    mean = fit(counts, n_pca=2, t="auto").mean
    np.testing.assert_allclose(mean, spots_of(counts).lognorm.to_dense(), atol=1e-5)


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
def test_the_automatic_number_of_steps_is_one_to_ask_for(solver):
    # More genes than are compared.
    counts = drawn(3, 50, 520)
    settings = {"n_pca": 10, "solver": solver}
    result = fit(counts, t="auto", **settings)
    t = len(result.history["disparity"]) + 1
    assert 2 < t < 20
    assert torch.equal(result.mean, fit(counts, t=t, **settings).mean)
    assert "disparity" not in fit(counts, **settings).history


def test_the_same_seed_gives_the_same_bits():
    counts = drawn(4, 80, 40)
    assert torch.equal(fit(counts, seed=3, n_pca=5).mean, fit(counts, seed=3, n_pca=5).mean)


def test_small_data_are_announced(caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        fit(drawn(0, 8, 5))
        assert "only 8 spots" in caplog.text
        caplog.clear()
        fit(drawn(0, 16, 5))
        assert "only" not in caplog.text


def test_empty_spots_and_genes(irregular):
    mean = fit(irregular.X).mean.numpy()
    assert np.isfinite(mean).all()
    np.testing.assert_array_equal(mean[:, 3], 0)


def test_neither_coordinates_nor_libraries_matter(irregular):
    method = MAGIC(n_pca=4)
    st.tl.denoise(irregular, method, library_key="library", key_added="apart")
    irregular.obsm["spatial"] = irregular.obsm["spatial"][::-1].copy()
    st.tl.denoise(irregular, method, key_added="together")
    np.testing.assert_array_equal(irregular.layers["apart_mean"], irregular.layers["together_mean"])


def test_it_runs_behind_the_verb(irregular, reload, assert_same):
    st.tl.denoise(irregular, MAGIC(t="auto"))
    assert irregular.uns["magic"]["scale"] == "log1p"
    again = reload(irregular, ".h5ad")
    assert_same(again.layers["magic_mean"], irregular.layers["magic_mean"])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"knn": 0}, "knn must be an integer >= 1, not 0"),
        ({"knn": 5, "knn_max": 4}, "knn_max must be an integer >= 5, not 4"),
        ({"decay": 0}, "decay must be a number > 0, not 0"),
        ({"t": "automatic"}, "t='automatic' is not valid; choose from \\['auto'\\]"),
        ({"t": 0}, "t must be an integer >= 1, not 0"),
        ({"n_pca": 0}, "n_pca must be an integer >= 1, not 0"),
        ({"thresh": -1}, "thresh must be a number >= 0, not -1"),
        ({"t_max": 0}, "t_max must be an integer >= 1, not 0"),
        ({"solver": "fast"}, "solver='fast' is not valid"),
        ({"transform": "log"}, "transform='log' is not valid.*Did you mean 'log1p'"),
        ({"n_pcs": 5}, "magic has no parameter 'n_pcs'.*Did you mean 'n_pca'"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MAGIC(**params)
