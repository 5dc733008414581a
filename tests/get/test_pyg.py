import numpy as np
import pytest
import torch
from scipy import sparse

import stdenoise as st


def test_counts_are_dense_in_single_precision(irregular):
    data = st.get.pyg(irregular)
    assert data.x.dtype == torch.float32
    np.testing.assert_array_equal(data.x, irregular.X.toarray())


@pytest.mark.parametrize("form", [lambda x: x.toarray(), lambda x: x.tocsc(), lambda x: x.astype(np.int64)])
def test_form_of_the_counts_does_not_matter(hexagonal, form):
    expected = hexagonal.X.toarray()
    hexagonal.X = form(hexagonal.X)
    np.testing.assert_array_equal(st.get.pyg(hexagonal).x, expected)


def test_edges_are_sender_and_receiver(hexagonal):
    # A directed graph tells the two apart: row i of the matrix lists those that send to spot i.
    directed = sparse.csr_matrix(([1.0, 1.0, 1.0], ([0, 0, 5], [3, 4, 2])), shape=(61, 61))
    hexagonal.obsp["spatial_connectivities"] = directed
    edges = st.get.pyg(hexagonal).edge_index
    assert edges.dtype == torch.int64
    assert edges.tolist() == [[3, 4, 2], [0, 0, 5]]


def test_edges_equal_the_graph_without_loops(irregular):
    graph = irregular.obsp["spatial_connectivities"].toarray() > 0
    irregular.obsp["spatial_connectivities"] = sparse.csr_matrix(graph + np.eye(41))
    data = st.get.pyg(irregular)
    rebuilt = np.zeros((41, 41), dtype=bool)
    rebuilt[data.edge_index[1], data.edge_index[0]] = True
    np.testing.assert_array_equal(rebuilt, graph)
    assert data.num_nodes == 41
    assert not data.has_self_loops()


def test_torch_geometric_computes_on_it(hexagonal):
    from torch_geometric.nn import SimpleConv

    data = st.get.pyg(hexagonal)
    summed = SimpleConv(aggr="sum")(data.x, data.edge_index)
    np.testing.assert_allclose(summed, (hexagonal.obsp["spatial_connectivities"] @ hexagonal.X).toarray(), rtol=1e-5)


@pytest.mark.parametrize("tissue", ["hexagonal", "volume"])
def test_positions(tissue, request):
    adata = request.getfixturevalue(tissue)
    np.testing.assert_allclose(st.get.pyg(adata).pos, adata.obsm["spatial"], rtol=1e-6)


def test_positions_under_another_key(hexagonal):
    hexagonal.obsm["centres"] = hexagonal.obsm["spatial"] + 1
    data = st.get.pyg(hexagonal, spatial_key="centres")
    np.testing.assert_allclose(data.pos, hexagonal.obsm["centres"], rtol=1e-6)


def test_no_positions_where_there_are_no_coordinates(hexagonal):
    del hexagonal.obsm["spatial"]
    assert st.get.pyg(hexagonal).pos is None


def test_genes_layer_and_graph_are_chosen(hexagonal):
    hexagonal.layers["double"] = 2 * hexagonal.X
    st.pp.spatial_graph(hexagonal, radius=180, key_added="wide")
    data = st.get.pyg(hexagonal, layer="double", genes=["gene7", "gene1"], graph_key="wide")
    np.testing.assert_array_equal(data.x, 2 * hexagonal[:, ["gene1", "gene7"]].X.toarray())
    assert data.num_edges == hexagonal.obsp["wide_connectivities"].nnz


def test_input_is_neither_changed_nor_shared(hexagonal, unchanged):
    hexagonal.X = hexagonal.X.toarray()
    hexagonal.obsm["spatial"] = hexagonal.obsm["spatial"].astype(np.float32)
    with unchanged(hexagonal):
        data = st.get.pyg(hexagonal)
        data.x += 1
        data.pos += 1
        data.edge_index += 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"graph_key": "spatail"}, KeyError, "'spatail_connectivities' is not in adata.obsp"),
        ({"layer": "raw"}, KeyError, "'raw' is not in adata.layers, which has 'true_mean'"),
        ({"layer": "true_mean"}, ValueError, "does not hold raw counts|looks log-transformed"),
        ({"genes": ["gnee2"]}, KeyError, "not in adata.var_names"),
        ({"genes": "foo"}, ValueError, "genes='foo' is not valid"),
        ({"spatial_key": "spatail"}, KeyError, "'spatail' is not in adata.obsm"),
    ],
    ids=str,
)
def test_bad_arguments(hexagonal, arguments, error, message):
    with pytest.raises(error, match=message):
        st.get.pyg(hexagonal, **arguments)


def test_gene_names_that_occur_twice(hexagonal):
    hexagonal.var_names = ["a"] * 2 + list("bcdefghijk")
    with pytest.raises(ValueError, match="occur more than once"):
        st.get.pyg(hexagonal, genes=["b"])


def test_no_graph(hexagonal):
    del hexagonal.obsp
    with pytest.raises(KeyError, match="Build the graph first"):
        st.get.pyg(hexagonal)
