import numpy as np
import pytest
import torch
from scipy import sparse
from torch_geometric.nn import SimpleConv

import stdenoise as st


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.toarray(), lambda x: x.tocsc(), lambda x: x.astype(int)])
def test_counts_are_dense_in_single_precision_whatever_their_form(irregular, form):
    expected = irregular.X.toarray()
    irregular.X = form(irregular.X)
    x = st.get.pyg(irregular).x
    assert x.dtype == torch.float32
    np.testing.assert_array_equal(x, expected)


def test_edges_are_sender_and_receiver_without_loops(hexagonal):
    # A directed graph tells the two apart: row i of the matrix lists those that send to spot i.
    directed = sparse.csr_matrix(([1.0, 1.0, 1.0, 1.0], ([0, 0, 5, 7], [3, 4, 2, 7])), shape=(61, 61))
    hexagonal.obsp["spatial_connectivities"] = directed
    data = st.get.pyg(hexagonal)
    assert data.edge_index.dtype == torch.int64
    assert data.edge_index.tolist() == [[3, 4, 2], [0, 0, 5]]
    assert data.num_nodes == 61


def test_torch_geometric_computes_on_it(irregular):
    data = st.get.pyg(irregular)
    summed = SimpleConv(aggr="sum")(data.x, data.edge_index)
    np.testing.assert_allclose(summed, (irregular.obsp["spatial_connectivities"] @ irregular.X).toarray(), rtol=1e-5)


def test_positions_where_there_are_coordinates(hexagonal, volume):
    hexagonal.obsm["centres"] = hexagonal.obsm["spatial"] + 1
    for adata, key in ((hexagonal, "spatial"), (volume, "spatial"), (hexagonal, "centres")):
        np.testing.assert_allclose(st.get.pyg(adata, spatial_key=key).pos, adata.obsm[key], rtol=1e-6)
    hexagonal.obsm["X_spatial"] = hexagonal.obsm.pop("spatial")
    np.testing.assert_allclose(st.get.pyg(hexagonal).pos, hexagonal.obsm["X_spatial"], rtol=1e-6)
    del hexagonal.obsm["X_spatial"]
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


def test_bad_arguments(hexagonal):
    for arguments, error, message in [
        ({"graph_key": "spatail"}, KeyError, "'spatail_connectivities'.*Build the graph first"),
        ({"layer": "raw"}, KeyError, "'raw'.*'true_mean'"),
        ({"layer": "true_mean"}, ValueError, "raw counts"),
        ({"genes": ["gnee2"]}, KeyError, "gnee2"),
        ({"genes": "foo"}, ValueError, "'foo'"),
        ({"spatial_key": "spatail"}, KeyError, "'spatail'"),
    ]:
        with pytest.raises(error, match=message):
            st.get.pyg(hexagonal, **arguments)
    hexagonal.var_names = ["a"] * 2 + list("bcdefghijk")
    with pytest.raises(ValueError, match="more than once"):
        st.get.pyg(hexagonal, genes=["b"])
