"""The one graph structure, and the products every graph method is made of."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_array

with warnings.catch_warnings():
    # torch says once per process that CSR tensors are in beta; take that once here, not in a user's notebook.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 1], [0], [1.0])


def to_csr_tensor(matrix: csr_matrix | csr_array, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Hand a scipy CSR matrix to torch, with 32-bit indices where they suffice.

    MKL and cuSPARSE take 32-bit indices as they are; 64-bit ones are converted again at every product.
    """
    index = np.int32 if max(matrix.nnz, *matrix.shape) < np.iinfo(np.int32).max else np.int64
    # torch.tensor copies: the tensors never alias the caller's arrays.
    return torch.sparse_csr_tensor(
        torch.tensor(matrix.indptr.astype(index, copy=False)),
        torch.tensor(matrix.indices.astype(index, copy=False)),
        torch.tensor(matrix.data).to(dtype),
        size=matrix.shape,
        device=device,
    )


def share_csr_tensor(matrix: csr_matrix | csr_array) -> Tensor:
    """Show a scipy CSR matrix to torch for reading only: the tensor lives on the CPU and shares its memory."""
    # Read-only memory is copied: torch has no tensors of it.
    crow, col, values = (
        torch.from_numpy(part if part.flags.writeable else part.copy())
        for part in (matrix.indptr, matrix.indices, matrix.data)
    )
    return torch.sparse_csr_tensor(crow, col, values, size=matrix.shape)


def transpose_csr(matrix: Tensor) -> Tensor:
    """Transpose of a CSR tensor of constants, again CSR."""
    if matrix.device.type != "cpu":
        return matrix.transpose(0, 1).to_sparse_csr()
    # scipy counts where torch sorts.

    parts = (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy())
    return share_csr_tensor(csr_matrix(parts, shape=tuple(matrix.shape)).tocsc().transpose())


def with_values(matrix: Tensor, values: Tensor) -> Tensor:
    """CSR tensor of the same pattern with other values."""
    return torch.sparse_csr_tensor(matrix.crow_indices(), matrix.col_indices(), values, size=matrix.shape)


def row_sum(matrix: Tensor) -> Tensor:
    """Sum of each row of a CSR tensor, shape `(n_rows,)`."""
    return (matrix @ matrix.values().new_ones(matrix.shape[1], 1)).squeeze(1)


