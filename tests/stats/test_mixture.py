"""The tied Gaussian mixture: the worked case, scikit-learn's tied mixture, and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from stdenoise.stats import mixture
from stdenoise.stats.mixture import fit_from_labels, fit_mixture


def worked_case():
    k = np.arange(30)
    return np.column_stack([2.0 * (k // 10) + 0.5 * np.sin(1.7 * k), 1.5 * (k // 10 == 1) + 0.4 * np.cos(2.3 * k)])


def overlapping(n=600, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(4, 4))
    labels = rng.choice(3, size=n, p=[0.5, 0.3, 0.2])
    return rng.normal(0, 2.0, size=(3, 4))[labels] + rng.normal(size=(n, 4)) @ mix, labels


def poor_start(points):
    return np.digitize(points[:, 0], np.quantile(points[:, 0], [0.3, 0.6]))


def test_worked_case():
    fit = fit_mixture(worked_case(), 3, seed=2020)
    assert fit.loglik == pytest.approx(-48.513858, abs=1e-6)
    assert fit.bic == pytest.approx(-134.44089, abs=1e-5)
    np.testing.assert_allclose(fit.weights, [0.33333333, 0.33333333, 0.33333334], atol=1e-8)
    np.testing.assert_allclose(
        fit.means, [[0.052040, 0.023083], [1.975331, 1.513633], [3.961536, -0.037610]], atol=1e-6
    )
    sigma = [[0.1217988680, -0.0049617671], [-0.0049617671, 0.0795957668]]
    np.testing.assert_allclose(fit.covariance, sigma, atol=1e-9)
    np.testing.assert_array_equal(fit.labels, np.repeat([0, 1, 2], 10))


def test_an_iteration_equals_the_textbook_formulas(monkeypatch):
    """M and E step written out, with squared residuals and one Gaussian density at a time."""
    from scipy.stats import multivariate_normal

    points, labels = overlapping()
    for n_iterations in (1, 4):
        member = np.eye(3)[labels]
        for _ in range(n_iterations):
            size = member.sum(axis=0)
            means = member.T @ points / size[:, None]
            covariance = sum(
                ((points - means[k]) * member[:, k : k + 1]).T @ (points - means[k]) for k in range(3)
            ) / len(points)
            density = np.stack(
                [size[k] / len(points) * multivariate_normal(means[k], covariance).pdf(points) for k in range(3)],
                axis=1,
            )
            member = density / density.sum(axis=1, keepdims=True)
        monkeypatch.setattr(mixture, "MAX_ITERATIONS", n_iterations)
        monkeypatch.setattr(mixture, "TOLERANCE", 0.0)
        fit = fit_from_labels(points, labels)
        assert fit.n_iterations == n_iterations
        assert fit.loglik == pytest.approx(np.log(density.sum(axis=1)).sum(), rel=1e-12)
        np.testing.assert_allclose(fit.means, means, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-9, atol=1e-10)
        np.testing.assert_array_equal(fit.labels, member.argmax(axis=1))


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
    stopped = fit_from_labels(points, poor_start(points))
    trace = []
    for n_iterations in range(1, stopped.n_iterations + 1):
        monkeypatch.setattr(mixture, "TOLERANCE", 0.0)
        monkeypatch.setattr(mixture, "MAX_ITERATIONS", n_iterations)
        trace.append(fit_from_labels(points, poor_start(points)).loglik)
    change = np.abs(np.diff(trace)) / (1 + np.abs(trace[1:]))
    assert stopped.n_iterations > 3
    assert change[-1] < 1e-5
    assert (change[:-1] >= 1e-5).all()
    assert (np.diff(trace) >= 0).all()


def test_running_out_of_iterations_is_said(monkeypatch, caplog):
    points, _ = overlapping()
    monkeypatch.setattr(mixture, "MAX_ITERATIONS", 2)
    fit_from_labels(points, poor_start(points))
    assert "stopped after 2 iterations" in caplog.text


def test_more_starts_never_lower_the_likelihood():
    points = np.random.default_rng(0).normal(size=(500, 5))
    logliks = np.array([[fit_mixture(points, 8, seed=seed, n_starts=n).loglik for n in (1, 3, 9)] for seed in range(4)])
    assert (np.diff(logliks, axis=1) >= 0).all()
    assert (logliks[:, 0] < logliks[:, -1]).any()


def test_finds_separated_clusters_under_any_linear_map():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(5), [300, 120, 80, 60, 40])
    points = 12 * rng.normal(size=(5, 6))[labels] + rng.normal(size=(600, 6))
    plain = fit_mixture(points, 5, seed=0)
    np.testing.assert_array_equal(plain.labels, labels)
    mapped = fit_mixture(points @ rng.normal(size=(6, 6)) * 1e-3 + 7, 5, seed=0)
    np.testing.assert_array_equal(mapped.labels, labels)


def test_the_same_seed_gives_the_same_bits():
    points, _ = overlapping()
    first, second = (fit_mixture(points, 4, seed=11) for _ in range(2))
    assert first.loglik == second.loglik
    assert first.means.tobytes() == second.means.tobytes()
    np.testing.assert_array_equal(first.labels, second.labels)


def test_one_cluster_is_one_gaussian():
    points, _ = overlapping()
    fit = fit_mixture(points, 1, seed=0)
    np.testing.assert_array_equal(fit.labels, 0)
    np.testing.assert_allclose(fit.means[0], points.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(fit.covariance, np.cov(points.T, bias=True), rtol=1e-9)


def test_one_dimension():
    points = np.r_[np.linspace(0, 1, 50), np.linspace(5, 6, 30)][:, None]
    np.testing.assert_array_equal(fit_mixture(points, 2, seed=0).labels, np.repeat([0, 1], [50, 30]))


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


@pytest.mark.parametrize(
    ("points", "n_clusters", "match"),
    [
        (np.eye(5), 2, "5 points are too few for 2 clusters in 5 dimensions.*at least 7"),
        (np.random.default_rng(0).normal(size=(50, 3))[:, [0, 1, 2, 0]], 2, r"dimensions \[(0|3)\]"),
        (np.c_[np.random.default_rng(0).normal(size=(50, 2)), np.ones(50)], 2, r"dimensions \[2\]"),
        (np.repeat([[0.0], [1.0], [3.0]], 20, axis=0), 3, "many are equal"),
    ],
)
def test_degenerate_points(points, n_clusters, match):
    with pytest.raises(ValueError, match=match):
        fit_mixture(points, n_clusters, seed=0)


def test_coincident_points_are_no_trouble():
    rng = np.random.default_rng(0)
    points = np.r_[np.zeros((200, 3)), rng.normal(8, 1, size=(100, 3))]
    fit = fit_mixture(points, 2, seed=0)
    assert adjusted_rand_score(np.repeat([0, 1], [200, 100]), fit.labels) == 1


def test_joining_takes_the_pair_that_lowers_the_likelihood_least():
    """Against every pair in turn: the pooled determinant after the union, which the tied likelihood falls with."""
    rng = np.random.default_rng(4)
    points = mixture._Whitened(rng.normal(size=(80, 3)) + 3 * rng.normal(size=(8, 3))[np.arange(80) % 8]).points
    groups = np.arange(80) % 8
    sizes, centres = mixture._centres(points, groups)
    expected = groups.copy()
    while len(np.unique(expected)) > 3:
        names = np.unique(expected)
        options = []
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                merged = np.where(expected == b, a, expected)
                within = sum(np.cov(points[merged == k].T, bias=True) * (merged == k).sum() for k in np.unique(merged))
                options.append((np.linalg.det(within) / np.linalg.det(_within(points, expected)), a, b))
        _, a, b = min(options)
        expected[expected == b] = a
    assert adjusted_rand_score(expected, mixture._join(sizes, centres, 3)[groups]) == 1


def _within(points, labels):
    return sum(np.cov(points[labels == k].T, bias=True) * (labels == k).sum() for k in np.unique(labels))
