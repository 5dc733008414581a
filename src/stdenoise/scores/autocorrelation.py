"""Spatial autocorrelation: Moran's I and Geary's C of many genes at once.

Both follow from one number per gene, `z'Wz` of the centred values `z`. It needs each pair of neighbours once, with the weights of both
directions added up: half the work for an undirected graph. A permutation moves the graph, not the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise.graph.csr import SpatialGraph, to_csr_tensor

_SMALLEST_CV = 1e-6
"""Values that vary by less than this share of their size are constant up to the rounding of float32."""


@dataclass(frozen=True)
class Weights:
    """Weights `W` of a graph of `n` spots, and their sums.

    Parameters
    ----------
    pairs
        `W + W'` above the diagonal, scipy CSR, float64, shape `(n, n)`.
    degree
        Sum of the weights from and to each spot, shape `(n,)`.
    s0, s1, s2
        Sum of the weights; half the sum of the squares of `W + W'`; sum of the squared degrees.
    """

    pairs: sparse.csr_matrix
    degree: np.ndarray
    s0: float
    s1: float
    s2: float

    @classmethod
    def of(cls, graph: SpatialGraph, kind: str) -> Weights:
        """Weigh the edges: 1 each (`"binary"`), or such that each spot receives 1 in all (`"row"`)."""
        matrix = graph.to_scipy().astype(np.float64)
        if kind == "row":
            # A spot without neighbours keeps its empty row.
            degree = np.diff(matrix.indptr)
            matrix.data = 1.0 / np.repeat(degree, degree)
        both = (matrix + matrix.T).tocsr()
        degree = np.asarray(both.sum(axis=1)).ravel()
        return cls(
            sparse.triu(both, k=1, format="csr"),
            degree,
            float(matrix.sum()),
            float((both.data**2).sum() / 2),
            float((degree**2).sum()),
        )

    def permuted(self, order: np.ndarray) -> Weights:
        """Return the weights of the graph whose spot `i` stands where spot `order[i]` stood."""
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order), dtype=order.dtype)
        # Row by row: a permuted row has the old entries under new numbers, in any order.
        length = np.diff(self.pairs.indptr)[order]
        indptr = np.concatenate([[0], np.cumsum(length)])
        source = np.repeat(self.pairs.indptr[order] - indptr[:-1], length) + np.arange(indptr[-1])
        pairs = sparse.csr_matrix(
            (self.pairs.data[source], rank[self.pairs.indices[source]], indptr), shape=self.pairs.shape
        )
        return Weights(pairs, self.degree[order], self.s0, self.s1, self.s2)

    def expected(self, kind: str) -> float:
        """Expectation of the statistic where there is no autocorrelation."""
        return 1.0 if kind == "geary" else -1.0 / (len(self.degree) - 1)

    def variance(self, kind: str) -> float:
        """Variance of the statistic of independent normal values (Cliff and Ord 1981)."""
        n, s0, s1, s2 = len(self.degree), self.s0, self.s1, self.s2
        if kind == "geary":
            return ((2 * s1 + s2) * (n - 1) - 4 * s0**2) / (2 * (n + 1) * s0**2)
        return (n**2 * s1 - n * s2 + 3 * s0**2) / ((n - 1) * (n + 1) * s0**2) - 1 / (n - 1) ** 2


def centre(values: Tensor) -> tuple[Tensor, Tensor]:
    """Centre the columns in place.

    Returns
    -------
    The centred values, and the sum of squares of each column; NaN for a column that is constant up to rounding.
    """
    squares = values.square().sum(0)
    values -= values.mean(0)
    spread = values.square().sum(0)
    return values, spread.masked_fill(spread <= _SMALLEST_CV**2 * squares, torch.nan)


def autocorrelation(kind: str, panels: Sequence[Tensor], spread: Tensor, weights: Weights) -> Tensor:
    """Moran's I (`"moran"`) or Geary's C (`"geary"`) of every gene, float64, shape `(n_genes,)`.

    Parameters
    ----------
    kind
        Which of the two.
    panels
        Centred values, each of shape `(n_spots, n_part)`; narrow ones stay in cache.
    spread
        Sums of squares of the genes of all panels, shape `(n_genes,)`.
    weights
        Of the graph.
    """
    first = panels[0]
    n_spots = len(first)
    pairs = to_csr_tensor(weights.pairs, dtype=first.dtype, device=first.device)
    product = torch.cat([(panel * (pairs @ panel)).sum(0) for panel in panels]).double()
    if kind == "moran":
        return n_spots / weights.s0 * product / spread
    degree = torch.tensor(weights.degree, dtype=first.dtype, device=first.device)[:, None]
    squares = torch.cat([(degree * panel * panel).sum(0) for panel in panels]).double()
    return (n_spots - 1) / (2 * weights.s0) * (squares - 2 * product) / spread


def permutations(
    kind: str, panels: Sequence[Tensor], spread: Tensor, weights: Weights, *, n_permutations: int, seed: int
) -> Iterator[Tensor]:
    """Yield the statistic of every gene after each of several permutations of the spots, the same ones for all genes."""
    n_spots = len(panels[0])
    for permutation in range(n_permutations):
        order = np.random.default_rng([seed, permutation]).permutation(n_spots).astype(np.int32)
        yield autocorrelation(kind, panels, spread, weights.permuted(order))
