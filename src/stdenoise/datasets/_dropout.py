"""Spatial dropout: counts lost at random, more of them near the edge of a square tissue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from stdenoise.datasets._patterns import EXTENT

EDGE_MODES = ("absolute", "additive")


@dataclass(frozen=True)
class Dropout:
    """One dropout setting.

    Parameters
    ----------
    overall
        Share of the counts that are lost.
    edge
        The same for spots near the edge of the tissue.
    width
        How far from the edge that reaches, in grid units.
    """

    overall: float
    edge: float
    width: float


SETTINGS = {1: Dropout(0, 0, 0), 2: Dropout(0.1, 0.2, 3), 3: Dropout(0.1, 0.3, 5), 4: Dropout(0.2, 0.5, 6)}


def dropout_rates(positions: np.ndarray, setting: int, edge_mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Chance of a count to be lost, per spot, and whether the spot is near the edge.

    With `edge_mode="additive"`, the rate of the setting's edge comes on top of the overall one.
    """
    dropout = SETTINGS[setting]
    in_band = np.minimum(positions, EXTENT - positions).min(axis=1) < dropout.width
    edge = dropout.edge + (dropout.overall if edge_mode == "additive" else 0)
    return np.where(in_band, edge, dropout.overall), in_band


def drop_out(
    counts: sparse.csr_matrix, rate: np.ndarray, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Lose each positive count with the rate of its spot; return what is left, and which were lost."""
    lost = rng.random(counts.nnz) < np.repeat(rate, np.diff(counts.indptr))
    kept, mask = (
        sparse.csr_matrix((values, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
        for values in (np.where(lost, 0, counts.data).astype(counts.dtype), lost)
    )
    kept.eliminate_zeros()
    mask.eliminate_zeros()
    return kept, mask
