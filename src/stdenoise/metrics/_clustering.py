"""How well clusters of expression meet an annotation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_number, lookup
from stdenoise._base.random import check_seed
from stdenoise._io.expression import read_values
from stdenoise._io.read import check_anndata, read_places
from stdenoise.stats import clusters as _clusters
from stdenoise.stats.labels import label_agreement, refine_labels

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stdenoise")


def clustering(
    adata: AnnData,
    labels: str,
    *,
    layer: str | None = None,
    genes: Sequence[str] | str | None = None,
    use_rep: str | None = None,
    n_clusters: int | None = None,
    n_components: int = 20,
    backend: str = "native",
    refine: int | None = None,
    spatial_key: str = _keys.SPATIAL,
    scale: str = "log1p",
    n_runs: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Cluster the spots and compare the clusters with an annotation.

    All spots are clustered, as in `stdenoise.tl.cluster`; those without a label are left out of the comparison only.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    labels
        Column of `obs` with the true classes; missing values are allowed.
    layer
        Expression to cluster: `None` for `X`, a layer, or the key of a denoised result.
    genes
        All genes, `"highly_variable"`, or names.
    use_rep
        An embedding in `obsm` to cluster as it is, instead of principal components; `n_components` and `scale` are not used then.
    n_clusters
        Number of clusters; the number of classes if not given.
    n_components
        Principal components.
    backend
        `"native"`, or `"r"` for the R package mclust (needs the extra `r`).
    refine
        Smooth the clusters by a vote of so many nearest spots before anything is scored; off if not given.
    spatial_key
        Key of the coordinates in `obsm`, for `refine`.
    scale
        `"log1p"` (of counts per 10 000) or `"stored"`: the scale on which components are computed.
    n_runs
        Runs, with the seeds `seed`, `seed + 1` and so on. Starts differ by seed, so report more than one.
    seed
        Seed of the first run.

    Returns
    -------
    DataFrame with one row per run and the columns `seed`, `ari` (adjusted Rand index), `nmi` (normalised mutual information,
    arithmetic mean), `homogeneity`, `completeness`, `accuracy` (best one-to-one matching of clusters and classes), `loglik`,
    `n_scored` and `n_dropped` (spots with and without a label) and `n_clusters` (that were asked for). Some papers report
    completeness under the name of homogeneity, because they swap its arguments.

    With a single class homogeneity is 1, and adjusted Rand index and mutual information are 0 unless there is also a single
    cluster, when all scores are 1.

    Raises
    ------
    KeyError, TypeError, ValueError
        The input or a parameter is not valid, or no spot has a label.
    ImportError
        `backend="r"` lacks R, mclust or rpy2.

    References
    ----------
    Hubert and Arabie, Journal of Classification 2, 193 (1985). Rosenberg and Hirschberg, EMNLP-CoNLL, 410 (2007). Scrucca et
    al., R Journal 8, 289 (2016).

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=300, n_genes=50)
    >>> scores = st.metrics.clustering(adata, "region", n_components=10, n_runs=2)
    >>> scores[["seed", "n_scored", "n_dropped", "n_clusters"]]
       seed  n_scored  n_dropped  n_clusters
    0     0       300          0           5
    1     1       300          0           5
    """
    check_anndata(adata)
    check_seed(seed)
    check_number("n_runs", n_runs, minimum=1, integer=True)

    truth, classes = pd.factorize(lookup(adata.obs, labels, where="adata.obs"))
    scored = truth >= 0
    n_dropped = int((~scored).sum())
    if not scored.any():
        raise ValueError(f"adata.obs[{labels!r}] has no labels: all {adata.n_obs} values are missing.")
    if n_dropped:
        logger.info("%d of %d spots have no label: clustered, but not scored", n_dropped, adata.n_obs)
    n_clusters = len(classes) if n_clusters is None else n_clusters
    _clusters.check_options(adata.n_obs, n_clusters=n_clusters, backend=backend, refine=refine)
    places = read_places(adata, spatial_key, refine=refine)
    values, where = read_values(adata, layer=layer, genes=genes, use_rep=use_rep, scale=scale)
    points = _clusters.points_of(values, where, n_components=n_components)

    rows = []
    for run in range(seed, seed + n_runs):
        mixture = _clusters.fit(points, n_clusters, backend=backend, seed=run)
        found = mixture.labels if places is None or refine is None else refine_labels(places, mixture.labels, refine)
        rows.append(
            {
                "seed": run,
                **label_agreement(truth[scored], found[scored]),
                "loglik": mixture.loglik,
                "n_scored": int(scored.sum()),
                "n_dropped": n_dropped,
                "n_clusters": n_clusters,
            }
        )
    return pd.DataFrame(rows)
