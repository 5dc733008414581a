import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stdenoise as st

SUBSET = ["gene1", "gene7", "gene10"]


@pytest.fixture
def whole(hexagonal, small):
    st.tl.denoise(hexagonal, **small)
    return hexagonal


@pytest.fixture
def partial(hexagonal, small):
    hexagonal.var["length"] = np.arange(12)
    st.tl.denoise(hexagonal, genes=SUBSET, **small)
    return hexagonal


def test_all_genes(whole):
    result = st.get.denoised(whole)
    np.testing.assert_array_equal(result.X, whole.layers["dusted_mean"])
    assert set(result.layers) == {"dispersion", "dropout"}
    for name in result.layers:
        np.testing.assert_array_equal(result.layers[name], whole.layers[f"dusted_{name}"])
    assert result.var_names.equals(whole.var_names)


def test_some_genes(partial):
    result = st.get.denoised(partial)
    assert list(result.var_names) == SUBSET
    assert list(result.var["length"]) == [1, 7, 10]
    np.testing.assert_array_equal(result.X, partial.obsm["dusted_mean"].to_numpy())
    for name in ("dispersion", "dropout"):
        np.testing.assert_array_equal(result.layers[name], partial.obsm[f"dusted_{name}"].to_numpy())


def test_spots_and_what_belongs_to_them(whole):
    result = st.get.denoised(whole)
    pd.testing.assert_frame_equal(result.obs, whole.obs)
    assert set(result.obsm) == {"spatial", "X_dusted"}
    for name in result.obsm:
        np.testing.assert_array_equal(result.obsm[name], whole.obsm[name])
    assert set(result.uns) == {"dusted"}
    assert result.uns["dusted"]["scale"] == "counts"


def test_negative_binomial_results_have_no_dropout(hexagonal, small):
    st.tl.denoise(hexagonal, likelihood="nb", **small)
    assert set(st.get.denoised(hexagonal).layers) == {"dispersion"}


def test_coordinates_under_the_other_name(hexagonal, small):
    hexagonal.obsm["X_spatial"] = hexagonal.obsm["spatial"]
    del hexagonal.obsm["spatial"]
    st.tl.denoise(hexagonal, **small)
    assert set(st.get.denoised(hexagonal).obsm) == {"X_spatial", "X_dusted"}


def test_key_chooses_among_results(whole, small):
    st.tl.denoise(whole, genes=["gene2"], key_added="mine", **small)
    assert st.get.denoised(whole).n_vars == 12
    result = st.get.denoised(whole, "mine")
    assert list(result.var_names) == ["gene2"]
    assert set(result.layers) == {"dispersion", "dropout"}
    assert "X_mine" in result.obsm


@pytest.mark.parametrize("tissue", ["whole", "partial"])
def test_changes_to_the_result_do_not_reach_back(tissue, request, unchanged):
    adata = request.getfixturevalue(tissue)
    with unchanged(adata):
        result = st.get.denoised(adata)
        result.X[:] = -1
        result.layers["dispersion"][:] = -1
        result.obs["region"] = "nowhere"
        result.var["length"] = -1
        for name in result.obsm:
            result.obsm[name][:] = -1
        result.uns["dusted"]["params"]["alpha"] = -1
        result.uns["dusted"]["history"]["loss"][:] = -1


@pytest.mark.parametrize("tissue", ["whole", "partial"])
def test_input_is_not_changed(tissue, request, unchanged):
    adata = request.getfixturevalue(tissue)
    with unchanged(adata):
        st.get.denoised(adata)


def test_a_view_of_spots(partial):
    result = st.get.denoised(partial[10:20])
    np.testing.assert_array_equal(result.X, partial.obsm["dusted_mean"].to_numpy()[10:20])
    assert not result.is_view


def test_the_result_can_be_written(partial, reload):
    result = st.get.denoised(partial)
    back = reload(result, ".h5ad")
    assert isinstance(back, ad.AnnData)
    np.testing.assert_array_equal(back.X, result.X)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("dustd", "'dustd' is not in the denoised results of adata, which has 'dusted'. Did you mean 'dusted'"),
        ("spatial_neighbors", "'spatial_neighbors' is not in the denoised results of adata, which has 'dusted'"),
    ],
)
def test_unknown_key(whole, key, message):
    with pytest.raises(KeyError, match=message):
        st.get.denoised(whole, key)


def test_no_result_at_all(hexagonal):
    with pytest.raises(KeyError, match=r"which has nothing. Run st.tl.denoise\(adata\) first"):
        st.get.denoised(hexagonal)


def test_genes_sliced_away_after_a_subset_run(hexagonal, small):
    st.tl.denoise(hexagonal, genes=["gene1", "gene4", "gene7"], **small)
    result = st.get.denoised(hexagonal[:, ["gene7", "gene0", "gene1"]])
    assert list(result.var_names) == ["gene7", "gene1"]
    np.testing.assert_array_equal(result.X, hexagonal.obsm["dusted_mean"][["gene7", "gene1"]])
