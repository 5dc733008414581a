import numpy as np
import pytest

import stdenoise as st


@pytest.fixture(scope="module")
def section():
    adata = st.datasets.tissue(n_spots=400, n_genes=60)
    st.pp.spatial_graph(adata)
    return adata


def test_a_neighbour_mean_invents_spatial_structure(section):
    table = st.metrics.null_test(section, "neighbor_mean", n_hops=2)
    assert list(table.index) == ["real", "permuted", "redrawn"]
    assert table.loc["real", "morans_i_before"] > 0.04
    assert (table["morans_i_before"].drop("real").abs() < 0.03).all()
    assert (table["morans_i_after"] > 0.5).all()
    # Where neighbours have nothing in common, they say less than the gene mean.
    assert table.loc["permuted", "poisson_deviance"] > table.loc["permuted", "poisson_gene_mean"]


def test_the_gene_mean_invents_nothing(section):
    table = st.metrics.null_test(section, "gene_mean")
    np.testing.assert_allclose(table["variance_kept"], 0, atol=1e-6)
    np.testing.assert_allclose(table["poisson_deviance"], table["poisson_gene_mean"], rtol=1e-9)
    assert table["poisson_no_graph"].isna().all()


def test_a_method_without_a_graph_does_not_mind_where_the_spots_are(section):
    table = st.metrics.null_test(section, "pca_reconstruction", n_components=4)
    for score in ("poisson_deviance", "variance_kept", "correlation_after"):
        assert table.loc["real", score] == pytest.approx(table.loc["permuted", score], rel=1e-3)
    assert table.loc["permuted", "morans_i_after"] == pytest.approx(0, abs=0.03)
    assert table.loc["redrawn", "correlation_before"] < table.loc["real", "correlation_before"]


def test_without_edges_the_real_and_the_permuted_run_are_one(section):
    table = st.metrics.null_test(section, "neighbor_mean", n_hops=3)
    alone = st.metrics.held_out(section, "raw")["poisson_deviance"].item()
    assert table.loc["real", "poisson_no_graph"] == pytest.approx(alone, rel=1e-5)
    assert table.loc["permuted", "poisson_no_graph"] == table.loc["real", "poisson_no_graph"]


def test_the_real_row_is_that_of_held_out(section):
    table = st.metrics.null_test(section, "poisson_factorization", rank=3, seed=2)
    score = st.metrics.held_out(section, "poisson_factorization", rank=3, seed=2)
    assert table.loc["real", "poisson_deviance"] == score["poisson_deviance"].item()


def test_spots_stay_in_their_library(irregular):
    with pytest.raises(KeyError, match="'section' is not in adata.obs"):
        st.metrics.null_test(irregular, "raw", library_key="section")
    table = st.metrics.null_test(irregular, "raw", library_key="library")
    assert np.isfinite(table["morans_i_after"]).all()


def test_nothing_is_written(hexagonal, small, unchanged):
    with unchanged(hexagonal):
        st.metrics.null_test(hexagonal, **small)


def test_a_graph_is_needed(section):
    bare = section.copy()
    del bare.obsp["spatial_connectivities"]
    with pytest.raises(KeyError, match="Build the graph first"):
        st.metrics.null_test(bare, "raw")
