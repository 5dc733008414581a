import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stdenoise as st
from stdenoise.metrics import _smoothing


def normalise(values):
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=float)
    total = values.sum(1, keepdims=True)
    return np.log1p(1e4 * values / np.where(total > 0, total, 1))


@pytest.fixture
def section():
    adata = st.datasets.tissue(n_spots=200, n_genes=30)
    st.pp.spatial_graph(adata)
    noise = np.random.default_rng(0).uniform(0.8, 1.2, size=adata.shape)
    adata.layers["denoised"] = (adata.layers["true_mean"] * noise).astype(np.float32)
    return adata


def expected(adata, before, after, labels):
    out = {"variance_kept": np.median(after.var(0) / before.var(0))}
    for name, values in (("before", before), ("after", after)):
        r = np.corrcoef(values.T)
        out[f"correlation_{name}"] = np.median(np.abs(r[np.triu_indices(len(r), 1)]))
        if labels is None:
            continue
        graph, region = adata.obsp["spatial_connectivities"].tocoo(), adata.obs[labels].to_numpy()
        border, inner = [], []
        for i, j in zip(graph.row, graph.col, strict=True):
            if i < j and isinstance(region[i], str) and isinstance(region[j], str):
                (border if region[i] != region[j] else inner).append(((values[i] - values[j]) ** 2).sum())
        out[f"contrast_{name}"] = np.mean(border) / np.mean(inner)
        out["n_border_edges"], out["n_inner_edges"] = len(border), len(inner)
    out["correlation_inflation"] = out["correlation_after"] / out["correlation_before"]
    if labels is not None:
        out["contrast_ratio"] = out["contrast_after"] / out["contrast_before"]
    return out


def check(found, wanted):
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("block", [2**22, 500])
def test_equals_loops(section, unchanged, monkeypatch, block):
    monkeypatch.setattr(_smoothing, "BLOCK_ENTRIES", block)
    section.obs.loc[section.obs_names[:7], "region"] = np.nan
    with unchanged(section):
        found = st.metrics.smoothing(section, "denoised", labels="region")
    check(found, expected(section, normalise(section.X), normalise(section.layers["denoised"]), "region"))
    names = ["n_unlabelled", "n_genes", "n_pairs", "n_constant"]
    assert found[names].tolist() == [7, 30, 435, 0]
    # Each pair counts once, whatever the directions and loops of the graph.
    graph = sparse.triu(section.obsp["spatial_connectivities"]).tocsr() + sparse.eye(200)
    section.obsp["directed_connectivities"] = graph
    again = st.metrics.smoothing(section, "denoised", labels="region", graph_key="directed")
    pd.testing.assert_series_equal(again, found)


def test_averaging_neighbours_blurs_borders_and_invents_correlation(section):
    graph = section.obsp["spatial_connectivities"] + sparse.eye(200)
    average = sparse.diags(1 / np.asarray(graph.sum(1)).ravel()) @ graph
    permuted = section.copy()
    permuted.X = section.X[np.random.default_rng(0).permutation(200)]
    for adata in (section, permuted):
        adata.layers["mean"] = (average @ average @ adata.X).tocsr()
    real, null = (st.metrics.smoothing(adata, "mean", labels="region") for adata in (section, permuted))
    truth = st.metrics.smoothing(section, "true_mean", labels="region")
    # Where spots are in random order there is no border, and no pattern that would keep variance.
    assert null["contrast_before"] == pytest.approx(1, abs=0.05)
    assert null["variance_kept"] < real["variance_kept"] < 1
    assert null["correlation_inflation"] > 1.5
    # The truth shows its borders more sharply than the counts do, their average less.
    assert real["contrast_ratio"] < 1 < truth["contrast_ratio"]
    assert truth["contrast_after"] == np.inf


