"""What a denoiser smooths away, and what it invents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, check_number, lookup, refuse_key
from stdenoise._base.device import resolve_device
from stdenoise._base.keys import GraphKeys
from stdenoise._base.random import check_seed
from stdenoise._io.expression import read_expression
from stdenoise._io.read import check_anndata, read_graph
from stdenoise.metrics._scaled import BLOCK_ENTRIES, gene_positions, scaled
from stdenoise.spatial.normalize import Matrix, gene_blocks
from stdenoise.stats.correlation import is_constant
from stdenoise.stats.smoothing import correlation_matrix, edge_contrast, median_off_diagonal, squared_differences

if TYPE_CHECKING:
    from anndata import AnnData


def smoothing(
    adata: AnnData,
    layer: str | None = None,
    *,
    reference: str | None = None,
    genes: Sequence[str] | str | None = None,
    labels: str | None = None,
    graph_key: str = _keys.SPATIAL,
    scale: Literal["log1p", "stored"] = "log1p",
    n_genes: int = 2000,
    seed: int = 0,
    device: str = "auto",
) -> pd.Series:
    """Measure how strongly a result is smoothed.

    These are diagnostics, no scores: the truth itself keeps little of the variance, most of which is noise, and its genes
    are far more correlated than the counts. Compare them with the same numbers of a null, where there is nothing to find.

    Both sides are normalised over the genes they share.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    layer
        Expression after denoising: `None` for `X`, a layer, a DataFrame in `obsm`, or the key of a denoised result.
    reference
        Expression before, in the same ways.
    genes
        Genes that are measured: all that both sides have, `"highly_variable"`, or names. Values are normalised before.
    labels
        Column of `obs` naming the region of each spot, for the edge contrast. Spots without a region are left out of it.
    graph_key
        Key of the spatial graph whose edges are compared: `obsp["<graph_key>_connectivities"]`; read with `labels` only.
    scale
        `"log1p"`: both sides as `log1p` of counts per 10 000. Layers are taken as counts, except for denoised results on the
        log scale, which get no second logarithm. `"stored"`: the values as they are.
    n_genes
        Correlate all pairs of at most so many genes; of more genes, so many are drawn.
    seed
        Of this draw.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.

    Returns
    -------
    A Series:

    `variance_kept`
        Median over genes of the variance after over the variance before, without genes that did not vary before.
    `correlation_before`, `correlation_after`, `correlation_inflation`
        Median absolute Pearson correlation of pairs of genes that vary on both sides, and after over before.
    `contrast_before`, `contrast_after`, `contrast_ratio`
        Edge contrast, and after over before: mean squared difference of the two spots of a graph edge, over edges that join
        two regions, divided by the same over edges within a region. It is 1 where borders do not show, and infinite
        where the spots of a region are all alike. NaN without `labels`, or where there is no edge of one of the two kinds,
        as with a single region.
    `n_genes`, `n_constant`
        Genes measured, and those that are constant on one of the sides.
    `n_pairs`
        Pairs of genes correlated.
    `n_border_edges`, `n_inner_edges`, `n_unlabelled`
        Edges of the two kinds, each counted once, and spots without a region; NaN without `labels`.

    Raises
    ------
    KeyError
        There is no such layer, gene, column or graph.
    TypeError, ValueError
        The values are not finite numbers, the sides share no gene, or an argument is not valid.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> truth = st.metrics.smoothing(adata, "true_mean", labels="region")
    >>> bool(truth["variance_kept"] < 1 < truth["contrast_ratio"])
    True
    """
    check_choice("scale", scale, ["log1p", "stored"])
    check_number("n_genes", n_genes, minimum=2, integer=True)
    check_seed(seed)
    check_anndata(adata)
    if labels is None and graph_key != _keys.SPATIAL:
        place, why = GraphKeys(graph_key).connectivities, "without labels=, which alone needs a graph"
        refuse_key("graph_key", graph_key, adata.obsp, place, where="adata.obsp", why=why)
    edges = None if labels is None else _read_edges(adata, labels, graph_key)
    sides, positions = _read_sides(adata, layer, reference, genes, scale)

    on = resolve_device(device)
    (before, constant_before), (after, constant_after) = (_variances(side, on) for side in sides)
    kept = after[~constant_before] / before[~constant_before]
    constant = constant_before | constant_after
    drawn = np.flatnonzero(~constant)
    if len(drawn) > n_genes:
        drawn = np.sort(np.random.default_rng(seed).choice(drawn, n_genes, replace=False))
    correlation = [median_off_diagonal(correlation_matrix(_cross_products(side[:, drawn], on))) for side in sides]
    contrast = [np.nan, np.nan]
    counted = (np.nan, np.nan, np.nan)
    if edges is not None:
        pairs, crosses, n_unlabelled = edges

        crossing = torch.from_numpy(crosses).to(on)
        contrast = [edge_contrast(_edge_differences(side, pairs, on), crossing) for side in sides]
        counted = (float(crosses.sum()), float((~crosses).sum()), float(n_unlabelled))
    return pd.Series(
        {
            "variance_kept": float(np.median(kept)) if len(kept) else np.nan,
            "correlation_before": correlation[0],
            "correlation_after": correlation[1],
            "correlation_inflation": _ratio(correlation[1], correlation[0]),
            "contrast_before": contrast[0],
            "contrast_after": contrast[1],
            "contrast_ratio": _ratio(contrast[1], contrast[0]),
            "n_genes": float(len(positions)),
            "n_constant": float(constant.sum()),
            "n_pairs": len(drawn) * (len(drawn) - 1) / 2,
            **dict(zip(("n_border_edges", "n_inner_edges", "n_unlabelled"), counted, strict=True)),
        }
    )


def _ratio(after: float, before: float) -> float:
    return after / before if before else np.nan


def _read_sides(
    adata: AnnData, layer: str | None, reference: str | None, genes: Sequence[str] | str | None, scale: str
) -> tuple[list[Matrix], np.ndarray]:
    """Read the two sides, before and after, with the same genes in the same order."""
    before, after = read_expression(adata, reference), read_expression(adata, layer)
    if not before.genes.equals(after.genes):
        shared = after.genes[after.genes.isin(before.genes)]
        if len(shared) == 0:
            raise ValueError(f"{after.where} and {before.where} share no gene.")
        before = read_expression(adata, reference, genes=list(shared))
        after = read_expression(adata, layer, genes=list(shared))
    positions = gene_positions(adata, layer, after, genes)
    if (positions < 0).any():
        chosen = read_expression(adata, layer, genes=genes).genes[positions < 0]
        raise KeyError(f"{len(chosen)} of {len(positions)} genes are not in {before.where}: {list(chosen[:5])}.")
    sides = [scaled(side, scale) for side in (before, after)]
    return (sides if genes is None else [side[:, positions] for side in sides]), positions


def _read_edges(adata: AnnData, labels: str, graph_key: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Pairs of joined spots that both have a region, whether the regions differ, and the number of spots without one."""
    codes = lookup(adata.obs, labels, where="adata.obs").astype("category").cat.codes.to_numpy()
    graph = read_graph(adata, graph_key)
    # Either direction joins two spots, and each pair counts once.
    pairs = np.stack(sparse.triu((graph != 0) + (graph != 0).T, k=1).nonzero())
    pairs = pairs[:, (codes[pairs] >= 0).all(axis=0)]
    return pairs, codes[pairs[0]] != codes[pairs[1]], int((codes < 0).sum())


