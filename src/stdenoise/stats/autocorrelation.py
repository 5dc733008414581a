"""Spatial autocorrelation: Moran's I and Geary's C of many genes at once.

Both are a quadratic form `z'Bz / z'z` of the centred values `z`, up to a factor. `B` holds each pair of neighbours once, with the
weights of both directions added up: half the work for an undirected graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import embedding_bag

from stdenoise.spatial.graph import share_csr_tensor

_SMALLEST_CV = 1e-6
"""Values that vary by less than this share of their size are constant up to the rounding of float32."""

_WELL_CENTRED = 1e4
"""Up to this ratio of squared mean to variance, sums of float64 may be centred after they were taken."""

_ROWS = 1024
"""Spots of a block of rows: its dense values stay in cache."""


@dataclass(frozen=True)
class Weights:
    """Weights `W` of a graph of `n` spots, and their sums.

    Parameters
    ----------
    pairs
        `W + W'` above the diagonal, CSR, float64, shape `(n, n)`.
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
    def of(cls, adjacency: sparse.csr_matrix, kind: str) -> Weights:
        """Weigh the edges: 1 each (`"binary"`), or such that each spot receives 1 in all (`"row"`).

        Stored zeros and the diagonal are no edges; other values count as one edge.
        """
        pattern = adjacency
        if not pattern.has_canonical_format:
            pattern = pattern.copy()
            pattern.sum_duplicates()
        n_spots = pattern.shape[0]
        row, col = np.repeat(np.arange(n_spots, dtype=np.int32), np.diff(pattern.indptr)), pattern.indices
        keep = (pattern.data != 0) & (row != col)
        if not keep.all():
            row, col = row[keep], col[keep]
        received = np.bincount(row, minlength=n_spots)
        # A spot without neighbours keeps its empty row.
        share = 1.0 / np.maximum(received, 1) if kind == "row" else np.ones(n_spots)
        weight = share[row]
        above, below = np.flatnonzero(row < col), np.flatnonzero(row > col)
        pairs = _csr(row[above], col[above], weight[above], n_spots)
        pairs = pairs + _csr(col[below], row[below], weight[below], n_spots)
        degree = share * received + np.bincount(col, weight, n_spots)
        return cls(pairs, degree, float(weight.sum()), float((pairs.data**2).sum()), float((degree**2).sum()))

    def expected(self, kind: str) -> float:
        """Expectation of the statistic where there is no autocorrelation."""
        return 1.0 if kind == "geary" else -1.0 / (len(self.degree) - 1)

    def variance(self, kind: str) -> float:
        """Variance of the statistic of independent normal values (Cliff and Ord 1981)."""
        n, s0, s1, s2 = len(self.degree), self.s0, self.s1, self.s2
        if kind == "geary":
            return ((2 * s1 + s2) * (n - 1) - 4 * s0**2) / (2 * (n + 1) * s0**2)
        return (n**2 * s1 - n * s2 + 3 * s0**2) / ((n - 1) * (n + 1) * s0**2) - 1 / (n - 1) ** 2


def _csr(row: np.ndarray, col: np.ndarray, values: np.ndarray, n: int) -> sparse.csr_matrix:
    return sparse.coo_matrix((values, (row, col)), shape=(n, n)).tocsr()