def test_a_gene_subset_is_compared_on_its_own_genes(section):
    genes = ["gene7", "gene2", "gene11", "gene20"]
    frame = pd.DataFrame(section[:, genes].layers["denoised"], index=section.obs_names, columns=genes)
    section.obsm["dusted_mean"] = frame
    section.uns["dusted"] = {"scale": "counts", "written": ["obsm/dusted_mean"]}
    found = st.metrics.smoothing(section, "dusted", labels="region")
    before, after = normalise(section[:, genes].X), normalise(frame.to_numpy())
    check(found, expected(section, before, after, "region"))
    # Genes are chosen after normalisation, and whatever the side that lacks genes.
    pair = st.metrics.smoothing(section, "dusted", genes=["gene2", "gene20"])
    check(pair, {**expected(section, before[:, [1, 3]], after[:, [1, 3]], None), "n_pairs": 1})
    turned = st.metrics.smoothing(section, reference="dusted", labels="region")
    assert turned["contrast_ratio"] == pytest.approx(1 / found["contrast_ratio"], rel=1e-9)
    with pytest.raises(KeyError, match=r"1 of 2 genes.*\['gene0'\]"):
        st.metrics.smoothing(section, reference="dusted", genes=["gene2", "gene0"])


def test_constant_genes_are_counted(irregular, section):
    irregular.layers["after"] = irregular.X.toarray()
    irregular.layers["after"][:, 1] = 0
    found = st.metrics.smoothing(irregular, "after", scale="stored")
    assert found[["n_constant", "n_pairs", "variance_kept"]].tolist() == [2, 28, 1]
    assert found["correlation_inflation"] == pytest.approx(1)
    # The gene mean: its last bits vary in float32, and their correlation would be noise.
    depth = np.asarray(section.X.sum(1))
    section.layers["mean"] = (depth * section.layers["true_mean"].mean(0)).astype(np.float32)
    found = st.metrics.smoothing(section, "mean")
    assert found["variance_kept"] < 1e-12
    assert found[["n_constant", "n_pairs"]].tolist() == [30, 0]
    assert np.isnan(found["correlation_after"])


def test_a_draw_of_genes_follows_the_seed(section):
    every = st.metrics.smoothing(section, "denoised", n_genes=30)
    few = [st.metrics.smoothing(section, "denoised", n_genes=10, seed=seed) for seed in (0, 0, 1)]
    pd.testing.assert_series_equal(few[0], few[1])
    assert few[0]["n_pairs"] == 45
    assert few[0]["correlation_after"] != few[2]["correlation_after"]
    # The variance is that of all genes in any case.
    assert few[0]["variance_kept"] == few[2]["variance_kept"] == every["variance_kept"]


def test_without_borders_there_is_no_contrast(section):
    names = ["contrast_before", "contrast_after", "contrast_ratio"]
    assert st.metrics.smoothing(section, "denoised")[[*names, "n_border_edges", "n_unlabelled"]].isna().all()
    section.obs["one"] = "tissue"
    section.obs["none"] = pd.Categorical([None] * 200, categories=["tissue"])
    for labels, n_unlabelled in (("one", 0), ("none", 200)):
        found = st.metrics.smoothing(section, "denoised", labels=labels)
        assert found[names].isna().all()
        assert found[["n_border_edges", "n_unlabelled"]].tolist() == [0, n_unlabelled]


def test_bad_input(section):
    section.obsp["wide_connectivities"] = section.obsp["spatial_connectivities"]
    section.obsm["others"] = pd.DataFrame({"other": np.arange(200.0)}, index=section.obs_names)
    for change, error, words in [
        ({"layer": "nothing"}, KeyError, "'nothing'"),
        ({"reference": "nothing"}, KeyError, "'nothing'"),
        ({"labels": "regions"}, KeyError, "'region'"),
        ({"labels": "region", "graph_key": "x"}, KeyError, "x_connectivities"),
        ({"graph_key": "x"}, KeyError, "x_connectivities"),
        ({"graph_key": "wide"}, TypeError, "'wide'.* without labels="),
        ({"scale": "log"}, ValueError, "'log'"),
        ({"n_genes": 1}, ValueError, "n_genes"),
        ({"seed": -1}, ValueError, "seed"),
        ({"genes": "gene1"}, ValueError, "highly_variable"),
        ({"reference": "others"}, ValueError, "no gene"),
    ]:
        with pytest.raises(error, match=words):
            st.metrics.smoothing(section, **{"layer": "denoised", **change})
