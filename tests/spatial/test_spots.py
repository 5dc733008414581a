import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from stdenoise._io.read import read_features, read_graph, read_tissue

NOTHING = {"graph_key": None, "library_key": None, "spatial_key": None, "features_key": None}
CPU = torch.device("cpu")


def test_what_is_asked_for_is_read_in_the_order_of_the_spots(irregular):
    nothing = read_tissue(irregular, **NOTHING, device=CPU)
    assert (nothing.graphs, nothing.arrays, nothing.libraries) == ({}, {}, None)
    for name in ("graph", "coordinates", "features"):
        assert not nothing.has(name)
        with pytest.raises(ValueError, match=name):
            getattr(nothing, name)
    irregular.obsm["image"] = np.arange(82.0).reshape(41, 2)
    keys = {"graph_key": "spatial", "library_key": "library", "spatial_key": "spatial", "features_key": "image"}
    tissue = read_tissue(irregular, **keys, device=CPU)
    np.testing.assert_array_equal(tissue.coordinates, irregular.obsm["spatial"])
    np.testing.assert_array_equal(tissue.features, irregular.obsm["image"])
    np.testing.assert_array_equal(tissue.libraries, irregular.obs["library"].cat.codes)
    links = irregular.obsp["spatial_connectivities"].toarray()
    np.testing.assert_array_equal(tissue.graph.to_scipy().toarray(), links)
    irregular.obsp["dense_connectivities"] = links
    np.testing.assert_array_equal(read_graph(irregular, "dense").toarray(), links)
    order = np.random.default_rng(0).permutation(41)
    moved = tissue.permuted(order)
    np.testing.assert_array_equal(moved.graph.to_scipy().toarray(), links[np.ix_(order, order)])
    for name in ("coordinates", "features", "libraries"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(tissue, name)[order])


def test_a_spot_without_neighbours_has_a_library_of_its_own(irregular):
    tissue = read_tissue(irregular, **{**NOTHING, "graph_key": "spatial"}, device=CPU).without_neighbors(41)
    assert tissue.graph.n_edges == 0
    assert len(tissue.libraries.unique()) == 41


def test_forms_of_features(hexagonal):
    values = np.arange(122.0).reshape(61, 2)
    frame = pd.DataFrame(values, columns=["a", "b"], index=hexagonal.obs_names)
    for features in (values, values.astype(int), sparse.csr_matrix(values), frame):
        hexagonal.obsm["image"] = features
        np.testing.assert_array_equal(read_features(hexagonal, "image"), values)


def test_bad_features(hexagonal):
    for value, error, message in (
        (np.full((61, 2), np.nan), ValueError, r"\['image'\] has NaN or infinite values in 61 spots"),
        (np.zeros((61, 0)), ValueError, r"\(61, 0\)"),
        (np.zeros((61, 2, 2)), ValueError, r"\(61, 2, 2\)"),
        (np.full((61, 2), "a"), TypeError, "must hold real numbers"),
    ):
        hexagonal.obsm["image"] = value
        with pytest.raises(error, match=message):
            read_features(hexagonal, "image")
    with pytest.raises(KeyError, match=r"'photo' is not in adata.obsm, which has .*st.pp.image_features"):
        read_features(hexagonal, "photo")