class Statistic:
    """Moran's I (`"moran"`) or Geary's C (`"geary"`) over a graph: `factor * z'Bz / z'z`.

    Parameters
    ----------
    kind
        Which of the two.
    weights
        Of the graph.
    device
        Of the values that it is asked about.
    """

    def __init__(self, kind: str, weights: Weights, device: torch.device | str = "cpu") -> None:
        n_spots = len(weights.degree)
        form = weights.pairs
        self.factor = n_spots / weights.s0
        # Row plus column sums of B, and the sum of them, with which z'Bz follows from x'Bx.
        self.margin, self.total = weights.degree, weights.s0
        if kind == "geary":
            # Sum of w (z_i - z_j)^2: squares on the diagonal, products beside it. Its margins vanish.
            form = sparse.csr_matrix(sparse.diags(weights.degree) - 2 * form)
            self.factor = (n_spots - 1) / (2 * weights.s0)
            self.margin, self.total = np.zeros(n_spots), 0.0
        self.crow, self.col = (torch.tensor(part, device=device) for part in (form.indptr, form.indices))
        self.values = torch.tensor(form.data, device=device)

    def of_centred(self, centred: Tensor, spread: Tensor) -> Tensor:
        """Statistic of centred values, shape `(n_genes,)`.

        Parameters
        ----------
        centred
            Shape `(n_spots, n_genes)`, float64 or float32; narrow blocks stay in cache.
        spread
            Sum of squares of each column.
        """
        # The product with a CSR matrix; on a CPU this is several times faster than torch's own.
        product = embedding_bag(
            self.col,
            centred,
            self.crow,
            mode="sum",
            per_sample_weights=self.values.to(centred.dtype),
            include_last_offset=True,
        )
        return self.factor * product.mul_(centred).sum(0) / spread

    def of_sparse(self, matrix: sparse.csr_matrix) -> np.ndarray:
        """Statistic of the columns of a CSR matrix on the CPU, which never becomes dense; shape `(n_genes,)`.

        Columns whose mean is far larger than their spread come out inaccurate and are given as infinite: centre them first.
        """
        n_spots, n_genes = matrix.shape
        matrix = sparse.csr_matrix(
            (matrix.data.astype(np.float64, copy=False), matrix.indices, matrix.indptr), matrix.shape
        )
        values = share_csr_tensor(matrix)
        sums = torch.stack([torch.ones(n_spots, dtype=torch.float64), torch.from_numpy(self.margin)])
        linear, square, product = (torch.zeros(*shape, n_genes, dtype=torch.float64) for shape in ((2,), (), ()))
        for start in range(0, n_spots, _ROWS):
            stop = min(start + _ROWS, n_spots)
            here, begin = slice(matrix.indptr[start], matrix.indptr[stop]), matrix.indptr[start : stop + 1]
            block = (matrix.data[here], matrix.indices[here], begin - begin[0])
            dense = torch.from_numpy(sparse.csr_matrix(block, shape=(stop - start, n_genes)).toarray())
            first, last = int(self.crow[start]), int(self.crow[stop])
            neighbours = torch.sparse_csr_tensor(
                self.crow[start : stop + 1] - first,
                self.col[first:last],
                self.values[first:last],
                size=(stop - start, n_spots),
            )
            linear += sums[:, start:stop] @ dense
            # Sparse times sparse into a dense block: only what is not zero is multiplied.
            product += torch.addmm(torch.empty_like(dense), neighbours, values, beta=0).mul_(dense).sum(0)
            square += dense.square_().sum(0)
        mean = linear[0] / n_spots
        spread = square - n_spots * mean.square()
        statistic = self.factor * (product - mean * linear[1] + mean.square() * self.total) / spread
        statistic[n_spots * mean.square() > _WELL_CENTRED * spread] = torch.inf
        statistic[spread <= _SMALLEST_CV**2 * square] = torch.nan
        return np.asarray(statistic)

    def permuted(self, centred: Tensor, spread: Tensor, *, n_permutations: int, generator: torch.Generator) -> Tensor:
        """Statistic after permutations of the spots, shape `(n_permutations, n_genes)`.

        Parameters
        ----------
        centred, spread
            As for `of_centred`.
        n_permutations
            Number of permutations.
        generator
            On the CPU. Equal generators give the same permutations to every block of genes.
        """
        drawn = []
        for _ in range(n_permutations):
            order = torch.randperm(len(centred), generator=generator).to(centred.device)
            drawn.append(self.of_centred(centred.index_select(0, order), spread))
        return torch.stack(drawn)


def sparse_products() -> bool:
    """Whether this torch multiplies sparse matrices into a dense one on the CPU."""
    return bool(torch.backends.mkl.is_available())


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
