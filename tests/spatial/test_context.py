import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from stdenoise._io.read import read_context, read_features, read_graph

NOTHING = {"graph_key": None, "library_key": None, "spatial_key": None, "features_key": None}
CPU = torch.device("cpu")


def test_only_what_is_asked_for_is_read(irregular):
    assert set(vars(read_context(irregular, **NOTHING, device=CPU)).values()) == {None}


def test_everything_is_read_in_the_order_of_the_spots(irregular):
    irregular.obsm["image"] = np.arange(82.0).reshape(41, 2)
    keys = {"graph_key": "spatial", "library_key": "library", "spatial_key": "spatial", "features_key": "image"}
    context = read_context(irregular, **keys, device=CPU)
    np.testing.assert_array_equal(context.coordinates, irregular.obsm["spatial"])
    np.testing.assert_array_equal(context.features, irregular.obsm["image"])
    np.testing.assert_array_equal(context.libraries, irregular.obs["library"].cat.codes)
    np.testing.assert_array_equal(
        context.graph.to_scipy().toarray(), irregular.obsp["spatial_connectivities"].toarray()
    )


def test_a_spot_without_neighbours_has_a_library_of_its_own(irregular):
    context = read_context(irregular, **{**NOTHING, "graph_key": "spatial"}, device=CPU).without_neighbors(41)
    assert context.graph.n_edges == 0
    assert len(context.libraries.unique()) == 41


def test_dense_graphs_are_read(hexagonal):
    expected = read_graph(hexagonal, "spatial").toarray()
    hexagonal.obsp["dense_connectivities"] = expected
    np.testing.assert_array_equal(read_graph(hexagonal, "dense").toarray(), expected)


@pytest.mark.parametrize(
    "form", [np.asarray, lambda x: x.astype(int), sparse.csr_matrix, lambda x: pd.DataFrame(x, columns=["a", "b"])]
)
def test_forms_of_features(hexagonal, form):
    values = np.arange(122.0).reshape(61, 2)
    features = form(values)
    if isinstance(features, pd.DataFrame):
        features.index = hexagonal.obs_names
    hexagonal.obsm["image"] = features
    np.testing.assert_array_equal(read_features(hexagonal, "image"), values)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.full((61, 2), np.nan), ValueError, r"adata.obsm\['image'\] has NaN or infinite values in 61 spots"),
        (np.zeros((61, 0)), ValueError, r"must have shape \(n_spots, n_features\), not \(61, 0\)"),
        (np.zeros((61, 2, 2)), ValueError, r"must have shape \(n_spots, n_features\), not \(61, 2, 2\)"),
        (np.full((61, 2), "a"), TypeError, "must hold numbers"),
    ],
)
def test_bad_features(hexagonal, value, error, message):
    hexagonal.obsm["image"] = value
    with pytest.raises(error, match=message):
        read_features(hexagonal, "image")


def test_missing_features(hexagonal):
    with pytest.raises(KeyError, match=r"'image' is not in adata.obsm, which has 'spatial'.*st.pp.image_features"):
        read_features(hexagonal, "image")
