"""Masked entries: which ones, and how well they are recovered."""

from __future__ import annotations

import math

import numpy as np
from scipy import sparse


def draw_mask(
    counts: sparse.csr_matrix, fraction: float, entries: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw entries to mask, uniformly and without replacement.

    Parameters
    ----------
    counts
        Shape `(n_spots, n_genes)`.
    fraction
        Share of the entries.
    entries
        Draw among the `"positive"` entries or among `"all"`.
    rng
        Source of randomness.

    Returns
    -------
    Rows and columns of the masked entries.
    """
    n_spots, n_genes = counts.shape
    row, col = counts.nonzero()
    population = len(row) if entries == "positive" else n_spots * n_genes
    n_masked = round(fraction * population)
    if n_masked == 0:
        raise ValueError(f"fraction={fraction} of {population} {entries} entries masks nothing.")
    drawn = np.sort(rng.choice(population, size=n_masked, replace=False))
    if entries == "positive":
        return row[drawn], col[drawn]
    return np.divmod(drawn, n_genes)


def masked_scores(predicted: np.ndarray, actual: np.ndarray, gene: np.ndarray, *, min_masked: int) -> dict[str, float]:
    """Error and correlation over masked entries.

    Parameters
    ----------
    predicted, actual
        Values at the masked entries, shape `(n_masked,)`.
    gene
        Gene of each entry.
    min_masked
        Genes with fewer masked entries have no correlation of their own.

    Returns
    -------
    `rmse`, `pearson` over all entries, and `pearson_gene`, its mean over genes; NaN where a side is constant.
    """
    predicted, actual = predicted.astype(np.float64), actual.astype(np.float64)
    per_gene = _grouped_pearson(predicted, actual, gene, min_masked)
    return {
        "rmse": math.sqrt(np.mean((predicted - actual) ** 2)),
        "pearson": float(_grouped_pearson(predicted, actual, np.zeros(len(gene), dtype=np.int64), 2)[0]),
        "pearson_gene": float(np.nanmean(per_gene)) if np.isfinite(per_gene).any() else math.nan,
    }


def _grouped_pearson(a: np.ndarray, b: np.ndarray, group: np.ndarray, min_size: int) -> np.ndarray:
    """Pearson correlation within each group, shape `(n_groups,)`; NaN where a group is too small or constant."""
    size = np.bincount(group)
    # An empty group divides by 0 and is dropped below.
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (x - (np.bincount(group, x) / size)[group] for x in (a, b))
        ab, aa, bb = (np.bincount(group, product) for product in (a * b, a * a, b * b))
        # Rounding leaves a constant group some 1e-32 of its square.
        varied = (size >= min_size) & (aa > 1e-20 * size) & (bb > 1e-20 * size)
        return np.where(varied, ab / np.sqrt(aa * bb), np.nan)
