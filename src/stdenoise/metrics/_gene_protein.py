"""Correlation of a gene's expression with a protein."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from stdenoise._base.checks import check_choice, check_number, lookup, near_match
from stdenoise._base.device import resolve_device
from stdenoise._base.random import check_seed, torch_generator
from stdenoise._io.expression import read_expression
from stdenoise._io.read import check_anndata
from stdenoise.metrics._scaled import BLOCK_ENTRIES, gene_positions, scaled
from stdenoise.stats.correlation import draw_weights, resampled_correlations


def gene_protein_correlation(
    adata: AnnData,
    gene: str | Sequence[str],
    *,
    protein: str | tuple[str | AnnData, str | int] | pd.Series | np.ndarray,
    layer: str | None = None,
    scale: Literal["log1p", "stored"] = "log1p",
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """Correlate genes with the intensity of a protein over spots.

    The intervals come from resampling spots. Neighbouring spots are alike, and a smoother makes them more so: the intervals
    are too narrow then, and tell whether two genes or layers differ on this section rather than on another one.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    gene
        One gene or several.
    protein
        Intensity of each spot: a column of `obs`; `("key", column)` for a column of `obsm["key"]`, by name in a DataFrame or by
        position in an array; `(other, gene)` for a gene in `X` of another AnnData, matched by names of spots; a Series,
        matched in the same way, such as that of `stdenoise.metrics.spot_intensity` for an image; or an array with a
        value per spot. Spots without a value (missing or NaN) are dropped. Values are taken as they are.
    layer
        Layer of the genes: `None` for `X`, a layer, a DataFrame in `obsm`, or the key of a denoised result.
    scale
        `"log1p"`: expression as `log1p` of counts per 10 000 over the genes of the layer. Layers are taken as counts, except
        for denoised results on the log scale, which get no second logarithm. `"stored"`: the values as they are.
    n_bootstrap
        Number of resamples; 0 for no intervals.
    confidence
        Probability of the intervals, which lie between percentiles of the resamples.
    seed
        The same seed gives the same resamples, whatever the gene and the layer.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.

    Returns
    -------
    DataFrame with the rows `pearson` and `spearman` for each gene, and the columns `gene`, `value`, `low`, `high`, `n_spots`
    (spots used) and `n_dropped` (spots without a value of the protein).

    Raises
    ------
    KeyError
        There is no such gene, layer, column or key.
    TypeError, ValueError
        The protein or a gene is constant, fewer than three spots have a value, or an argument is not valid.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> adata.obs["CD45"] = adata.layers["true_mean"][:, 6]
    >>> table = st.metrics.gene_protein_correlation(adata, "gene6", protein="CD45", n_bootstrap=50)
    >>> bool(table.loc["pearson", "value"] > 0.3)
    True
    """
    check_choice("scale", scale, ["log1p", "stored"])
    check_number("n_bootstrap", n_bootstrap, minimum=0, integer=True)
    check_number("confidence", confidence, above=0)
    if confidence >= 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence!r}.")
    check_seed(seed)
    check_anndata(adata)
    intensity, name = _read_protein(adata, protein)
    genes = [gene] if isinstance(gene, str) else list(gene)
    if not genes:
        raise ValueError("gene is an empty list; name one gene at least.")
    expression = read_expression(adata, layer)
    positions = gene_positions(adata, layer, expression, genes)
    columns: Any = scaled(expression, scale)[:, positions]
    values = np.asarray(columns if isinstance(columns, np.ndarray) else columns.toarray(), dtype=np.float64)

    known = np.isfinite(intensity)
    if known.sum() < 3:
        raise ValueError(f"{known.sum()} of {len(known)} spots have a value of {name}; a correlation needs 3 at least.")
    values, intensity = values[known], intensity[known]
    if np.ptp(intensity) == 0:
        raise ValueError(
            f"{name} is constant ({intensity[0]:g} in all {len(intensity)} spots): it correlates with nothing."
        )

    points, resamples = _correlate(values, intensity, n_bootstrap, seed, resolve_device(device))
    constant = [name for name, point in zip(genes, points, strict=True) if np.isnan(point).any()]
    if constant:
        raise ValueError(f"genes {constant} are constant in {expression.where} over {len(intensity)} spots.")
    tail = 50 * (1 - confidence)
    rows = []
    for position, gene_name in enumerate(genes):
        for kind, score in enumerate(("pearson", "spearman")):
            drawn = resamples[position, kind]
            drawn = drawn[np.isfinite(drawn)]
            low, high = np.percentile(drawn, [tail, 100 - tail]) if len(drawn) else (np.nan, np.nan)
            rows.append((score, gene_name, points[position, kind], low, high, int(known.sum()), int((~known).sum())))
    return pd.DataFrame(rows, columns=["score", "gene", "value", "low", "high", "n_spots", "n_dropped"]).set_index(
        "score"
    )


def _read_protein(adata: AnnData, protein: Any) -> tuple[np.ndarray, str]:
    """Value of each spot, NaN where there is none, and what it is called in messages."""
    if isinstance(protein, str):
        column = lookup(
            adata.obs,
            protein,
            where="adata.obs",
            advice="Name a column of obsm as (key, column), and a gene of another AnnData as (other, gene).",
        )
        return _numbers(column, f"adata.obs[{protein!r}]")
    if isinstance(protein, tuple):
        if len(protein) != 2 or not isinstance(protein[0], str | AnnData):
            raise TypeError(f"protein as a tuple must be (key of obsm, column) or (AnnData, gene), not {protein!r}.")
        source, column = protein
        if isinstance(source, str):
            return _read_obsm(adata, source, column)
        values = read_expression(source, genes=[column]).values
        dense = np.asarray(values if isinstance(values, np.ndarray) else values.toarray())
        return _align(pd.Series(dense[:, 0], index=source.obs_names), adata, f"the protein {column!r}")
    if isinstance(protein, pd.Series):
        return _align(protein, adata, f"the Series {protein.name!r}" if protein.name else "the protein")
    values = np.asarray(protein)
    if values.shape != (adata.n_obs,):
        raise ValueError(f"protein has shape {values.shape}, but adata has {adata.n_obs} spots.")
    return _numbers(pd.Series(values), "the protein")


def _read_obsm(adata: AnnData, key: str, column: Any) -> tuple[np.ndarray, str]:
    table = lookup(adata.obsm, key, where="adata.obsm")
    where = f"adata.obsm[{key!r}]"
    if isinstance(table, pd.DataFrame):
        if column not in table:
            hint = near_match(str(column), map(str, table.columns))
            raise KeyError(f"{column!r} is not in {where}, which has the columns {list(table.columns)}.{hint}")
        return _numbers(table[column], f"{where}[{column!r}]")
    check_number("the column of protein", column, minimum=0, integer=True)
    if column >= table.shape[1]:
        raise ValueError(f"{where} has {table.shape[1]} columns, so there is no column {column}.")
    return _numbers(pd.Series(np.asarray(table[:, column]).ravel()), f"{where}[:, {column}]")


def _align(series: pd.Series, adata: AnnData, name: str) -> tuple[np.ndarray, str]:
    if not series.index.is_unique:
        raise ValueError(f"{name} names {series.index.duplicated().sum()} spots twice.")
    if not adata.obs_names.isin(series.index).any():
        raise ValueError(f"{name} shares no name of a spot with adata, such as {adata.obs_names[0]!r}.")
    return _numbers(series.reindex(adata.obs_names), name)


def _numbers(column: pd.Series, name: str) -> tuple[np.ndarray, str]:
    if not pd.api.types.is_numeric_dtype(column) or np.issubdtype(np.asarray(column).dtype, np.complexfloating):
        raise TypeError(f"{name} must hold numbers, not {column.dtype}.")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(values).any():
        raise ValueError(f"{name} has {np.isinf(values).sum()} infinite values.")
    return values, name


def _correlate(
    genes: np.ndarray, intensity: np.ndarray, n_bootstrap: int, seed: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations of each gene, shape `(n_genes, 2)`, and of its resamples, shape `(n_genes, 2, n_bootstrap)`."""
    protein = torch.from_numpy(intensity).to(device)
    columns = torch.tensor(genes.T).to(device)

    def correlations(weights: torch.Tensor) -> np.ndarray:
        pairs = [torch.stack(resampled_correlations(column, protein, weights)) for column in columns]
        return torch.stack(pairs).cpu().numpy()

    points = correlations(torch.ones(1, len(protein), dtype=torch.float64, device=device))[..., 0]
    generator = torch_generator(seed)
    step = max(1, BLOCK_ENTRIES // len(protein))
    drawn = [np.empty((len(columns), 2, 0))]
    for start in range(0, n_bootstrap, step):
        drawn.append(correlations(draw_weights(min(step, n_bootstrap - start), len(protein), generator, device)))
    return points, np.concatenate(drawn, axis=-1)
