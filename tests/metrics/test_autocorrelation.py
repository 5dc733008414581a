import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.preprocessing import normalize

import stdenoise as st

NAMES = {"moran": "morans_i", "geary": "gearys_c"}
BOTH = pytest.mark.parametrize(
    ("ours", "mode", "column"),
    [(st.metrics.morans_i, "moran", "morans_i"), (st.metrics.gearys_c, "geary", "gearys_c")],
)
THEIRS = {"moran": sc.metrics.morans_i, "geary": sc.metrics.gearys_c}


@pytest.fixture
def section():
    """More genes than one block holds."""
    adata = st.datasets.tissue(n_spots=61, n_genes=60)
    adata = adata[:, adata.X.getnnz(axis=0) > 3].copy()
    st.pp.spatial_graph(adata)
    return adata


def squidpys(adata, mode, **arguments):
    sq = pytest.importorskip("squidpy")
    return sq.gr.spatial_autocorr(adata, mode=mode, copy=True, show_progress_bar=False, **arguments)


@BOTH
@pytest.mark.parametrize(("weights", "transformation"), [("row", True), ("binary", False)])
def test_equals_squidpy(section, ours, mode, column, weights, transformation):
    theirs = squidpys(section, mode, transformation=transformation)
    table = ours(section, weights=weights).loc[theirs.index]
    np.testing.assert_allclose(table[column], theirs.iloc[:, 0], rtol=1e-10)
    np.testing.assert_allclose(table["variance"], theirs["var_norm"], rtol=1e-10)
    np.testing.assert_allclose(table["p"], theirs["pval_norm"], rtol=1e-8, atol=1e-15)


@pytest.mark.data
@pytest.mark.parametrize("name", ["dlpfc_151673", "xenium_mouse_brain", "osmfish_ssctx"])
def test_equals_squidpy_on_real_sections(name):
    path = Path(os.environ.get("STDENOISE_DATA", "no folder")) / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"STDENOISE_DATA does not hold {path.name}")
    adata = ad.read_h5ad(path)
    adata = adata[:, adata.X.sum(0).A1.argsort()[-60:]].copy() if adata.n_vars > 60 else adata
    st.pp.spatial_graph(adata)
    for mode, column in NAMES.items():
        theirs = squidpys(adata, mode)
        table = getattr(st.metrics, column)(adata).loc[theirs.index]
        np.testing.assert_allclose(table[column], theirs.iloc[:, 0], atol=1e-5)
        np.testing.assert_allclose(table["p"], theirs["pval_norm"], atol=1e-5)


@BOTH
def test_every_form_of_the_values_equals_scanpy(section, ours, mode, column):
    weights = normalize(section.obsp["spatial_connectivities"], norm="l1")
    expected = THEIRS[mode](weights, section.X.T.toarray())
    genes = list(section.var_names[[35, 2]])
    np.testing.assert_allclose(ours(section)[column], expected, rtol=1e-10)
    np.testing.assert_allclose(ours(section, genes=genes)[column], expected[[35, 2]], rtol=1e-10)
    section.layers["dense"] = 3 * section.X.toarray() + 7
    section.layers["far"] = sparse.csr_matrix(section.X.toarray().astype(np.float64) + 1e5)
    for layer in ("dense", "far"):
        np.testing.assert_allclose(ours(section, layer=layer)[column], expected, rtol=1e-9)
    # Permutations are shared by all genes, whatever block they are read in.
    whole = ours(section, n_permutations=7)
    np.testing.assert_allclose(ours(section, layer="dense", n_permutations=7), whole, rtol=1e-5)
    np.testing.assert_allclose(ours(section, genes=genes, n_permutations=7), whole.loc[genes], rtol=1e-5)


@BOTH
def test_constant_genes_are_nan(irregular, ours, mode, column, caplog):
    irregular.layers["flat"] = irregular.X.toarray()
    irregular.layers["flat"][:, 0] = np.float32(0.1)
    with caplog.at_level("INFO", logger="stdenoise"):
        table = ours(irregular, layer="flat", n_permutations=5)
    constant = ["gene0", "gene3"]
    assert list(table.index[table[column].isna()]) == constant
    assert table.loc[constant].drop(columns=["expected", "variance"]).isna().all(axis=None)
    assert not table.drop(index=constant).isna().any(axis=None)
    assert "2 of 10" in caplog.text
    weights = normalize(irregular.obsp["spatial_connectivities"], norm="l1")
    others = [gene for gene in irregular.var_names if gene not in constant]
    expected = THEIRS[mode](weights, irregular[:, others].X.T.toarray())
    np.testing.assert_allclose(table.loc[others, column], expected, rtol=1e-10)


