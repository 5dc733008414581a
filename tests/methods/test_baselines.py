import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.decomposition import NMF, PCA

import stdenoise as st
from stdenoise.methods import GeneMean, Method, NeighborMean, PCAReconstruction, PoissonFactorization, Raw
from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.normalize import lognorm
from stdenoise.spatial.spots import Context, make_spots

BASELINES = [Raw(), GeneMean(), NeighborMean(), PCAReconstruction(n_components=3), PoissonFactorization(rank=3)]


def spots_of(adata, counts=None):
    graph = SpatialGraph.from_scipy(adata.obsp["spatial_connectivities"])
    counts = adata.X if counts is None else sparse.csr_matrix(counts, dtype=np.float32)
    return make_spots(counts, list(adata.var_names), positions=None, context=Context(graph), device=torch.device("cpu"))


def fit(method: Method, spots, seed=0):
    return method.fit(spots, seed=seed, progress=False)


def test_raw_is_the_counts(irregular):
    np.testing.assert_array_equal(fit(Raw(), spots_of(irregular)).mean.numpy(), irregular.X.toarray())


def test_gene_mean_has_the_row_and_column_sums_of_the_counts(irregular):
    mean = fit(GeneMean(), spots_of(irregular)).mean.numpy()
    np.testing.assert_allclose(mean.sum(0), irregular.X.toarray().sum(0), rtol=1e-5)
    np.testing.assert_allclose(mean.sum(1), irregular.X.toarray().sum(1), rtol=1e-5)
    assert np.linalg.matrix_rank(mean) == 1


@pytest.mark.parametrize("n_hops", [1, 2, 5])
def test_neighbour_mean_equals_a_dense_formula(irregular, n_hops):
    counts = irregular.X.toarray().astype(float)
    depth = counts.sum(1)
    walk = irregular.obsp["spatial_connectivities"].toarray() + np.eye(len(counts))
    walk /= walk.sum(1, keepdims=True)
    walk = np.linalg.matrix_power(walk, n_hops)
    expected = depth[:, None] * (walk @ counts) / (walk @ depth)[:, None]
    mean = fit(NeighborMean(n_hops=n_hops), spots_of(irregular)).mean.numpy()
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)


def test_neighbour_mean_leaves_a_spot_without_neighbours_as_it_is(irregular):
    alone = np.flatnonzero(np.asarray(irregular.obsp["spatial_connectivities"].sum(1)).ravel() == 0)
    assert len(alone)
    mean = fit(NeighborMean(n_hops=3), spots_of(irregular)).mean.numpy()
    np.testing.assert_allclose(mean[alone], irregular.X.toarray()[alone], rtol=1e-5)


def test_pca_reconstruction_equals_a_dense_one(hexagonal):
    values = lognorm(hexagonal.X.toarray().astype(float))
    pca = PCA(4, svd_solver="full").fit(values)
    expected = pca.inverse_transform(pca.transform(values)).clip(min=0)
    result = fit(PCAReconstruction(n_components=4), spots_of(hexagonal))
    np.testing.assert_allclose(result.mean.numpy(), expected, atol=1e-4)
    assert result.scale == "log1p"
    assert result.latent.shape == (61, 4)


def test_pca_reconstruction_takes_as_many_components_as_there_are(hexagonal):
    result = fit(PCAReconstruction(n_components=500), spots_of(hexagonal))
    assert result.latent.shape == (61, 12)


def test_poisson_factorisation_lowers_the_deviance_at_every_look(hexagonal):
    deviance = fit(PoissonFactorization(rank=3, tol=0), spots_of(hexagonal)).history["deviance"]
    assert len(deviance) > 10
    assert (np.diff(deviance) < 1e-6).all()


