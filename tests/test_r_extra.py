"""The `r` extra: R answers through rpy2, and mclust gives the numbers it gives on its own."""

import os
import shutil

import numpy as np
import pytest

if shutil.which("R") is None:
    pytest.skip("R is not installed", allow_module_level=True)

libraries = os.environ.get("LD_LIBRARY_PATH")
robjects = pytest.importorskip("rpy2.robjects", reason="rpy2 is not installed")
# As `stdenoise.stats.mclust` does, for the sake of the processes that other tests start.
os.environ.pop("LD_LIBRARY_PATH", None)
if libraries is not None:
    os.environ["LD_LIBRARY_PATH"] = libraries

LABELS = np.repeat([1, 2, 3], 10)


@pytest.fixture(scope="module")
def fit():
    """Fit three clusters of one covariance to 30 points, and return the parts of the result."""
    from rpy2.robjects import conversion, default_converter, numpy2ri
    from rpy2.robjects.packages import isinstalled

    if not isinstalled("mclust"):
        pytest.skip("the R package mclust is not installed")
    k = np.arange(30)
    points = np.column_stack(
        [2.0 * (k // 10) + 0.5 * np.sin(1.7 * k), 1.5 * (k // 10 == 1) + 0.4 * np.cos(2.3 * k)],
    )
    # mclust looks its own functions up by name, so it has to be attached.
    robjects.r("suppressPackageStartupMessages(library(mclust))")
    cluster = robjects.r("""
        function(points) {
          fit <- Mclust(points, G = 3, modelNames = "EEE", verbose = FALSE)
          parameters <- fit$parameters
          list(fit$loglik, fit$bic, t(parameters$mean), parameters$variance$Sigma, fit$classification)
        }
    """)
    # A local converter: nothing is activated for other code in this process.
    with conversion.localconverter(default_converter + numpy2ri.converter):
        parts = cluster(points)
    names = ("loglik", "bic", "means", "covariance", "labels")
    return {name: np.asarray(part) for name, part in zip(names, list(parts.values()), strict=True)}


def test_likelihood(fit):
    assert float(fit["loglik"].item()) == pytest.approx(-48.513858, abs=1e-5)
    assert float(fit["bic"].item()) == pytest.approx(-134.44089, abs=1e-5)


def test_means(fit):
    expected = [[0.052040, 0.023083], [1.975331, 1.513633], [3.961536, -0.037610]]
    np.testing.assert_allclose(fit["means"], expected, atol=1e-5)


def test_covariance(fit):
    expected = [[0.1217988680, -0.0049617671], [-0.0049617671, 0.0795957668]]
    np.testing.assert_allclose(fit["covariance"], expected, atol=1e-5)


def test_labels(fit):
    np.testing.assert_array_equal(fit["labels"], LABELS)


def test_the_converter_stays_local(fit):
    assert isinstance(robjects.r("c(1, 2)"), robjects.vectors.FloatVector)
