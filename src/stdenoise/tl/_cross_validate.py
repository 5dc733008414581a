"""Choosing a method and its parameters by held-out molecules."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_number, near_match
from stdenoise._base.device import resolve_device
from stdenoise._base.random import check_seed
from stdenoise._base.settings import settings
from stdenoise._io.section import open_section
from stdenoise.methods._registry import inputs_of, make_method
from stdenoise.methods._trial import Trial, check_fraction, held_out_scores

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from stdenoise.methods import Method

logger = logging.getLogger("stdenoise")

_DEFAULT = ("dusted", "neighbor_mean", "poisson_factorization")
_NOTHING_GAINED = {
    "raw": "do not denoise: no method expects the hidden molecules better than the counts themselves",
    "gene_mean": "do not denoise: no method expects the hidden molecules better than each gene's mean",
}


def cross_validate(
    adata: AnnData,
    methods: Sequence[str | Method] = _DEFAULT,
    *,
    params: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
    fraction: float = 0.1,
    n_splits: int = 3,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    graph_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    features_key: str | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Compare methods and their parameters by how well they expect held-out molecules.

    Every candidate is run on the same thinned counts, see `stdenoise.metrics.held_out`. The raw counts and the gene means
    always take part, so that the answer can be not to denoise.

    Parameters
    ----------
    adata
        Annotated data with raw counts and, for graph methods, a spatial graph; not changed.
    methods
        Names of methods, or configured methods.
    params
        Values to try, for methods given by name: `{"dusted": {"lr": [1e-4, 5e-4], "alpha": [1.0, 1.5]}}` runs all four
        combinations.
    fraction
        Share of hidden molecules, between 0 and 1.
    n_splits
        Number of independent splits.
    layer
        Layer with the raw counts; `X` if not given.
    genes
        Genes to model and to score: all, `"highly_variable"` or a list of names.
    graph_key
        Key of the spatial graph.
    library_key
        Column of `obs` that no edge may cross.
    spatial_key
        Key of the coordinates in `obsm`, for methods that read them.
    features_key
        Key of image features in `obsm`, for methods that can use them (see `stdenoise.pp.image_features`); none if not given.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    seed
        Of the first split and its runs; the following ones count up.
    progress
        Show a progress bar on standard error; by default only on a terminal.

    Returns
    -------
    DataFrame with one row per candidate and split, columns as from `stdenoise.metrics.held_out` and `recommended`: whether
    this candidate has the smallest mean Poisson deviance and is not a baseline without denoising. With no such row, do not
    denoise. `attrs["recommendation"]` says it in a sentence. The choice is by held-out molecules alone; clusters and borders
    may rank candidates otherwise, and a smaller deviance of the chosen one on the same splits is not an independent estimate.

    Raises
    ------
    ValueError, KeyError, TypeError
        The input, a method or a parameter is not valid. Nothing is run then.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=200, n_genes=50)
    >>> st.pp.spatial_graph(adata)
    >>> table = st.tl.cross_validate(adata, ["neighbor_mean"], params={"neighbor_mean": {"n_hops": [1, 2]}}, n_splits=2)
    >>> table.attrs["recommendation"].split(":")[0]
    'use neighbor_mean(n_hops=2)'
    """
    candidates = _candidates(methods, params or {})
    check_fraction("fraction", fraction)
    check_number("n_splits", n_splits, minimum=1, integer=True)
    check_seed(seed)
    on = resolve_device(device)
    section = open_section(
        adata,
        inputs_of(candidates),
        layer=layer,
        genes=genes,
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
    )
    trial = Trial.of(section, candidates, on)
    table = held_out_scores(
        trial,
        candidates,
        fraction=fraction,
        n_splits=n_splits,
        seed=seed,
        progress=settings.show_progress(progress),
    )
    mean = table.groupby("method", sort=False)["poisson_deviance"].mean()
    best = str(mean.idxmin())
    table["recommended"] = (table["method"] == best) & (best not in _NOTHING_GAINED)
    table.attrs["recommendation"] = _NOTHING_GAINED.get(
        best,
        f"use {best}: Poisson deviance {mean[best]:.4g} per entry; raw counts {mean['raw']:.4g}, "
        f"gene means {mean['gene_mean']:.4g}",
    )
    logger.info("%s", table.attrs["recommendation"])
    return table


def _candidates(methods: Sequence[str | Method], params: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[Method]:
    if isinstance(methods, str):
        raise TypeError(f"methods must be a list, not {methods!r}; write [{methods!r}].")
    names = [method for method in methods if isinstance(method, str)]
    unused = [name for name in params if name not in names]
    if unused:
        raise ValueError(
            f"params has values for {unused[0]!r}, which is not among the methods given by name, {names}."
            f"{near_match(unused[0], names)}"
        )
    candidates = []
    for method in ["raw", "gene_mean", *methods]:
        grid = params.get(method, {}) if isinstance(method, str) else {}
        for name, values in grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise TypeError(f"params[{method!r}][{name!r}] must be a list of values, not {values!r}.")
        candidates += [
            make_method(method, dict(zip(grid, combination, strict=True)))
            for combination in itertools.product(*grid.values())
        ]
    return list({candidate.label: candidate for candidate in candidates}.values())
