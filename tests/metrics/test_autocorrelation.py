import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.preprocessing import normalize

import stdenoise as st

BOTH = pytest.mark.parametrize(
    ("ours", "mode", "column"),
    [(st.metrics.morans_i, "moran", "morans_i"), (st.metrics.gearys_c, "geary", "gearys_c")],
)


def squidpys(adata, mode, **arguments):
    sq = pytest.importorskip("squidpy")
    return sq.gr.spatial_autocorr(adata, mode=mode, copy=True, show_progress_bar=False, **arguments)


@BOTH
@pytest.mark.parametrize(("weights", "transformation"), [("row", True), ("binary", False)])
def test_equals_squidpy(hexagonal, ours, mode, column, weights, transformation):
    theirs = squidpys(hexagonal, mode, transformation=transformation)
    table = ours(hexagonal, weights=weights).loc[theirs.index]
    np.testing.assert_allclose(table[column], theirs.iloc[:, 0], rtol=1e-10)
    np.testing.assert_allclose(table["variance"], theirs["var_norm"], rtol=1e-10)
    np.testing.assert_allclose(table["p"], theirs["pval_norm"], rtol=1e-8, atol=1e-15)


@BOTH
def test_equals_scanpy(irregular, ours, mode, column):
    weights = normalize(irregular.obsp["spatial_connectivities"], norm="l1")
    score = {"moran": sc.metrics.morans_i, "geary": sc.metrics.gearys_c}[mode]
    genes = [gene for gene in irregular.var_names if gene != "gene3"]
    expected = score(weights, irregular[:, genes].X.T.toarray())
    np.testing.assert_allclose(ours(irregular, genes=genes)[column], expected, rtol=1e-10)


@pytest.mark.data
@BOTH
@pytest.mark.parametrize("name", ["dlpfc_151673", "xenium_mouse_brain", "osmfish_ssctx"])
def test_equals_squidpy_on_real_sections(ours, mode, column, name):
    path = Path(os.environ.get("STDENOISE_DATA", "no folder")) / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"STDENOISE_DATA does not hold {path.name}")
    adata = ad.read_h5ad(path)
    adata = adata[:, adata.X.sum(0).A1.argsort()[-60:]].copy() if adata.n_vars > 60 else adata
    st.pp.spatial_graph(adata)
    theirs = squidpys(adata, mode)
    table = ours(adata).loc[theirs.index]
    np.testing.assert_allclose(table[column], theirs.iloc[:, 0], atol=1e-5)
    np.testing.assert_allclose(table["p"], theirs["pval_norm"], atol=1e-5)


@BOTH
def test_permutation_p_counts_permutations(hexagonal, ours, mode, column):
    table = ours(hexagonal, n_permutations=200, seed=1)
    weights = normalize(hexagonal.obsp["spatial_connectivities"], norm="l1")
    score = {"moran": sc.metrics.morans_i, "geary": sc.metrics.gearys_c}[mode]
    rng = np.random.default_rng(9)
    values = hexagonal.X.T.toarray()
    drawn = np.array([score(weights, values[:, rng.permutation(61)]) for _ in range(200)])
    # Other permutations: two samples of one distribution.
    mean = (table[column] - table["z_permutation"] * np.sqrt(table["variance_permutation"])).to_numpy()
    error = np.sqrt(drawn.var(0) / 200 * 2)
    assert (np.abs(mean - drawn.mean(0)) < 4.5 * error).all()
    np.testing.assert_allclose(table["variance_permutation"], drawn.var(0), rtol=0.5)
    n_above = (drawn >= table[column].to_numpy()).sum(0)
    np.testing.assert_allclose(table["p_permutation"], (np.minimum(n_above, 200 - n_above) + 1) / 201, atol=0.13)


def test_p_values_of_noise_are_uniform():
    adata = st.datasets.tissue(n_spots=500, n_genes=300)
    st.pp.spatial_graph(adata)
    adata.X = np.random.default_rng(0).poisson(1, size=adata.shape).astype(np.float32)
    table = st.metrics.morans_i(adata, n_permutations=99)
    for column in ("p", "p_permutation"):
        # One-sided on the side of the statistic: uniform between 0 and 0.5.
        assert np.mean(table[column] < 0.05) == pytest.approx(0.1, abs=0.05)
    assert np.mean(table["z"]) == pytest.approx(0, abs=0.25)


def test_structure_is_found(hexagonal):
    table = st.metrics.morans_i(hexagonal, layer="true_mean", scale="log1p", n_permutations=99)
    best = table.loc[table["morans_i"].idxmax()]
    assert best["p_permutation"] == 0.01
    assert best["p"] < 1e-6
    assert best["z_permutation"] > 5


