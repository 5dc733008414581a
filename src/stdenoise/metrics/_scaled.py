"""Matrices on the scale of a comparison, and a choice among their genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stdenoise._io.expression import Expression, read_expression
from stdenoise.spatial.normalize import Matrix

if TYPE_CHECKING:
    from anndata import AnnData

BLOCK_ENTRIES = 2**22
"""Entries of a dense block, 32 MB."""


def scaled(expression: Expression, scale: str) -> Matrix:
    """Bring values to `scale`; counts that have no logarithm are an error."""
    if scale == "log1p" and expression.scale == "counts" and expression.values.min() < 0:
        raise ValueError(
            f"{expression.where} has negative values (smallest {expression.values.min():g}), "
            "so it does not hold counts to be normalised; pass scale='stored' to take the values as they are."
        )
    return expression.on_scale(scale)


def gene_positions(
    adata: AnnData, layer: str | None, expression: Expression, genes: Sequence[str] | str | None
) -> np.ndarray:
    """Columns of the chosen genes in what was read from a layer, all of them for `None`.

    Genes are chosen after normalisation, so that a choice of genes does not change the values of a gene.
    """
    if genes is None:
        return np.arange(len(expression.genes))
    chosen = read_expression(adata, layer, genes=genes).genes
    return np.asarray(expression.genes.get_indexer(chosen))
