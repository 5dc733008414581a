"""From an AnnData to clusters: what the verb that stores clusters and the one that scores them share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, check_number, lookup, read_coordinates, refuse_key
from stdenoise._io.expression import Matrix, read_expression
from stdenoise.stats import mclust as _mclust
from stdenoise.stats.labels import refine_labels
from stdenoise.stats.mixture import Mixture, fit_mixture

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stdenoise")

PCA_SEED = 42
"""Of the first vector of the solver, which is exact: the seed leaves no trace above rounding."""

_CONSTANT = 1e-6


def check_options(adata: AnnData, *, n_clusters: int, backend: str, refine: int | None, spatial_key: str) -> None:
    """Raise unless the options are valid for so many spots."""
    check_number("n_clusters", n_clusters, minimum=1, integer=True)
    if n_clusters > adata.n_obs:
        raise ValueError(f"n_clusters={n_clusters} is more than the {adata.n_obs} spots.")
    check_choice("backend", backend, ["native", "r"])
    if refine is None:
        if spatial_key != _keys.SPATIAL:
            why = "without refine=, which alone reads coordinates"
            refuse_key("spatial_key", spatial_key, adata.obsm, spatial_key, where="adata.obsm", why=why)
    else:
        check_number("refine", refine, minimum=1, integer=True)
        if refine >= adata.n_obs:
            raise ValueError(f"refine={refine} neighbours need more than {adata.n_obs} spots.")
        read_coordinates(adata, spatial_key)
    if backend == "r":
        _mclust.load()


def read_points(
    adata: AnnData,
    *,
    layer: str | None,
    genes: Sequence[str] | str | None,
    use_rep: str | None,
    n_components: int,
    scale: str,
) -> np.ndarray:
    """Read what is clustered: an embedding of `obsm` as it is, or principal components of expression.

    Dimensions that do not vary are left out.
    """
    if use_rep is None:
        where = "the principal components"
        points = principal_components(
            read_expression(adata, layer, genes=genes).on_scale(scale), n_components=n_components
        )
    else:
        given = [name for name, value in (("layer", layer), ("genes", genes)) if value is not None]
        if given:
            raise ValueError(
                f"{' and '.join(given)} do not apply with use_rep={use_rep!r}, which is clustered as it is."
            )
        where = f"adata.obsm[{use_rep!r}]"
        values = lookup(adata.obsm, use_rep, where="adata.obsm")
        points = np.asarray(values.toarray() if sparse.issparse(values) else values)
        if points.ndim != 2 or points.dtype.kind not in "iufb":
            raise TypeError(f"{where} must be a matrix of numbers, not {points.dtype} of shape {points.shape}.")
        points = points.astype(np.float64)
        bad = int((~np.isfinite(points).all(axis=1)).sum())
        if bad:
            raise ValueError(f"{where} has NaN or infinite values in {bad} of {len(points)} spots.")
    spread = points.std(axis=0)
    constant = spread <= _CONSTANT * spread.max()
    if constant.all():
        raise ValueError(f"{where} are the same in every spot: there is nothing to cluster.")
    if constant.any():
        logger.info("leaving out dimensions %s of %s: they do not vary", np.flatnonzero(constant).tolist(), where)
    return points[:, ~constant]


def principal_components(values: Matrix, *, n_components: int) -> np.ndarray:
    """Scores on the leading principal components: centred, not scaled, signs fixed, and sparse matrices stay sparse."""
    from sklearn.decomposition import PCA

    check_number("n_components", n_components, minimum=1, integer=True)
    n_spots, n_genes = values.shape
    most = min(n_spots - 1, n_genes)
    if n_components > most:
        raise ValueError(
            f"n_components={n_components} is not valid for {n_spots} spots x {n_genes} genes; choose at most {most}."
        )
    if n_components < n_genes:
        pca = PCA(n_components, svd_solver="arpack", random_state=PCA_SEED)
        return np.asarray(pca.fit_transform(values), dtype=np.float64)
    # As many components as genes, so few genes: the iterative solver cannot, and a dense matrix is no larger than the result.
    dense = values.toarray() if sparse.issparse(values) else values
    return np.asarray(PCA(n_components, svd_solver="full").fit_transform(dense), dtype=np.float64)


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


def refined(adata: AnnData, labels: np.ndarray, *, refine: int | None, spatial_key: str) -> np.ndarray:
    """Labels after a vote of the nearest spots, or as they are."""
    if refine is None:
        return labels
    return refine_labels(read_coordinates(adata, spatial_key), labels, refine)