@BOTH
def test_shift_and_scale_do_not_matter(hexagonal, ours, mode, column):
    hexagonal.layers["other"] = 3 * hexagonal.X.toarray() + 7
    np.testing.assert_allclose(ours(hexagonal, layer="other")[column], ours(hexagonal)[column], rtol=1e-9)


@BOTH
def test_constant_genes_are_nan(irregular, ours, mode, column, caplog):
    irregular.layers["flat"] = irregular.X.toarray()
    irregular.layers["flat"][:, 0] = np.float32(0.1)
    with caplog.at_level("INFO", logger="stdenoise"):
        table = ours(irregular, layer="flat", n_permutations=5)
    assert list(table.index[table[column].isna()]) == ["gene0", "gene3"]
    shared = ["expected", "variance"]
    assert table.loc[["gene0", "gene3"]].drop(columns=shared).isna().all(axis=None)
    assert not table.drop(index=["gene0", "gene3"]).isna().any(axis=None)
    assert "2 of 10 genes are constant" in caplog.text


@BOTH
def test_dense_sparse_and_narrow_reads_agree(irregular, ours, mode, column, monkeypatch):
    irregular.layers["dense"] = irregular.X.toarray()
    whole = ours(irregular, n_permutations=7)
    np.testing.assert_allclose(ours(irregular, layer="dense", n_permutations=7), whole, rtol=1e-10)
    monkeypatch.setattr("stdenoise.metrics._autocorrelation._WIDTH", 3)
    np.testing.assert_allclose(ours(irregular, n_permutations=7), whole, rtol=1e-5)
    some = ours(irregular, genes=["gene5", "gene2"])
    np.testing.assert_allclose(some[column], whole.loc[["gene5", "gene2"], column], rtol=1e-12)


def test_a_denoised_gene_subset_is_found_by_its_key(hexagonal, small):
    st.tl.denoise(hexagonal, genes=["gene1", "gene5"], **small)
    assert list(st.metrics.morans_i(hexagonal, layer="dusted").index) == ["gene1", "gene5"]


def test_loops_and_weights_of_the_graph_are_left_out(hexagonal):
    before = st.metrics.morans_i(hexagonal)
    hexagonal.obsp["spatial_connectivities"] = 2.5 * hexagonal.obsp["spatial_connectivities"] + sparse.eye(61)
    np.testing.assert_array_equal(st.metrics.morans_i(hexagonal), before)


def test_nothing_is_written(irregular, unchanged):
    with unchanged(irregular):
        st.metrics.morans_i(irregular, n_permutations=2, scale="log1p")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weights": "distance"}, ValueError, "weights='distance' is not valid; choose from .'row', 'binary'"),
        ({"n_permutations": 0}, ValueError, "n_permutations must be an integer >= 1"),
        ({"graph_key": "spatail"}, KeyError, "Did you mean 'spatial_connectivities'.*Build the graph first"),
        ({"layer": "true_maen"}, KeyError, "Did you mean 'true_mean'"),
        ({"scale": "log"}, ValueError, "scale='log' is not valid"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0"),
    ],
)
def test_bad_arguments_are_refused(hexagonal, arguments, error, message):
    with pytest.raises(error, match=message):
        st.metrics.morans_i(hexagonal, **arguments)


def test_a_graph_without_edges_is_refused(hexagonal):
    hexagonal.obsp["spatial_connectivities"] = sparse.csr_matrix((61, 61))
    with pytest.raises(ValueError, match="the graph 'spatial' has no edge"):
        st.metrics.morans_i(hexagonal)


def test_equal_permutations_count_on_both_sides(hexagonal):
    # One count: a permutation only moves it, and all places inside are alike. No place is remarkable.
    values = np.zeros(hexagonal.shape, dtype=np.float32)
    degree = np.diff(hexagonal.obsp["spatial_connectivities"].indptr)
    values[np.flatnonzero(degree == 6)[0], 0] = 1
    hexagonal.layers["single"] = values
    table = st.metrics.morans_i(hexagonal, layer="single", weights="binary", n_permutations=99)
    assert table["p_permutation"].iloc[0] > 0.5  # no more than 0.5 without ties


@BOTH
def test_genes_far_from_zero_in_a_sparse_matrix(hexagonal, ours, mode, column):
    hexagonal.layers["far"] = sparse.csr_matrix(hexagonal.X.toarray().astype(np.float64) + 1e5)
    np.testing.assert_allclose(ours(hexagonal, layer="far")[column], ours(hexagonal)[column], rtol=1e-9)


def test_a_read_only_matrix_is_read(hexagonal):
    before = st.metrics.morans_i(hexagonal)
    for part in (hexagonal.X.data, hexagonal.X.indices, hexagonal.X.indptr):
        part.flags.writeable = False
    np.testing.assert_array_equal(st.metrics.morans_i(hexagonal), before)
