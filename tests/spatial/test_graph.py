import numpy as np
import pytest
import torch
from scipy import sparse
from torch.autograd import gradcheck

from stdenoise.spatial.graph import (
    SpatialGraph,
    aggregate,
    select_rows,
    sparse_linear,
    to_csr_tensor,
    transpose_csr,
    with_transpose,
)

# Spot 0 receives from 1 and 2, spot 1 from 0, spot 3 from 2; spot 2 receives nothing.
ADJACENCY = sparse.csr_array(np.array([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=float))


@pytest.fixture
def graph():
    return SpatialGraph.from_scipy(ADJACENCY)


def test_rows_receive(graph):
    assert graph.crow.tolist() == [0, 2, 3, 3, 4]
    assert graph.col.tolist() == [1, 2, 0, 2]
    assert graph.row.tolist() == [0, 0, 1, 3]
    assert (graph.n_spots, graph.n_edges) == (4, 4)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    dense = graph.matrix(values).to_dense()
    assert torch.equal(graph.transposed_matrix(values).to_dense(), dense.T)
    assert torch.equal(graph.row_sum(values), dense.sum(1))
    assert torch.equal(graph.col_sum(values), dense.sum(0))


def test_takes_the_pattern_only():
    values, columns, pointers = [0.5, 0.25, 1.0, 0.0, -3.0], [1, 1, 1, 2, 0], [0, 2, 4, 5]
    messy = sparse.csr_matrix((values, columns, pointers), shape=(3, 3))
    graph = SpatialGraph.from_scipy(messy)
    # The two entries (0, 1) are one edge; the loop (1, 1) and the stored zero (1, 2) are none.
    assert list(zip(graph.row.tolist(), graph.col.tolist(), strict=True)) == [(0, 1), (2, 0)]


def test_self_loops(graph):
    looped = graph.with_self_loops()
    assert torch.equal(looped.matrix(torch.ones(8)).to_dense(), torch.tensor(ADJACENCY.toarray() + np.eye(4)).float())
    assert looped.col.dtype == graph.col.dtype
    # Sorted within a row.
    assert looped.col.tolist() == [0, 1, 2, 0, 1, 2, 2, 3]


def test_aggregate_is_a_matrix_product_both_ways(graph):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_()
    values = torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()
    torch.testing.assert_close(aggregate(graph, weights, values), graph.matrix(weights.detach()).to_dense() @ values)
    assert gradcheck(lambda w, v: aggregate(graph, w, v), (weights, values))
    # Only the gradients that are asked for.
    (alone,) = torch.autograd.grad(aggregate(graph, weights.detach(), values).sum(), [values])
    torch.testing.assert_close(alone, graph.matrix(weights.detach()).to_dense().sum(0)[:, None].expand(4, 3))


@pytest.mark.parametrize(("n_stored", "layout"), [(3, torch.sparse_csr), (4, torch.strided)])
def test_more_than_a_quarter_of_the_entries_makes_a_matrix_dense(n_stored, layout):
    dense = torch.zeros(3, 4)
    dense.view(-1)[:n_stored] = 2.0
    pair = with_transpose(dense.to_sparse_csr())
    assert [part.layout for part in pair] == [layout, layout]
    for part, expected in zip(pair, (dense, dense.t()), strict=True):
        torch.testing.assert_close(part if layout == torch.strided else part.to_dense(), expected)


def test_sparse_linear():
    matrix = torch.tensor([[0, 2.0, 0], [1, 0, 3]], dtype=torch.float64).to_sparse_csr()
    weight = torch.arange(12, dtype=torch.float64).reshape(3, 4).requires_grad_()
    torch.testing.assert_close(sparse_linear(matrix, transpose_csr(matrix), weight), matrix.to_dense() @ weight)
    assert gradcheck(lambda w: sparse_linear(matrix, transpose_csr(matrix), w), weight)


def test_select_rows():
    matrix = torch.tensor([[0, 2.0, 0], [1, 0, 3], [0, 0, 0], [4, 5, 6]])
    for rows in ([], [2], [3, 0, 0, 1], [0, 1, 2, 3]):
        rows = torch.tensor(rows, dtype=torch.long)
        assert torch.equal(select_rows(matrix.to_sparse_csr(), rows).to_dense(), matrix[rows])


def test_to_csr_tensor_copies_and_narrows_the_index():
    matrix = sparse.csr_matrix(np.array([[0, 2], [3, 0]], dtype=np.int64))
    matrix.indices = matrix.indices.astype(np.int64)
    matrix.indptr = matrix.indptr.astype(np.int64)
    tensor = to_csr_tensor(matrix, dtype=torch.float32)
    matrix.data[:] = 0
    assert tensor.to_dense().tolist() == [[0, 2], [3, 0]]
    assert tensor.crow_indices().dtype == tensor.col_indices().dtype == torch.int32