def _variances(values: Matrix, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Variance of each gene, and whether the gene is constant."""
    variance, constant = np.zeros(values.shape[1]), np.zeros(values.shape[1], dtype=bool)
    for block, part in gene_blocks(values, block_entries=BLOCK_ENTRIES, device=device, dtype=torch.float64):
        spread = part.var(0, correction=0)
        variance[block] = spread.cpu().numpy()
        constant[block] = is_constant(spread, part.square().mean(0)).cpu().numpy()
    return variance, constant


def _cross_products(values: Matrix, device: torch.device) -> torch.Tensor:
    """Cross products of centred genes, shape `(n_genes, n_genes)`, summed over blocks of spots."""
    mean = torch.from_numpy(np.asarray(values.mean(axis=0, dtype=np.float64)).reshape(-1, 1)).to(device)
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=device)
    for _, part in gene_blocks(values.T, block_entries=BLOCK_ENTRIES, device=device, dtype=torch.float64):
        centred = part - mean
        total += centred @ centred.T
    return total


def _edge_differences(values: Matrix, pairs: np.ndarray, device: torch.device) -> torch.Tensor:
    ends = torch.from_numpy(pairs).to(device)
    total = torch.zeros(pairs.shape[1], dtype=torch.float64, device=device)
    # A block of genes is gathered for every edge, so it is cut by edges.
    size = max(1, BLOCK_ENTRIES * values.shape[0] // max(values.shape[0], pairs.shape[1]))
    for _, part in gene_blocks(values, block_entries=size, device=device, dtype=torch.float64):
        total += squared_differences(part, ends)
    return total
