import numpy as np
import pandas as pd
import pytest

import stdenoise as st
from stdenoise._io.read import layers_of

SUBSET = ["gene1", "gene7", "gene10"]


@pytest.fixture(scope="module")
def adata():
    """A tissue with a result of all genes, and one of some; only to be read."""
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    st.pp.spatial_graph(adata, radius=120)
    adata.var["length"] = np.arange(12)
    small = {"n_hidden": 8, "n_latent": 3, "n_epochs": 3, "lr": 1e-2, "gate_reduction": 4}
    st.tl.denoise(adata, **small)
    st.tl.denoise(adata, genes=SUBSET, key_added="mine", **small)
    return adata


def test_all_genes_with_the_spots_and_what_belongs_to_them(adata):
    result = st.get.denoised(adata)
    np.testing.assert_array_equal(result.X, adata.layers["dusted_mean"])
    assert set(layers_of(result)) == {"dispersion", "dropout"}
    for name in layers_of(result):
        np.testing.assert_array_equal(result.layers[name], adata.layers[f"dusted_{name}"])
    assert result.var_names.equals(adata.var_names)
    pd.testing.assert_frame_equal(result.obs, adata.obs)
    assert set(result.obsm) == {"spatial", "X_dusted"}
    for name in result.obsm:
        np.testing.assert_array_equal(result.obsm[name], adata.obsm[name])
    assert set(result.uns) == {"dusted"}
    assert result.uns["dusted"]["scale"] == "counts"


def test_some_genes_under_their_key(adata, reload):
    result = st.get.denoised(adata, "mine")
    assert list(result.var_names) == SUBSET
    assert list(result.var["length"]) == [1, 7, 10]
    np.testing.assert_array_equal(result.X, adata.obsm["mine_mean"].to_numpy())
    assert set(layers_of(result)) == {"dispersion", "dropout"}
    for name in layers_of(result):
        np.testing.assert_array_equal(result.layers[name], adata.obsm[f"mine_{name}"].to_numpy())
    assert set(result.obsm) == {"spatial", "X_mine"}
    np.testing.assert_array_equal(reload(result, ".h5ad").X, result.X)


def test_a_result_of_the_mean_alone_and_coordinates_under_the_other_name(hexagonal):
    hexagonal.obsm["X_spatial"] = hexagonal.obsm["spatial"]
    del hexagonal.obsm["spatial"]
    st.tl.denoise(hexagonal, "gene_mean")
    result = st.get.denoised(hexagonal, "gene_mean")
    assert not result.layers
    assert set(result.obsm) == {"X_spatial"}


@pytest.mark.parametrize("key", ["dusted", "mine"])
def test_changes_to_the_result_do_not_reach_back(adata, key, unchanged):
    with unchanged(adata):
        result = st.get.denoised(adata, key)
        result.X[:] = -1
        result.layers["dispersion"][:] = -1
        result.obs["region"] = "nowhere"
        result.var["length"] = -1
        for name in result.obsm:
            result.obsm[name][:] = -1
        result.uns[key]["params"]["alpha"] = -1
        result.uns[key]["history"]["loss"][:] = -1


def test_a_view_of_spots_and_genes(adata):
    result = st.get.denoised(adata[10:20, ["gene7", "gene0", "gene1"]], "mine")
    assert list(result.var_names) == ["gene7", "gene1"]
    np.testing.assert_array_equal(result.X, adata.obsm["mine_mean"][["gene7", "gene1"]][10:20])
    assert not result.is_view


def test_unknown_keys(adata, hexagonal):
    for data, key, message in [
        (adata, "dustd", "has 'dusted', 'mine'. Did you mean 'dusted'"),
        (adata, "spatial_neighbors", "'spatial_neighbors' is not in .* 'dusted'"),
        (hexagonal, "dusted", r"has nothing. Run st.tl.denoise\(adata\)"),
    ]:
        with pytest.raises(KeyError, match=message):
            st.get.denoised(data, key)
