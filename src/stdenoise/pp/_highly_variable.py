"""Highly variable genes, chosen as in the published preprocessing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scanpy as sc

from stdenoise._base import keys as _keys
from stdenoise._base.device import keeping_threads
from stdenoise._io.read import read_counts

if TYPE_CHECKING:
    from anndata import AnnData

MIN_TOTAL = 100
"""Genes with no more counts in all are no candidates."""


def mark_highly_variable(adata: AnnData, n_top_genes: int, layer: str | None) -> None:
    """Mark highly variable genes in `var`, chosen as in the published preprocessing."""
    total = np.asarray(read_counts(adata, layer).sum(axis=0)).ravel()
    candidates = np.flatnonzero(total > MIN_TOTAL)
    if len(candidates) < n_top_genes:
        raise ValueError(
            f"n_top_genes={n_top_genes}: only {len(candidates)} of {adata.n_vars} genes have more than {MIN_TOTAL} "
            "counts. Ask for fewer, or leave it out to model all genes."
        )
    with keeping_threads():
        table = sc.pp.highly_variable_genes(
            adata[:, candidates], flavor="seurat_v3", n_top_genes=n_top_genes, layer=layer, inplace=False
        )
    marked = np.zeros(adata.n_vars, dtype=bool)
    marked[candidates[table[_keys.HIGHLY_VARIABLE].to_numpy()]] = True
    adata.var[_keys.HIGHLY_VARIABLE] = marked
