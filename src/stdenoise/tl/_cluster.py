"""The verb that clusters spots."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_name
from stdenoise._base.random import check_seed
from stdenoise._io.expression import read_values
from stdenoise._io.read import check_anndata, output_of, read_places
from stdenoise.stats import clusters as _clusters
from stdenoise.stats.labels import refine_labels

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stdenoise")

_MODEL = "EEE"


def cluster(
    adata: AnnData,
    n_clusters: int,
    *,
    layer: str | None = None,
    genes: Sequence[str] | str | None = None,
    use_rep: str | None = None,
    n_components: int = 20,
    backend: str = "native",
    refine: int | None = None,
    spatial_key: str = _keys.SPATIAL,
    key_added: str = "cluster",
    scale: str = "log1p",
    seed: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Cluster the spots by a Gaussian mixture with one covariance, on principal components of expression.

    This is the model that mclust calls "EEE". The built-in fit runs the same expectation maximisation with the same stopping
    rule; its starts are its own, so single fits differ from those of mclust as those differ between seeds. No coordinates
    enter, unless `refine` is given.

    Parameters
    ----------
    adata
        Annotated data. `X`, `raw` and existing layers are not changed.
    n_clusters
        Number of clusters.
    layer
        Expression to cluster: `None` for `X`, a layer, or the key of a denoised result.
    genes
        All genes, `"highly_variable"`, or names.
    use_rep
        An embedding in `obsm` to cluster as it is, instead of principal components; `n_components` and `scale` are not used then.
    n_components
        Principal components (centred, not scaled). With `use_rep` as many dimensions as there are.
    backend
        `"native"`, or `"r"` for the R package mclust (needs the extra `r`).
    refine
        Give each spot the most frequent cluster of so many nearest spots, the spot itself not counted; off if not given.
    spatial_key
        Key of the coordinates in `obsm`, for `refine`.
    key_added
        Name of the results.
    scale
        `"log1p"` (of counts per 10 000) or `"stored"`: the scale on which components are computed.
    seed
        The same seed gives the same clusters on one machine.
    copy
        Return a changed copy instead of changing `adata`.

    Returns
    -------
    `None`, or with `copy=True` an AnnData. Sets the following fields, where `cluster` stands for `key_added`:

    `obs["cluster"]`
        Categories `"0"`, `"1"` and so on, by falling size (before refinement).
    `uns["cluster"]`
        Model, backend, parameters, log-likelihood, BIC (larger is better), and iterations (-1 with `backend="r"`).

    Raises
    ------
    KeyError, TypeError, ValueError
        The input or a parameter is not valid, or the covariance is singular. Nothing is written then.
    ImportError
        `backend="r"` lacks R, mclust or rpy2.

    References
    ----------
    Scrucca et al., R Journal 8, 289 (2016). Fraley, SIAM Journal on Scientific Computing 20, 270 (1998).

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=300, n_genes=50)
    >>> st.tl.cluster(adata, 5, n_components=10)
    >>> list(adata.obs["cluster"].cat.categories)
    ['0', '1', '2', '3', '4']
    """
    check_anndata(adata)
    check_seed(seed)

    _check_key_is_free(adata, key_added)
    _clusters.check_options(adata.n_obs, n_clusters=n_clusters, backend=backend, refine=refine)
    places = read_places(adata, spatial_key, refine=refine)
    values, where = read_values(adata, layer=layer, genes=genes, use_rep=use_rep, scale=scale)
    points = _clusters.points_of(values, where, n_components=n_components)
    mixture = _clusters.fit(points, n_clusters, backend=backend, seed=seed)
    labels = mixture.labels if places is None or refine is None else refine_labels(places, mixture.labels, refine)

    found = np.unique(labels)
    column = pd.Categorical(labels.astype(str), categories=found.astype(str))
    record = {
        "model": _MODEL,
        "backend": backend,
        "params": {
            "n_clusters": n_clusters,
            "layer": "" if use_rep is not None else layer or "X",
            "genes": "all" if genes is None else genes if isinstance(genes, str) else np.asarray(genes, dtype=object),
            "use_rep": use_rep or "",
            "n_dimensions": points.shape[1],
            "refine": refine or 0,
            "scale": scale,
        },
        "seed": seed,
        "loglik": mixture.loglik,
        "bic": mixture.bic,
        "n_iterations": mixture.n_iterations,
    }
    out = output_of(adata, copy=copy)
    out.obs[key_added] = column
    out.uns[key_added] = record
    logger.info("wrote obs[%r] (%d clusters), uns[%r]", key_added, len(found), key_added)
    return out if copy else None


def _check_key_is_free(adata: AnnData, key: str) -> None:
    check_name("key_added", key)
    record = adata.uns.get(key)
    ours = isinstance(record, Mapping) and record.get("model") == _MODEL
    taken = [f"{name}/{key}" for name, holder in (("obs", adata.obs), ("uns", adata.uns)) if key in holder]
    if taken and not ours:
        raise ValueError(
            f"{', '.join(taken)} exists and was not written by st.tl.cluster; choose another name with key_added=."
        )
