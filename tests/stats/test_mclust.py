"""The R backend: the worked case through rpy2, and clear errors where something is missing."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from stdenoise.stats import clusters as _clusters
from stdenoise.stats import mclust as _mclust
from stdenoise.stats.mixture import fit_from_labels


def worked_case():
    k = np.arange(30)
    return np.column_stack([2.0 * (k // 10) + 0.5 * np.sin(1.7 * k), 1.5 * (k // 10 == 1) + 0.4 * np.cos(2.3 * k)])


def test_without_rpy2_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rpy2", None)
    with pytest.raises(ImportError, match=r"install\.packages\(\"mclust\"\).*pip install 'stdenoise\[r\]'.*rpy2"):
        _mclust.load()


def test_seeds_of_r_are_small():
    with pytest.raises(ValueError, match="2147483648"):
        _mclust.fit_mclust(worked_case(), 3, seed=2**31)


@pytest.fixture(scope="module")
def robjects():
    if shutil.which("R") is None:
        pytest.skip("R is not installed")
    try:
        _mclust.load()
    except ImportError as error:
        pytest.skip(str(error))
    import rpy2.robjects as module

    return module


def test_processes_that_start_later_are_of_the_same_python(robjects):
    script = """if True:
        import os, subprocess, sys
        from stdenoise.stats import mclust
        before = dict(os.environ)
        mclust.load()
        assert os.environ.get("LD_LIBRARY_PATH") == before.get("LD_LIBRARY_PATH")
        found = subprocess.run([sys.executable, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
        assert found.stdout.strip() == sys.version, (found, sys.version)
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_worked_case(robjects):
    fit = _clusters.fit(worked_case(), 3, backend="r", seed=2020)
    assert fit.loglik == pytest.approx(-48.513858, abs=1e-6)
    assert fit.bic == pytest.approx(-134.44089, abs=1e-5)
    np.testing.assert_allclose(fit.weights, [1 / 3] * 3, atol=1e-7)
    np.testing.assert_allclose(
        fit.means, [[0.052040, 0.023083], [1.975331, 1.513633], [3.961536, -0.037610]], atol=1e-6
    )
    sigma = [[0.1217988680, -0.0049617671], [-0.0049617671, 0.0795957668]]
    np.testing.assert_allclose(fit.covariance, sigma, atol=1e-9)
    np.testing.assert_array_equal(fit.labels, np.repeat([0, 1, 2], 10))


def test_both_backends_maximise_the_same_likelihood(robjects):
    rng = np.random.default_rng(0)
    points = 2.5 * rng.normal(size=(3, 4))[np.arange(400) % 3] + rng.normal(size=(400, 4))
    theirs = _clusters.fit(points, 3, backend="r", seed=0)
    # From the end of their fit, ours finds nothing further to gain than the tolerance leaves.
    ours = fit_from_labels(points, theirs.labels)
    assert ours.loglik == pytest.approx(theirs.loglik, rel=1e-4)
    np.testing.assert_allclose(ours.means, theirs.means, atol=0.05)


@pytest.mark.parametrize(("n_clusters", "d"), [(1, 2), (1, 1), (2, 1)])
def test_small_cases(robjects, n_clusters, d):
    theirs, ours = (_clusters.fit(worked_case()[:, :d], n_clusters, backend=name, seed=0) for name in ("r", "native"))
    assert theirs.loglik == pytest.approx(ours.loglik, rel=1e-3)
    assert theirs.means.shape == ours.means.shape
    assert theirs.covariance.shape == ours.covariance.shape
    np.testing.assert_array_equal(theirs.labels, ours.labels)


def test_r_is_left_as_it_was(robjects, capfd):
    robjects.r("set.seed(5)")
    expected = list(robjects.r("runif(2)"))
    robjects.r("set.seed(5)")
    _mclust.fit_mclust(worked_case(), 3, seed=1)
    assert list(robjects.r("runif(2)")) == expected
    assert isinstance(robjects.r("c(1, 2)"), robjects.vectors.FloatVector)
    assert capfd.readouterr().out == ""


def test_a_failed_fit_is_an_error(robjects):
    with pytest.raises(ValueError, match="no mixture of 2"):
        _mclust.fit_mclust(np.repeat([[0.0, 0.0], [1.0, 2.0]], 10, axis=0), 2, seed=0)