def test_poisson_factorisation_reports_the_poisson_deviance(hexagonal):
    spots = spots_of(hexagonal)
    result = fit(PoissonFactorization(rank=3, n_iterations=21, tol=0), spots)
    # The last look comes before update 21, so that one update lies between.
    y, mu = hexagonal.X.toarray().astype(float), result.mean.numpy().astype(float)
    deviance = 2 * (np.where(y > 0, y * np.log(np.where(y > 0, y, 1) / mu), 0) - y + mu).mean()
    assert result.history["deviance"][2] == pytest.approx(deviance, rel=5e-3)
    assert result.history["deviance"][2] > deviance


def test_poisson_factorisation_is_as_good_as_scikit_learn(hexagonal):
    # With equal depths the model is plain NMF under the Kullback-Leibler loss.
    counts = hexagonal.X.toarray().astype(float)
    counts[:, -1] += counts.sum(1).max() + 1 - counts.sum(1)
    options = {"beta_loss": "kullback-leibler", "solver": "mu", "init": "random", "max_iter": 3000, "tol": 1e-9}
    errors = []
    for seed in range(5):
        nmf = NMF(2, random_state=seed, **options)
        nmf.fit_transform(counts)
        errors.append(nmf.reconstruction_err_**2 / counts.size)
    spots = spots_of(hexagonal, counts)
    method = PoissonFactorization(rank=2, n_iterations=3000, tol=0)
    ours = [fit(method, spots, seed=seed).history["deviance"][-1] for seed in range(5)]
    # Both find several local optima; the best of a few starts is the same.
    assert min(ours) == pytest.approx(min(errors), rel=2e-3)


def test_poisson_factorisation_recovers_a_product(hexagonal):
    rng = np.random.default_rng(0)
    truth = rng.gamma(1, 1, (61, 2)) @ rng.gamma(1, 30, (2, 12))
    result = fit(PoissonFactorization(rank=2, n_iterations=2000), spots_of(hexagonal, rng.poisson(truth)))
    error = np.sqrt(((result.mean.numpy() - truth) ** 2).mean() / (truth**2).mean())
    assert error < 0.1


@pytest.mark.parametrize("method", BASELINES, ids=repr)
def test_empty_spots_and_genes_stay_empty(irregular, method):
    result = fit(method, spots_of(irregular))
    assert np.isfinite(result.mean.numpy()).all()
    assert (result.mean.numpy() >= 0).all()
    np.testing.assert_allclose(result.mean.numpy()[:, 3], 0, atol=1e-5)
    if result.scale == "counts":
        empty = irregular.obs_names.get_loc("spot7")
        np.testing.assert_array_equal(result.mean.numpy()[empty], 0)


@pytest.mark.parametrize("method", BASELINES, ids=repr)
def test_the_same_seed_gives_the_same_bits(irregular, method):
    spots = spots_of(irregular)
    assert torch.equal(fit(method, spots, seed=4).mean, fit(method, spots, seed=4).mean)


@pytest.mark.parametrize("method", ["raw", "gene_mean", "neighbor_mean", "pca_reconstruction", "poisson_factorization"])
def test_they_run_behind_the_verb(irregular, method, reload, assert_same):
    st.tl.denoise(irregular, method=method)
    assert irregular.layers[f"{method}_mean"].shape == irregular.shape
    assert irregular.uns[method]["scale"] == st.methods.table().loc[method, "scale"]
    again = reload(irregular, ".h5ad")
    assert_same(again.layers[f"{method}_mean"], irregular.layers[f"{method}_mean"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeighborMean(n_hops=0), "n_hops must be an integer >= 1, not 0"),
        (lambda: PoissonFactorization(rank=1.5), "rank must be an integer >= 1, not 1.5"),
        (lambda: PCAReconstruction(n_components=-1), "n_components must be an integer >= 1"),
        (lambda: PoissonFactorization(tol=-1), "tol must be a number >= 0"),
        (lambda: Raw(strength=1), "raw has no parameter 'strength'"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_labels_name_what_is_not_default():
    assert NeighborMean().label == "neighbor_mean"
    assert NeighborMean(n_hops=4).label == "neighbor_mean(n_hops=4)"
