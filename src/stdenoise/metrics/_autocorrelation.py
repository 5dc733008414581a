"""How alike neighbouring spots are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from stdenoise import _keys
from stdenoise._expression import gene_blocks, read_expression
from stdenoise._random import check_seed
from stdenoise._settings import settings
from stdenoise._validate import check_anndata, check_choice, check_number

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("stdenoise")

_BLOCK_ENTRIES = 2**25
_PANEL = 32


def morans_i(
    adata: AnnData,
    *,
    layer: str | None = None,
    genes: Sequence[str] | str | None = None,
    graph_key: str = _keys.SPATIAL,
    scale: Literal["stored", "log1p"] = "stored",
    weights: Literal["row", "binary"] = "row",
    n_permutations: int | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Global Moran's I of genes: near 0 without spatial structure, 1 where neighbours are equal.

    It describes a map and does not judge a denoiser: smoothing raises it, also where there is nothing to find. See
    `stdenoise.metrics.null_test`.

    Parameters
    ----------
    adata
        Annotated data with a spatial graph; not changed.
    layer
        `None` for `X`, a layer, a DataFrame in `obsm`, or the key of a denoised result.
    genes
        All genes of the layer, `"highly_variable"` or a list of names.
    graph_key
        Key of the spatial graph. Only its pattern is used, without loops.
    scale
        `"stored"`: the values as they are. `"log1p"`: `log1p` of counts per 10 000.
    weights
        `"row"`: the neighbours of a spot weigh 1 together, as by default in squidpy. `"binary"`: each edge weighs 1. A spot
        without neighbours has no weight; its value still counts in mean and variance.
    n_permutations
        Number of permutations of the spots; none if not given. All genes share them.
    seed
        Of the permutations.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    progress
        Show a progress bar over permutations on standard error; by default only on a terminal.

    Returns
    -------
    DataFrame with one row per gene and the columns

    `morans_i`
        The statistic. Every column but `expected` and `variance` is NaN for a gene that is constant up to rounding.
    `expected`, `variance`, `z`, `p`
        Expectation and variance for independent normal values, the standardised statistic, and the one-sided probability of
        one at least as far on its side.
    `variance_permutation`, `z_permutation`, `p_permutation`
        With permutations: their variance, the statistic standardised by their mean and variance, and
        `(k + 1) / (n_permutations + 1)` with `k` the number of them at least as far on the side where the statistic lies.

    Raises
    ------
    KeyError
        There is no such graph, layer or gene.
    ValueError, TypeError
        The graph has no edge, the values are not finite numbers, or an argument is not valid.

    References
    ----------
    Cliff and Ord, *Spatial Processes*, 1981.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=200, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> table = st.metrics.morans_i(adata, layer="true_mean", scale="log1p")
    >>> bool(table["morans_i"].max() > 0.5)
    True
    """
    return _table(
        "moran",
        adata,
        layer=layer,
        genes=genes,
        graph_key=graph_key,
        scale=scale,
        weights=weights,
        n_permutations=n_permutations,
        seed=seed,
        device=device,
        progress=progress,
    )


