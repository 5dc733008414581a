"""How alike neighbouring spots are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse, special
from tqdm import tqdm

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, check_number
from stdenoise._base.device import resolve_device
from stdenoise._base.random import check_seed, torch_generator
from stdenoise._base.settings import settings
from stdenoise._io.expression import read_expression
from stdenoise._io.read import check_anndata, read_graph
from stdenoise.spatial.normalize import Matrix, gene_blocks
from stdenoise.stats.autocorrelation import Statistic, Weights, centre, sparse_products

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stdenoise")

_WIDTH = 32
"""Genes of a block: few, so that their values stay in cache."""

_TIE = 1e-6
"""Statistics of permuted values that are closer than this are equal: they are computed in single precision."""


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

    on = resolve_device(device)
    expression = read_expression(adata, layer, genes=genes)
    values = expression.on_scale(scale)
    edges = Weights.of(read_graph(adata, graph_key), weights)
    if edges.s0 == 0:
        raise ValueError(f"the graph {graph_key!r} has no edge; build it with a larger radius.")
    statistic = Statistic(kind, edges, on)

    def blocks(matrix: Matrix) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        narrow = gene_blocks(matrix, block_entries=_WIDTH * adata.n_obs, device=on, dtype=torch.float64)
        for block, dense in narrow:
            yield block, *centre(dense)

    observed = np.full(values.shape[1], np.inf)
    if on.type == "cpu" and sparse.issparse(values) and sparse_products():
        observed = statistic.of_sparse(values)
    left = np.flatnonzero(np.isinf(observed))
    if len(left):
        for block, centred, spread in blocks(values[:, left] if len(left) < len(observed) else values):
            observed[left[block]] = statistic.of_centred(centred, spread).cpu().numpy()

    n_constant = int(np.isnan(observed).sum())
    if n_constant:
        logger.info("%d of %d genes are constant: their autocorrelation is NaN", n_constant, len(observed))
    expected, variance = edges.expected(kind), edges.variance(kind)
    z = (observed - expected) / np.sqrt(variance)
    name = {"moran": "morans_i", "geary": "gearys_c"}[kind]
    columns = {name: observed, "expected": expected, "variance": variance, "z": z, "p": special.ndtr(-np.abs(z))}
    if n_permutations is not None:
        tests: dict[str, list[np.ndarray]] = {}
        with tqdm(total=len(observed), desc="permutations", unit="gene", disable=not show_progress) as bar:
            for block, centred, spread in blocks(values):
                # Permutations are compared, not reported: in single precision they take half the time.
                scaled = centred.mul_(spread.rsqrt()).float()
                ones = torch.ones_like(spread)
                drawn = statistic.permuted(scaled, ones, n_permutations=n_permutations, generator=torch_generator(seed))
                for column, test in _against_permutations(observed[block], drawn.double().cpu().numpy()).items():
                    tests.setdefault(column, []).append(test)
                bar.update(len(spread))
        columns |= {column: np.concatenate(parts) for column, parts in tests.items()}
    return pd.DataFrame(columns, index=expression.genes.rename("gene"))


def _against_permutations(observed: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    spread = drawn.std(axis=0)
    # A gene of few counts has many equal permutations. Equal but for rounding, they count on either side.
    further = np.minimum((drawn >= observed - _TIE).sum(axis=0), (drawn <= observed + _TIE).sum(axis=0))
    z = np.divide(observed - drawn.mean(axis=0), spread, out=np.full(len(observed), np.nan), where=spread > _TIE)
    return {
        "variance_permutation": spread**2,
        "z_permutation": z,
        "p_permutation": np.where(np.isnan(observed), np.nan, (further + 1) / (len(drawn) + 1)),
    }