@BOTH
def test_permutation_p_counts_permutations(hexagonal, ours, mode, column):
    table = ours(hexagonal, n_permutations=200, seed=1)
    weights = normalize(hexagonal.obsp["spatial_connectivities"], norm="l1")
    rng, values = np.random.default_rng(9), hexagonal.X.T.toarray()
    drawn = np.array([THEIRS[mode](weights, values[:, rng.permutation(61)]) for _ in range(200)])
    # Other permutations: two samples of one distribution.
    mean = (table[column] - table["z_permutation"] * np.sqrt(table["variance_permutation"])).to_numpy()
    error = np.sqrt(drawn.var(0) / 200 * 2)
    assert (np.abs(mean - drawn.mean(0)) < 4.5 * error).all()
    np.testing.assert_allclose(table["variance_permutation"], drawn.var(0), rtol=0.5)
    n_above = (drawn >= table[column].to_numpy()).sum(0)
    np.testing.assert_allclose(table["p_permutation"], (np.minimum(n_above, 200 - n_above) + 1) / 201, atol=0.13)


def test_p_values_of_noise_are_uniform_and_those_of_structure_small():
    adata = st.datasets.tissue(n_spots=500, n_genes=300)
    st.pp.spatial_graph(adata)
    noise = np.random.default_rng(0).poisson(1, size=adata.shape).astype(np.float32)
    noise[:, :5] = adata.layers["true_mean"][:, :5]
    adata.layers["noise"] = noise
    table = st.metrics.morans_i(adata, layer="noise", n_permutations=99, scale="stored")
    truth, table = table.iloc[:5].sort_values("morans_i").iloc[-1], table.iloc[5:]
    assert truth["p_permutation"] == 0.01
    assert truth["p"] < 1e-6
    assert truth["z_permutation"] > 5
    for column in ("p", "p_permutation"):
        # One-sided on the side of the statistic: uniform between 0 and 0.5.
        assert np.mean(table[column] < 0.05) == pytest.approx(0.1, abs=0.05)
    assert np.mean(table["z"]) == pytest.approx(0, abs=0.25)


def test_equal_permutations_count_on_both_sides(hexagonal):
    # One count: a permutation only moves it, and all places inside are alike. No place is remarkable.
    values = np.zeros(hexagonal.shape, dtype=np.float32)
    degree = np.diff(hexagonal.obsp["spatial_connectivities"].indptr)
    values[np.flatnonzero(degree == 6)[0], 0] = 1
    hexagonal.layers["single"] = values
    table = st.metrics.morans_i(hexagonal, layer="single", weights="binary", n_permutations=99)
    assert table["p_permutation"].iloc[0] > 0.5  # no more than 0.5 without ties


def test_the_pattern_of_the_graph_and_the_normalised_values_are_read_and_not_changed(hexagonal, unchanged):
    before = st.metrics.morans_i(hexagonal)
    hexagonal.obsp["spatial_connectivities"] = 2.5 * hexagonal.obsp["spatial_connectivities"] + sparse.eye(61)
    for part in (hexagonal.X.data, hexagonal.X.indices, hexagonal.X.indptr):
        part.flags.writeable = False
    with unchanged(hexagonal):
        np.testing.assert_array_equal(st.metrics.morans_i(hexagonal), before)
        scaled = st.metrics.morans_i(hexagonal, scale="log1p", n_permutations=2)
    total = np.asarray(hexagonal.X.sum(1))
    hexagonal.layers["log"] = np.log1p(1e4 * hexagonal.X.toarray() / total)
    np.testing.assert_allclose(st.metrics.morans_i(hexagonal, layer="log")["morans_i"], scaled["morans_i"], rtol=1e-5)
    st.tl.denoise(hexagonal, "gene_mean", genes=["gene1", "gene5"])
    assert list(st.metrics.morans_i(hexagonal, layer="gene_mean").index) == ["gene1", "gene5"]


def test_bad_input(hexagonal):
    hexagonal.obsp["empty_connectivities"] = sparse.csr_matrix((61, 61))
    for change, error, words in [
        ({"weights": "distance"}, ValueError, "distance"),
        ({"n_permutations": 0}, ValueError, "n_permutations"),
        ({"graph_key": "spatail"}, KeyError, "'spatial_connectivities'.*Build the graph"),
        ({"graph_key": "empty"}, ValueError, "'empty' has no edge"),
        ({"layer": "true_maen"}, KeyError, "true_mean"),
        ({"scale": "log"}, ValueError, "'log'"),
        ({"seed": -1}, ValueError, "seed"),
    ]:
        with pytest.raises(error, match=words):
            st.metrics.morans_i(hexagonal, **change)
