"""The R package mclust, called through rpy2. Needs the extra `r`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

_LIBRARIES = "LD_LIBRARY_PATH"

INSTALL = (
    "backend='r' needs R, the R package mclust and rpy2: install R, then install.packages(\"mclust\") in R and "
    "pip install 'stdenoise[r]'; backend='native' needs none of them."
)

# mclust looks its own functions up by name, so it has to be attached. The state of R's generator is put back.
_CALL = """
function(points, n_clusters, seed) {
  if (exists(".Random.seed", globalenv())) {
    state <- get(".Random.seed", globalenv())
    on.exit(assign(".Random.seed", state, envir = globalenv()))
  } else {
    on.exit(rm(".Random.seed", envir = globalenv()))
  }
  set.seed(seed)
  model <- if (ncol(points) == 1) "E" else "EEE"
  fit <- Mclust(points, G = n_clusters, modelNames = model, verbose = FALSE)
  if (is.null(fit)) return(list())
  variance <- fit$parameters$variance
  list(
    classification = as.integer(fit$classification),
    loglik = fit$loglik,
    pro = if (n_clusters == 1) 1 else fit$parameters$pro,
    mean = matrix(fit$parameters$mean, nrow = ncol(points)),
    sigma = matrix(if (ncol(points) == 1) variance$sigmasq[1] else variance$Sigma, nrow = ncol(points))
  )
}
"""


def load() -> Any:
    """Attach mclust without a banner and return the R function that fits, or raise an `ImportError` that says what is missing."""
    before = os.environ.get(_LIBRARIES)
    try:
        from rpy2 import robjects
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise ImportError(f"{INSTALL} rpy2 or R is missing: {error}") from error
    finally:
        # rpy2 puts R's libraries and the system's first: a new process of Python would find the libpython of the system there.
        if before is None:
            os.environ.pop(_LIBRARIES, None)
        else:
            os.environ[_LIBRARIES] = before
    with _converter():
        if not robjects.r('(requireNamespace("mclust", quietly = TRUE))')[0]:
            raise ImportError(f"{INSTALL} The R package mclust is missing.")
        robjects.r("suppressPackageStartupMessages(library(mclust))")
        return robjects.r(_CALL)


def fit_mclust(points: np.ndarray, n_clusters: int, *, seed: int) -> dict[str, np.ndarray]:
    """Run `Mclust(points, n_clusters, "EEE")`.

    Parameters
    ----------
    points
        Shape `(n, d)`.
    n_clusters
        Number of clusters.
    seed
        For R's `set.seed`.

    Returns
    -------
    mclust's `classification` (from 1), `loglik`, `pro`, `mean` (shape `(d, n_clusters)`) and `sigma`.
    """
    if seed >= 2**31:
        raise ValueError(f"seed must be below 2**31 for backend='r', not {seed!r}.")
    call = load()
    with _converter(numpy=True):
        from rpy2.robjects import conversion

        matrix = conversion.get_conversion().py2rpy(np.ascontiguousarray(points, dtype=np.float64))
    with _converter():
        fit = call(matrix, int(n_clusters), int(seed))
        if len(fit) == 0:
            raise ValueError(
                f"mclust fitted no mixture of {n_clusters} clusters to {points.shape[0]} points in {points.shape[1]} "
                "dimensions. Use fewer clusters or dimensions."
            )
        parts = {name: np.array(fit.rx2(name)) for name in fit.names}
    d = points.shape[1]
    return {**parts, "mean": parts["mean"].reshape(d, -1), "sigma": parts["sigma"].reshape(d, d)}


def _converter(*, numpy: bool = False) -> Any:
    """A local converter: nothing is activated for other code in this process, and what other code activated does not count."""
    from rpy2.robjects import conversion, default_converter, numpy2ri

    return conversion.localconverter(default_converter + numpy2ri.converter if numpy else default_converter)
