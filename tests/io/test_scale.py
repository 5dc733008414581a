"""The scale of a result is known, or said to be unknown."""

import logging

import anndata as ad
import numpy as np
import pytest

import stdenoise as st


@pytest.fixture
def section():
    adata = st.datasets.tissue(n_spots=120, n_genes=20)
    st.pp.spatial_graph(adata)
    st.tl.denoise(adata, "smoother")
    return adata


def mse(adata, layer):
    return st.metrics.reconstruction(adata, layer, truth="true_mean")["mse"]


def test_the_scale_travels_with_a_result(section, caplog):
    expected = mse(section, "smoother_mean")
    part = st.get.denoised(section, "smoother")
    part.layers["true_mean"] = section.layers["true_mean"]
    both = ad.concat({"a": section, "b": section}, index_unique="-", uns_merge="first")
    assert mse(part, None) == pytest.approx(expected)
    assert mse(both, "smoother_mean") == pytest.approx(expected)
    assert not caplog.records


def test_a_result_without_its_record_is_refused_with_the_way_out(section):
    both = ad.concat({"a": section, "b": section}, index_unique="-")
    with pytest.raises(ValueError, match=r"which scale .*smoother_mean.*ad.concat.*uns\['scales'\]"):
        mse(both, "smoother_mean")
    both.uns["scales"] = {"smoother_mean": "log1p"}
    assert mse(both, "smoother_mean") == pytest.approx(mse(section, "smoother_mean"))
    both.uns["scales"] = {"smoother_mean": "logp1"}
    with pytest.raises(ValueError, match="'logp1' is not valid"):
        mse(both, "smoother_mean")
    with pytest.raises(ValueError, match="smoother_mean exists, and no record .*uns_merge"):
        st.tl.denoise(both, "smoother")
    with pytest.raises(KeyError, match="without its record .*uns_merge"):
        st.get.denoised(both, "smoother")


def test_fractional_values_of_others_are_said_to_be_taken_for_counts(section, caplog):
    section.layers["mine"] = section.layers["smoother_mean"]
    with caplog.at_level(logging.WARNING, logger="stdenoise"):
        mse(section, "mine")
    assert "layers['mine'] has fractional values" in caplog.text
    section.uns["scales"] = {"mine": "log1p"}
    assert mse(section, "mine") == mse(section, "smoother_mean")


def test_genes_that_were_renamed_since(section):
    st.tl.denoise(section, "raw", genes=["gene3", "gene7"])
    assert list(st.get.denoised(section[:, ["gene7", "gene1"]], "raw").var_names) == ["gene7"]
    section.var_names = [f"ENSG{i:011d}" for i in range(20)]
    with pytest.raises(KeyError, match=r"ENSG00000000003.* its 2 genes were called \['gene3', 'gene7'\]"):
        st.get.denoised(section, "raw")
    assert np.isfinite(st.get.denoised(section, "smoother").X).all()


def test_only_what_needs_the_scale_asks_for_it(section, caplog):
    both = ad.concat({"a": section, "b": section}, label="library", index_unique="-")
    st.pp.spatial_graph(both, library_key="library")
    once, twice = st.metrics.morans_i(section, layer="smoother_mean"), st.metrics.morans_i(both, layer="smoother_mean")
    np.testing.assert_allclose(twice["morans_i"], once["morans_i"], rtol=1e-9)
    with pytest.raises(ValueError, match="which scale"):
        st.metrics.morans_i(both, layer="smoother_mean", scale="log1p")
    with caplog.at_level(logging.WARNING, logger="stdenoise"):
        st.metrics.reconstruction(section, truth=section.layers["true_mean"])
        st.metrics.null_test(section, "neighbor_mean", progress=False)
    assert not caplog.records
