"""The tied Gaussian mixture: the worked case, scikit-learn's tied mixture, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from stdenoise.stats import mixture
from stdenoise.stats.mixture import fit_from_labels, fit_mixture


def overlapping(n=600, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(4, 4))
    labels = rng.choice(3, size=n, p=[0.5, 0.3, 0.2])
    return rng.normal(0, 2.0, size=(3, 4))[labels] + rng.normal(size=(n, 4)) @ mix, labels


def test_worked_case():
    k = np.arange(30)
    points = np.column_stack([2.0 * (k // 10) + 0.5 * np.sin(1.7 * k), 1.5 * (k // 10 == 1) + 0.4 * np.cos(2.3 * k)])
    fit = fit_mixture(points, 3, seed=2020)
    assert fit.loglik == pytest.approx(-48.513858, abs=1e-6)
    assert fit.bic == pytest.approx(-134.44089, abs=1e-5)
    np.testing.assert_allclose(fit.weights, [0.33333333, 0.33333333, 0.33333334], atol=1e-8)
    np.testing.assert_allclose(
        fit.means, [[0.052040, 0.023083], [1.975331, 1.513633], [3.961536, -0.037610]], atol=1e-6
    )
    sigma = [[0.1217988680, -0.0049617671], [-0.0049617671, 0.0795957668]]
    np.testing.assert_allclose(fit.covariance, sigma, atol=1e-9)
    np.testing.assert_array_equal(fit.labels, np.repeat([0, 1, 2], 10))


def test_an_iteration_equals_the_textbook_formulas(monkeypatch, caplog):
    """M and E step written out, with squared residuals and one Gaussian density at a time."""
    points, labels = overlapping()
    member = np.eye(3)[labels]
    for _ in range(4):
        size = member.sum(axis=0)
        means = member.T @ points / size[:, None]
        covariance = sum(((points - means[k]) * member[:, k : k + 1]).T @ (points - means[k]) for k in range(3)) / 600
        density = np.stack(
            [size[k] / 600 * multivariate_normal(means[k], covariance).pdf(points) for k in range(3)], axis=1
        )
        member = density / density.sum(axis=1, keepdims=True)
    monkeypatch.setattr(mixture, "MAX_ITERATIONS", 4)
    monkeypatch.setattr(mixture, "TOLERANCE", 0.0)
    fit = fit_from_labels(points, labels)
    assert fit.n_iterations == 4
    assert fit.loglik == pytest.approx(np.log(density.sum(axis=1)).sum(), rel=1e-12)
    np.testing.assert_allclose(fit.means, means, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(fit.labels, member.argmax(axis=1))
    assert "after 4 iterations" in caplog.text


def test_converged_fit_equals_scikit_learn(monkeypatch):
    monkeypatch.setattr(mixture, "TOLERANCE", 1e-14)
    points, labels = overlapping()
    fit = fit_from_labels(points, labels)
    peer = GaussianMixture(3, covariance_type="tied", reg_covar=0, tol=1e-13, max_iter=5000, means_init=fit.means)
    peer.fit(points)
    assert fit.loglik == pytest.approx(peer.score(points) * len(points), rel=1e-9)
    np.testing.assert_allclose(fit.covariance, peer.covariances_, rtol=1e-3, atol=1e-4)


def test_stops_by_the_rule_of_mclust(monkeypatch):
    points, _ = overlapping()
    poor_start = np.digitize(points[:, 0], np.quantile(points[:, 0], [0.3, 0.6]))
    stopped = fit_from_labels(points, poor_start)
    trace = []
    monkeypatch.setattr(mixture, "TOLERANCE", 0.0)
    for n_iterations in range(1, stopped.n_iterations + 1):
        monkeypatch.setattr(mixture, "MAX_ITERATIONS", n_iterations)
        trace.append(fit_from_labels(points, poor_start).loglik)
    change = np.abs(np.diff(trace)) / (1 + np.abs(trace[1:]))
    assert stopped.n_iterations > 3
    assert change[-1] < 1e-5
    assert (change[:-1] >= 1e-5).all()
    assert (np.diff(trace) >= 0).all()


def test_more_starts_never_lower_the_likelihood():
    points = np.random.default_rng(0).normal(size=(300, 5))
    logliks = np.array([[fit_mixture(points, 8, seed=seed, n_starts=n).loglik for n in (1, 4)] for seed in range(3)])
    assert (np.diff(logliks, axis=1) >= 0).all()
    assert (logliks[:, 0] < logliks[:, -1]).any()


def test_separated_clusters_are_found_under_any_linear_map_in_order_of_size():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(5), [300, 120, 80, 60, 40])
    points = 12 * rng.normal(size=(5, 6))[labels] + rng.normal(size=(600, 6))
    plain, again, mapped = (
        fit_mixture(x, 5, seed=0) for x in (points, points, points @ rng.normal(size=(6, 6)) * 1e-3 + 7)
    )
    np.testing.assert_array_equal(plain.labels, labels)
    np.testing.assert_array_equal(mapped.labels, labels)
    # The same seed gives the same bits.
    assert (again.loglik, again.means.tobytes()) == (plain.loglik, plain.means.tobytes())


def test_one_cluster_and_one_dimension():
    points, _ = overlapping()
    fit = fit_mixture(points, 1, seed=0)
    np.testing.assert_array_equal(fit.labels, 0)
    np.testing.assert_allclose(fit.means[0], points.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(fit.covariance, np.cov(points.T, bias=True), rtol=1e-9)
    line = np.r_[np.linspace(0, 1, 50), np.linspace(5, 6, 30)][:, None]
    np.testing.assert_array_equal(fit_mixture(line, 2, seed=0).labels, np.repeat([0, 1], [50, 30]))


@given(seed=st.integers(0, 10_000), n=st.integers(12, 60), n_clusters=st.integers(1, 6), d=st.integers(1, 4))
def test_every_fit_is_a_mixture(seed, n, n_clusters, d):
    points = np.random.default_rng(seed).normal(size=(n, d))
    try:
        fit = fit_mixture(points, n_clusters, seed=seed)
    except ValueError as error:
        assert "singular" in str(error)
        return
    assert fit.weights.sum() == pytest.approx(1)
    assert np.isfinite(fit.loglik)
    assert (np.diff(np.bincount(fit.labels, minlength=n_clusters)) <= 0).all()
    assert np.linalg.eigvalsh(fit.covariance)[0] > 0
    np.testing.assert_allclose(fit.weights @ fit.means, points.mean(axis=0), atol=1e-8)


NORMAL = np.random.default_rng(0).normal(size=(50, 3))


@pytest.mark.parametrize(
    ("points", "n_clusters", "match"),
    [
        (np.eye(5), 2, "5 points .* 7"),
        (NORMAL[:, [0, 1, 2, 0]], 2, r"dimensions \[(0|3)\]"),
        (np.c_[NORMAL[:, :2], np.ones(50)], 2, r"dimensions \[2\]"),
        (np.repeat([[0.0], [1.0], [3.0]], 20, axis=0), 3, "many are equal"),
    ],
)
def test_degenerate_points(points, n_clusters, match):
    with pytest.raises(ValueError, match=match):
        fit_mixture(points, n_clusters, seed=0)


def test_coincident_points_are_no_trouble():
    points = np.r_[np.zeros((200, 3)), np.random.default_rng(0).normal(8, 1, size=(100, 3))]
    np.testing.assert_array_equal(fit_mixture(points, 2, seed=0).labels, np.repeat([0, 1], [200, 100]))


def within(points, labels):
    """Determinant of the pooled scatter, with which the tied likelihood falls."""
    return np.linalg.det(sum(np.cov(points[labels == k].T, bias=True) * (labels == k).sum() for k in np.unique(labels)))


def test_joining_takes_the_pair_that_lowers_the_likelihood_least():
    rng = np.random.default_rng(4)
    groups = np.arange(80) % 8
    points = mixture._Whitened(rng.normal(size=(80, 3)) + 3 * rng.normal(size=(8, 3))[groups]).points
    sizes, centres = mixture._centres(points, groups)
    expected = groups.copy()
    while len(names := np.unique(expected)) > 3:
        pairs = [(a, b) for a in names for b in names if a < b]
        _, a, b = min((within(points, np.where(expected == b, a, expected)), a, b) for a, b in pairs)
        expected[expected == b] = a
    assert adjusted_rand_score(expected, mixture._join(sizes, centres, 3)[groups]) == 1
