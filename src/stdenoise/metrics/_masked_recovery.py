"""Hiding entries and asking for them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from tqdm import tqdm

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, check_number
from stdenoise._base.device import resolve_device
from stdenoise._base.random import check_seed
from stdenoise._base.settings import settings
from stdenoise._io.section import open_section
from stdenoise.methods._registry import inputs_of, make_method
from stdenoise.methods._trial import Trial, check_fraction
from stdenoise.spatial.normalize import lognorm
from stdenoise.spatial.results import row_blocks
from stdenoise.stats.masking import draw_mask, masked_scores

if TYPE_CHECKING:
    from anndata import AnnData

    from stdenoise.methods import Method
    from stdenoise.spatial.graph import SpatialGraph
    from stdenoise.spatial.results import Block

_MIN_MASKED = 10
"""A gene needs so many masked entries for a correlation of its own."""


def masked_recovery(
    adata: AnnData,
    method: str | Method = "dusted",
    *,
    fraction: float | Sequence[float] = 0.1,
    entries: Literal["positive", "all"] = "positive",
    n_repeats: int = 1,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    graph_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    features_key: str | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    **params: Any,
) -> pd.DataFrame:
    """Set a share of the entries to 0, run a method, and compare what it puts there with what was there.

    The published protocol masks 5 to 50 % of the entries. Choosing positive entries only makes this a test of one kind of
    error: a method that raises every zero does well. `stdenoise.metrics.held_out` has no such bias.

    Parameters
    ----------
    adata
        Annotated data with raw counts and, for graph methods, a spatial graph; not changed.
    method
        Name of a method or a configured one; it is run on the masked counts.
    fraction
        Share of masked entries between 0 and 1, or several shares; the published ones are 0.05, 0.1, 0.15, 0.2, 0.3, 0.5.
    entries
        Mask among the `"positive"` entries or among `"all"`.
    n_repeats
        Number of masks per share.
    layer
        Layer with the raw counts; `X` if not given.
    genes
        Genes to model, to mask and to score: all, `"highly_variable"` or a list of names.
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
        Of the first mask and its run; the following ones count up. The same for all methods, so that the masks are.
    progress
        Show a progress bar on standard error; by default only on a terminal.
    **params
        Parameters of the method.

    Returns
    -------
    DataFrame with one row per share, mask and method. Beside the method there are baselines: `zeros`; `mean of positives`, of
    the values of the gene that are left; and, for methods that use the graph, `mean of neighbours`, of the masked values. Columns `rmse`,
    `pearson` (over all masked entries) and `pearson_gene` (mean over genes with at least 10 of them, which differences
    between genes cannot raise), `n_masked`, `fraction` and `seed`. Values are `log1p` of counts per 10 000, of the unmasked
    counts and of the result.

    Raises
    ------
    ValueError, KeyError, TypeError
        The input or a parameter is not valid, or a share masks nothing.

    References
    ----------
    The masking experiment of SpaEF, with the choices that its text leaves open made here.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=200, n_genes=50)
    >>> st.pp.spatial_graph(adata)
    >>> table = st.metrics.masked_recovery(adata, "neighbor_mean", fraction=0.2)
    >>> list(table["method"])
    ['neighbor_mean', 'zeros', 'mean of positives', 'mean of neighbours']
    """
    denoiser = make_method(method, params)
    fractions = [fraction] if isinstance(fraction, int | float) else list(fraction)
    for share in fractions:
        check_fraction("fraction", share)
    check_choice("entries", entries, ["positive", "all"])
    check_number("n_repeats", n_repeats, minimum=1, integer=True)
    check_seed(seed)
    on = resolve_device(device)
    section = open_section(
        adata,
        inputs_of([denoiser]),
        layer=layer,
        genes=genes,
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
    )
    trial = Trial.of(section, [denoiser], on)
    columns = np.arange(adata.n_vars) if trial.positions is None else trial.positions
    truth = trial.modelled(trial.counts)
    rows = []
    runs = [(share, seed + repeat) for share in fractions for repeat in range(n_repeats)]
    for share, run_seed in tqdm(runs, desc="masked", unit="fit", disable=not settings.show_progress(progress)):
        row, col = draw_mask(truth, share, entries, np.random.default_rng(run_seed))
        left = _without(trial.counts, row, columns[col])
        result = trial.with_counts(left).fit(denoiser, seed=run_seed, progress=False)
        normal = lognorm(trial.modelled(left))
        predictions = {
            denoiser.label: _at_entries(result, row, col),
            "zeros": np.zeros(len(row)),
            "mean of positives": _positive_mean(normal)[col],
        }
        if trial.tissue.has("graph"):
            predictions["mean of neighbours"] = _neighbour_mean(normal, trial.tissue.graph, row, col)
        actual = np.asarray(lognorm(truth)[row, col]).ravel()
        for name, predicted in predictions.items():
            scores = masked_scores(predicted, actual, col, min_masked=_MIN_MASKED)
            rows.append({"method": name, "fraction": share, "seed": run_seed, **scores, "n_masked": len(row)})
    return pd.DataFrame(rows)


def _without(counts: sparse.csr_matrix, row: np.ndarray, col: np.ndarray) -> sparse.csr_matrix:
    """Return the counts with some entries set to 0."""
    ones = np.ones(len(row), dtype=counts.dtype)
    masked = sparse.csr_matrix((ones, (row, col)), shape=counts.shape)
    left = counts - counts.multiply(masked).tocsr()
    left.eliminate_zeros()
    return left


def _at_entries(result: Block, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Log-normalised values of a result at some entries, in order of their rows."""
    found = []
    for rows, block in row_blocks(result.mean):
        values = block.cpu().numpy()
        here = slice(*np.searchsorted(row, [rows.start, rows.stop]))
        normal = values if result.scale == "log1p" else lognorm(values)
        found.append(normal[row[here] - rows.start, col[here]])
    return np.concatenate(found)


def _positive_mean(values: sparse.csr_matrix) -> np.ndarray:
    """Mean of each gene's positive values, shape `(n_genes,)`; 0 where there are none."""
    n_positive = values.getnnz(axis=0)
    total = np.asarray(values.sum(axis=0), dtype=np.float64).ravel()
    return np.asarray(total / np.maximum(n_positive, 1))


def _neighbour_mean(values: sparse.csr_matrix, graph: SpatialGraph, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """Mean over the neighbours of a spot, itself left out, at some entries; 0 without neighbours."""
    adjacency = graph.to_scipy()
    degree = np.maximum(np.diff(adjacency.indptr), 1)
    total = np.asarray((adjacency @ values).tocsr()[row, col]).ravel()
    return np.asarray(total / degree[row])
