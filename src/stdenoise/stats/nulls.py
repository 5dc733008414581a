"""Tissues in which there is nothing to find."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def permute_spots(libraries: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw an order of the spots that moves each within its library.

    Parameters
    ----------
    libraries
        Library of each spot, shape `(n_spots,)`.
    rng
        Source of randomness.
    """
    order = np.arange(len(libraries))
    for library in np.unique(libraries):
        members = np.flatnonzero(libraries == library)
        order[members] = rng.permutation(members)
    return order


def redraw(counts: sparse.csr_matrix, rng: np.random.Generator) -> sparse.csr_matrix:
    """Draw Poisson counts with the gene means and size factors of the given ones, and nothing else.

    Parameters
    ----------
    counts
        Shape `(n_spots, n_genes)`.
    rng
        Source of randomness.
    """
    n_spots, n_genes = counts.shape
    per_spot = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    per_gene = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    # Independent Poisson counts are a Poisson total, dealt out one by one: the work is in the molecules, not the entries.
    total = rng.poisson(per_gene)
    spot = rng.choice(n_spots, size=int(total.sum()), p=per_spot / per_spot.sum())
    gene = np.repeat(np.arange(n_genes), total)
    drawn = sparse.coo_matrix((np.ones(len(spot), dtype=counts.dtype), (spot, gene)), shape=counts.shape).tocsr()
    drawn.sum_duplicates()
    return drawn
