import numpy as np
import pytest

import stdenoise as st


@pytest.fixture(scope="module")
def section():
    adata = st.datasets.tissue(n_spots=400, n_genes=60)
    st.pp.spatial_graph(adata)
    return adata


def test_a_neighbour_mean_invents_spatial_structure(section, unchanged):
    with unchanged(section):
        table = st.metrics.null_test(section, "neighbor_mean", n_hops=2)
    assert list(table.index) == ["real", "permuted", "redrawn"]
    assert table.loc["real", "morans_i_before"] > 0.04
    assert (table["morans_i_before"].drop("real").abs() < 0.03).all()
    assert (table["morans_i_after"] > 0.5).all()
    # Where neighbours have nothing in common, they say less than the gene mean.
    assert table.loc["permuted", "poisson_deviance"] > table.loc["permuted", "poisson_gene_mean"]
    # Without edges, the real and the permuted run are one.
    alone = st.metrics.held_out(section, "raw")["poisson_deviance"].item()
    assert table.loc["real", "poisson_no_graph"] == pytest.approx(alone, rel=1e-5)
    assert table.loc["permuted", "poisson_no_graph"] == table.loc["real", "poisson_no_graph"]
    assert np.isnan(table.loc["redrawn", "poisson_no_graph"])


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


def test_the_real_row_is_that_of_held_out(hexagonal):
    options = {"rank": 3, "n_iterations": 20, "seed": 2, "fraction": 0.2, "genes": ["gene1", "gene4", "gene5"]}
    table = st.metrics.null_test(hexagonal, "poisson_factorization", **options)
    score = st.metrics.held_out(hexagonal, "poisson_factorization", **options)
    assert table.loc["real", "poisson_deviance"] == score["poisson_deviance"].item()


def test_spots_stay_in_their_library(irregular):
    # What differs between libraries does not mix.
    left = (irregular.obs["library"] == "left").to_numpy()
    counts = np.random.default_rng(0).poisson(5, size=irregular.shape).astype(np.float32)
    counts[np.ix_(left, np.arange(5))] += 500
    counts[np.ix_(~left, np.arange(5, 10))] += 500
    irregular.X = counts
    table = st.metrics.null_test(irregular, "raw", library_key="library")
    assert table.loc["permuted", "morans_i_before"] > 0.8
    assert table.loc["redrawn", "morans_i_before"] < 0.3
    assert st.metrics.null_test(irregular, "raw").loc["permuted", "morans_i_before"] < 0.3


def test_the_default_method_writes_nothing_and_bad_input_is_refused(hexagonal, small, unchanged):
    with unchanged(hexagonal):
        table = st.metrics.null_test(hexagonal, **small)
        assert np.isfinite(table.loc["real"]).all()
        for change, error, words in [
            ({"fraction": 1}, ValueError, "fraction.* 1"),
            ({"seed": -1}, ValueError, "seed"),
            ({"graph_key": "none"}, KeyError, "Build the graph first"),
            ({"library_key": "section"}, KeyError, "'section'"),
        ]:
            with pytest.raises(error, match=words):
                st.metrics.null_test(hexagonal, "raw", **change)