def gearys_c(
    adata: AnnData,
    *,
    layer: str | None = None,
    genes: Sequence[str] | str | None = None,
    graph_key: str = _keys.SPATIAL,
    scale: Literal["stored", "log1p"] = "stored",
    weights: Literal["row", "binary"] = "row",
    n_permutations: int | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Global Geary's C of genes: near 1 without spatial structure, 0 where neighbours are equal.

    It weighs differences of neighbours, where `stdenoise.metrics.morans_i` weighs their deviations from the mean. It describes a
    map and does not judge a denoiser.

    Parameters
    ----------
    adata
        Annotated data with a spatial graph; not changed.
    layer
        `None` for `X`, a layer, a DataFrame in `obsm`, or the key of a denoised result.
    genes
        All genes of the layer, `"highly_variable"` or a list of names.
    graph_key
        Key of the spatial graph. Only its pattern is used, without loops.
    scale
        `"stored"`: the values as they are. `"log1p"`: `log1p` of counts per 10 000.
    weights
        `"row"`: the neighbours of a spot weigh 1 together, as by default in squidpy. `"binary"`: each edge weighs 1. A spot
        without neighbours has no weight; its value still counts in mean and variance.
    n_permutations
        Number of permutations of the spots; none if not given. All genes share them.
    seed
        Of the permutations.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    progress
        Show a progress bar over permutations on standard error; by default only on a terminal.

    Returns
    -------
    DataFrame with one row per gene: `gearys_c` and further columns as from `stdenoise.metrics.morans_i`.

    Raises
    ------
    KeyError
        There is no such graph, layer or gene.
    ValueError, TypeError
        The graph has no edge, the values are not finite numbers, or an argument is not valid.

    References
    ----------
    Cliff and Ord, *Spatial Processes*, 1981.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=200, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> table = st.metrics.gearys_c(adata, layer="true_mean", scale="log1p")
    >>> bool(table["gearys_c"].min() < 0.5)
    True
    """
    return _table(
        "geary",
        adata,
        layer=layer,
        genes=genes,
        graph_key=graph_key,
        scale=scale,
        weights=weights,
        n_permutations=n_permutations,
        seed=seed,
        device=device,
        progress=progress,
    )


def _table(
    kind: str,
    adata: AnnData,
    *,
    layer: str | None,
    genes: Sequence[str] | str | None,
    graph_key: str,
    scale: str,
    weights: str,
    n_permutations: int | None,
    seed: int,
    device: str,
    progress: bool | None,
) -> pd.DataFrame:
    check_choice("weights", weights, ["row", "binary"])
    if n_permutations is not None:
        check_number("n_permutations", n_permutations, minimum=1, integer=True)
    check_seed(seed)
    check_anndata(adata)
    show_progress = settings.show_progress(progress)

    import pandas as pd
    import torch
    from scipy import sparse, stats
    from tqdm import tqdm

    from stdenoise._device import resolve_device
    from stdenoise._spots import read_graph
    from stdenoise.graph.csr import SpatialGraph
    from stdenoise.scores.autocorrelation import Weights, autocorrelation, centre, permutations

    on = resolve_device(device)
    expression = read_expression(adata, layer, genes=genes)
    values = expression.on_scale(scale)
    edges = Weights.of(SpatialGraph.from_scipy(read_graph(adata, graph_key)), weights)
    if edges.s0 == 0:
        raise ValueError(f"the graph {graph_key!r} has no edge; build it with a larger radius.")

    (n_spots, n_genes), n_drawn = values.shape, n_permutations or 0
    observed, drawn = np.empty(n_genes), np.empty((n_drawn, n_genes))
    width = n_genes if not n_drawn else max(_PANEL, _BLOCK_ENTRIES // n_spots)
    if sparse.issparse(values):
        values = values.tocsc()
    with tqdm(
        total=n_drawn * n_genes, desc="permutations", unit="gene", disable=not (show_progress and n_drawn)
    ) as bar:
        for start in range(0, n_genes, width):
            block = slice(start, start + width)
            panels, spreads = [], []
            for part, dense in gene_blocks(
                values[:, block], block_entries=_PANEL * n_spots, device=on, dtype=torch.float64
            ):
                panel, spread = centre(dense)
                observed[block][part] = autocorrelation(kind, [panel], spread, edges).cpu().numpy()
                if n_drawn:
                    # Permutations are compared, not reported: single precision is twice as fast.
                    panels.append(panel.float())
                    spreads.append(spread)
            if n_drawn:
                runs = permutations(kind, panels, torch.cat(spreads), edges, n_permutations=n_drawn, seed=seed)
                for row, statistic in zip(drawn, runs, strict=True):
                    row[block] = statistic.cpu().numpy()
                    bar.update(len(statistic))

    n_constant = int(np.isnan(observed).sum())
    if n_constant:
        logger.info("%d of %d genes are constant: their autocorrelation is NaN", n_constant, n_genes)
    expected, variance = edges.expected(kind), edges.variance(kind)
    z = (observed - expected) / np.sqrt(variance)
    name = {"moran": "morans_i", "geary": "gearys_c"}[kind]
    columns = {name: observed, "expected": expected, "variance": variance, "z": z, "p": stats.norm.sf(np.abs(z))}
    if n_drawn:
        columns |= _against_permutations(observed, drawn)
    return pd.DataFrame(columns, index=expression.genes.rename("gene"))


def _against_permutations(observed: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    spread = drawn.std(axis=0)
    n_above = (drawn >= observed).sum(axis=0)
    further = np.minimum(n_above, len(drawn) - n_above)
    defined = np.isfinite(observed)
    z = np.divide(observed - drawn.mean(axis=0), spread, out=np.full(len(observed), np.nan), where=spread > 0)
    return {
        "variance_permutation": spread**2,
        "z_permutation": z,
        "p_permutation": np.where(defined, (further + 1) / (len(drawn) + 1), np.nan),
    }
