import numpy as np
import pytest
from sklearn.decomposition import NMF, PCA

from stdenoise.methods import GeneMean, NeighborMean, PCAReconstruction, PoissonFactorization, Raw
from stdenoise.spatial.normalize import lognorm


@pytest.fixture
def spots(irregular, spots_of):
    return spots_of(irregular.X, links=irregular.obsp["spatial_connectivities"])


def test_raw_is_the_counts(irregular, spots, fit):
    np.testing.assert_array_equal(fit(Raw(), spots).mean, irregular.X.toarray())


def test_gene_mean_has_the_row_and_column_sums_of_the_counts(irregular, spots, fit):
    mean = fit(GeneMean(), spots).mean.numpy()
    np.testing.assert_allclose(mean.sum(0), irregular.X.toarray().sum(0), rtol=1e-5)
    np.testing.assert_allclose(mean.sum(1), irregular.X.toarray().sum(1), rtol=1e-5)
    assert np.linalg.matrix_rank(mean) == 1


@pytest.mark.parametrize("n_hops", [1, 2, 5])
def test_neighbour_mean_equals_a_dense_formula(irregular, spots, fit, n_hops):
    counts = irregular.X.toarray().astype(float)
    depth = counts.sum(1)
    links = irregular.obsp["spatial_connectivities"].toarray()
    walk = links + np.eye(len(counts))
    walk /= walk.sum(1, keepdims=True)
    walk = np.linalg.matrix_power(walk, n_hops)
    expected = depth[:, None] * (walk @ counts) / (walk @ depth)[:, None]
    mean = fit(NeighborMean(n_hops=n_hops), spots).mean.numpy()
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)
    alone = links.sum(1) == 0
    assert alone.any()
    np.testing.assert_allclose(mean[alone], counts[alone], rtol=1e-5)


def test_pca_reconstruction_equals_a_dense_one(hexagonal, fit):
    values = lognorm(hexagonal.X.toarray().astype(float))
    pca = PCA(4, svd_solver="full").fit(values)
    expected = pca.inverse_transform(pca.transform(values)).clip(min=0)
    result = fit(PCAReconstruction(n_components=4), hexagonal.X)
    np.testing.assert_allclose(result.mean, expected, atol=1e-4)
    assert result.scale == "log1p"
    assert result.latent.shape == (61, 4)
    # At most as many as there are genes.
    assert fit(PCAReconstruction(n_components=500), hexagonal.X).latent.shape == (61, 12)


def test_poisson_factorisation_reports_a_falling_poisson_deviance(hexagonal, fit):
    deviance = fit(PoissonFactorization(rank=3, n_iterations=200, tol=0), hexagonal.X).history["deviance"]
    assert len(deviance) == 20
    assert (np.diff(deviance) < 1e-6).all()
    result = fit(PoissonFactorization(rank=3, n_iterations=21, tol=0), hexagonal.X)
    # The last look comes before update 21, so that one update lies between.
    y, mu = hexagonal.X.toarray().astype(float), result.mean.numpy().astype(float)
    expected = 2 * (np.where(y > 0, y * np.log(np.where(y > 0, y, 1) / mu), 0) - y + mu).mean()
    assert result.history["deviance"] == deviance[:3]
    assert deviance[2] == pytest.approx(expected, rel=5e-3)
    assert deviance[2] > expected
    # It stops at the first look at which ten updates have changed less than the tolerance.
    falls = -np.diff(deviance) / deviance[1:]
    found = fit(PoissonFactorization(rank=3, n_iterations=200, tol=0.01), hexagonal.X).history["deviance"]
    assert found == deviance[: np.flatnonzero(falls < 0.01)[0] + 2]


@pytest.mark.filterwarnings("ignore:Maximum number of iterations")
def test_poisson_factorisation_is_as_good_as_scikit_learn(hexagonal, fit):
    # With equal depths the model is plain NMF under the Kullback-Leibler loss.
    counts = hexagonal.X.toarray().astype(float)
    counts[:, -1] += counts.sum(1).max() + 1 - counts.sum(1)
    options = {"beta_loss": "kullback-leibler", "solver": "mu", "init": "random", "max_iter": 1500, "tol": 1e-9}
    errors = []
    for seed in range(5):
        nmf = NMF(2, random_state=seed, **options)
        nmf.fit_transform(counts)
        errors.append(nmf.reconstruction_err_**2 / counts.size)
    method = PoissonFactorization(rank=2, n_iterations=1500, tol=0)
    ours = [fit(method, counts, seed=seed).history["deviance"][-1] for seed in range(5)]
    # Both find several local optima; the best of a few starts is the same.
    assert min(ours) == pytest.approx(min(errors), rel=2e-3)
    assert len(set(ours)) == 5


def test_poisson_factorisation_recovers_a_product(fit):
    rng = np.random.default_rng(0)
    truth = rng.gamma(1, 1, (61, 2)) @ rng.gamma(1, 30, (2, 12))
    result = fit(PoissonFactorization(rank=2, n_iterations=2000), rng.poisson(truth))
    error = np.sqrt(((result.mean.numpy() - truth) ** 2).mean() / (truth**2).mean())
    assert error < 0.1


@pytest.mark.parametrize(
    "method", [NeighborMean(), PCAReconstruction(n_components=3), PoissonFactorization(rank=3)], ids=repr
)
def test_empty_spots_and_genes_stay_empty(irregular, spots, fit, method):
    result = fit(method, spots)
    np.testing.assert_allclose(result.mean[:, 3], 0, atol=1e-5)
    if result.scale == "counts":
        np.testing.assert_array_equal(result.mean[irregular.obs_names.get_loc("spot7")], 0)