def with_transpose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a CSR tensor and its transpose, both dense where more than a quarter of the entries is stored.

    From there on a dense matrix takes no more memory than a sparse one and its transpose, and its products are faster.
    """
    if len(matrix.values()) > matrix.shape[0] * matrix.shape[1] / 4:
        matrix = matrix.to_dense()
        return matrix, matrix.t()
    return matrix, transpose_csr(matrix)


def select_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """Take rows of a CSR tensor, shape `(len(rows), n_columns)`."""
    crow, col, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    counts = crow.diff()[rows]
    taken = torch.zeros(len(rows) + 1, dtype=crow.dtype, device=crow.device)
    torch.cumsum(counts, 0, out=taken[1:])
    # Position of each kept entry: its offset within its row, counted from where that row begins.
    shift = torch.repeat_interleave(crow[rows] - taken[:-1], counts)
    position = shift + torch.arange(len(shift), device=crow.device)
    return torch.sparse_csr_tensor(taken, col[position], values[position], size=(len(rows), matrix.shape[1]))


@dataclass(frozen=True)
class SpatialGraph:
    """Directed graph in CSR form: row `i` lists the spots that send to spot `i`.

    Parameters
    ----------
    crow
        Row pointers, shape `(n_spots + 1,)`.
    col
        Source spot of each edge, shape `(n_edges,)`, sorted within a row.
    n_senders
        Spots that may send; the receivers are the first of them. The same spots if not given.
    rings
        Of a patch, whose spots come ring by ring: how many of them lie within 0, 1, 2 ... hops of its core, and how many edges those receive.
    """

    crow: Tensor
    col: Tensor
    n_senders: int | None = None
    rings: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_scipy(cls, adjacency: csr_matrix | csr_array, *, device: torch.device | str = "cpu") -> SpatialGraph:
        """Take the pattern of a scipy matrix; stored zeros and the diagonal are no edges."""
        pattern = adjacency.copy()
        pattern.sum_duplicates()
        pattern = pattern.tocoo()
        keep = (pattern.data != 0) & (pattern.row != pattern.col)
        return cls.from_edges(pattern.row[keep], pattern.col[keep], adjacency.shape[0], device)

    @classmethod
    def from_edges(
        cls, row: np.ndarray, col: np.ndarray, n_spots: int, device: torch.device | str = "cpu"
    ) -> SpatialGraph:
        """Make a graph of edges in any order: receiver and source of each."""
        order = np.lexsort((col, row))
        crow = np.zeros(n_spots + 1, dtype=np.int64)
        np.cumsum(np.bincount(row, minlength=n_spots), out=crow[1:])
        index = torch.int32 if len(row) < np.iinfo(np.int32).max else torch.int64
        return cls(
            torch.from_numpy(crow).to(device=device, dtype=index),
            torch.from_numpy(col[order]).to(device=device, dtype=index),
        )

    @property
    def n_spots(self) -> int:
        """Number of spots that receive."""
        return len(self.crow) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Number of spots that receive, and of spots that send."""
        return self.n_spots, self.n_spots if self.n_senders is None else self.n_senders

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return len(self.col)

    @cached_property
    def row(self) -> Tensor:
        """Receiving spot of each edge, shape `(n_edges,)`."""
        counts = self.crow.diff()
        return torch.repeat_interleave(torch.arange(self.n_spots, device=counts.device, dtype=counts.dtype), counts)

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        # A stable sort by source keeps receivers in order: (row pointers, receivers, edge of each entry).
        order = torch.argsort(self.col, stable=True)
        crow = self.crow.new_zeros(self.shape[1] + 1)
        crow[1:] = torch.bincount(self.col, minlength=self.shape[1]).cumsum(0)
        return crow, self.row[order], order

    def within(self, n_hops: int) -> SpatialGraph:
        """Return the edges of a patch to spots within some hops of its core: what a layer needs that so many others follow."""
        if n_hops + 1 >= len(self.rings) or self.rings[n_hops][0] == self.n_spots:
            return self
        n_spots, n_edges = self.rings[n_hops]
        return SpatialGraph(self.crow[: n_spots + 1], self.col[:n_edges], self.rings[n_hops + 1][0])

    def with_self_loops(self) -> SpatialGraph:
        """Return the same graph with one loop on every spot."""
        loops = np.arange(self.n_spots)
        row, col = (torch.cat([x.cpu().long(), torch.from_numpy(loops)]).numpy() for x in (self.row, self.col))
        return self.from_edges(row, col, self.n_spots, self.col.device)

    def permuted(self, order: np.ndarray) -> SpatialGraph:
        """Return the same graph with its spots in another order; spot `i` of it is spot `order[i]` of this one."""
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        row, col = (place[x.cpu().numpy()] for x in (self.row, self.col))
        return self.from_edges(row, col, self.n_spots, self.col.device)

    def to(self, device: torch.device | str) -> SpatialGraph:
        """Return the graph on another device."""
        return replace(self, crow=self.crow.to(device), col=self.col.to(device))

    def to_scipy(self) -> csr_matrix:
        """Return the pattern as a scipy matrix of ones."""
        parts = (np.ones(self.n_edges, dtype=np.float32), self.col.cpu().numpy(), self.crow.cpu().numpy())
        return csr_matrix(parts, shape=self.shape)

    def matrix(self, values: Tensor) -> Tensor:
        """CSR tensor with these edge values, of the shape of the graph."""
        return torch.sparse_csr_tensor(self.crow, self.col, values, size=self.shape)

    def transposed_matrix(self, values: Tensor) -> Tensor:
        """CSR tensor of the reversed edges with these edge values."""
        crow, col, order = self._transposed
        return torch.sparse_csr_tensor(crow, col, values[order], size=self.shape[::-1])

    def row_sum(self, values: Tensor) -> Tensor:
        """Sum edge values over the edges that each spot receives; sorted segments, no atomics."""
        return (self.matrix(values) @ values.new_ones(self.shape[1], 1)).squeeze(1)

    def col_sum(self, values: Tensor) -> Tensor:
        """Sum edge values over the edges that each spot sends."""
        return (self.transposed_matrix(values) @ values.new_ones(self.n_spots, 1)).squeeze(1)


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: SpatialGraph, weights: Tensor, values: Tensor) -> Tensor:
        ctx.graph = graph
        ctx.save_for_backward(weights, values)
        return graph.matrix(weights) @ values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (grad,) = grads
        weights, values = ctx.saved_tensors
        grad = grad.contiguous()
        d_weights = d_values = None
        if ctx.needs_input_grad[1]:
            # The gradient of an edge is a dot product of two rows: E numbers, never E rows.
            pattern = ctx.graph.matrix(torch.zeros_like(weights))
            d_weights = torch.sparse.sampled_addmm(pattern, grad, values.t(), beta=0.0).values()
        if ctx.needs_input_grad[2]:
            d_values = ctx.graph.transposed_matrix(weights) @ grad
        return None, d_weights, d_values


def aggregate(graph: SpatialGraph, weights: Tensor, values: Tensor) -> Tensor:
    """Weighted sum over the edges each spot receives.

    Parameters
    ----------
    graph
        The graph, `E` edges.
    weights
        Edge weights, shape `(E,)`.
    values
        Values of the spots that send, shape `(n_senders, k)`.

    Returns
    -------
    Shape `(n_spots, k)`; differentiable in `weights` and `values`.
    """
    return _Aggregate.apply(graph, weights, values)  # type: ignore[no-any-return, no-untyped-call]


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, weight: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ grads[0].contiguous()


def sparse_linear(matrix: Tensor, transposed: Tensor, weight: Tensor) -> Tensor:
    """Multiply a constant matrix with a weight; its transpose is kept for the gradient.

    Parameters
    ----------
    matrix, transposed
        CSR or dense tensors of shape `(n, k)` and `(k, n)`: constants, they get no gradient.
    weight
        Shape `(k, m)`.
    """
    return _SparseLinear.apply(matrix, transposed, weight)  # type: ignore[no-any-return, no-untyped-call]
