"""From values to clusters: principal components, and a mixture of Gaussians with either backend."""

from __future__ import annotations

import logging

import numpy as np
import torch
from scipy import sparse

from stdenoise._base.checks import check_choice, check_number
from stdenoise._base.random import torch_generator
from stdenoise.spatial.graph import share_csr_tensor
from stdenoise.spatial.normalize import Matrix
from stdenoise.stats import lowrank
from stdenoise.stats import mclust as _mclust
from stdenoise.stats.mixture import Mixture, fit_mixture

logger = logging.getLogger("stdenoise")

PCA_SEED = 42
"""Of the first vectors of the solver: the seed leaves no trace above rounding."""


_CONSTANT = 1e-6


def check_options(n_spots: int, *, n_clusters: int, backend: str, refine: int | None) -> None:
    """Raise unless the options are valid for so many spots."""
    check_number("n_clusters", n_clusters, minimum=1, integer=True)
    if n_clusters > n_spots:
        raise ValueError(f"n_clusters={n_clusters} is more than the {n_spots} spots.")
    check_choice("backend", backend, ["native", "r"])
    if refine is not None:
        check_number("refine", refine, minimum=1, integer=True)
        if refine >= n_spots:
            raise ValueError(f"refine={refine} neighbours need more than {n_spots} spots.")
    if backend == "r":
        _mclust.load()


def points_of(values: Matrix, where: str | None, *, n_components: int) -> np.ndarray:
    """Return what is clustered: principal components or, where they have a name, the values; without what does not vary."""
    points = principal_components(values, n_components=n_components) if where is None else values
    where = where or "the principal components"
    spread = points.std(axis=0)
    constant = spread <= _CONSTANT * spread.max()
    if constant.all():
        raise ValueError(f"{where} are the same in every spot: there is nothing to cluster.")
    if constant.any():
        logger.info("leaving out dimensions %s of %s: they do not vary", np.flatnonzero(constant).tolist(), where)
    # A choice of columns is stored by columns, and products of another layout round otherwise.
    return np.ascontiguousarray(points[:, ~constant])


def principal_components(values: Matrix, *, n_components: int) -> np.ndarray:
    """Scores on the leading principal components: centred, not scaled, signs fixed, and sparse matrices stay sparse."""
    check_number("n_components", n_components, minimum=1, integer=True)
    n_spots, n_genes = values.shape
    most = min(n_spots - 1, n_genes)
    if n_components > most:
        raise ValueError(
            f"n_components={n_components} is not valid for {n_spots} spots x {n_genes} genes; choose at most {most}."
        )
    matrix = share_csr_tensor(values) if sparse.issparse(values) else torch.from_numpy(np.ascontiguousarray(values))
    scores = lowrank.principal_components(matrix, n_components, generator=torch_generator(PCA_SEED)).scores
    return np.ascontiguousarray(scores.numpy())


def fit(points: np.ndarray, n_clusters: int, *, backend: str, seed: int) -> Mixture:
    """Fit the mixture with either backend."""
    if backend == "native":
        return fit_mixture(points, n_clusters, seed=seed)
    parts = _mclust.fit_mclust(points, n_clusters, seed=seed)
    return Mixture(
        labels=parts["classification"].ravel().astype(np.int64) - 1,
        weights=parts["pro"].ravel(),
        means=parts["mean"].T,
        covariance=parts["sigma"],
        loglik=float(parts["loglik"].item()),
        n_iterations=-1,
    ).by_size()
