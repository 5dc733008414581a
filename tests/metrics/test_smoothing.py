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
        graph, region = adata.obsp["spatial_connectivities"].tocoo(), adata.obs[labels].to_numpy()
        border, inner = [], []
        for i, j in zip(graph.row, graph.col, strict=True):
            if i < j and isinstance(region[i], str) and isinstance(region[j], str):
                (border if region[i] != region[j] else inner).append(((values[i] - values[j]) ** 2).sum())
        out[f"contrast_{name}"] = np.mean(border) / np.mean(inner)
        out["n_border_edges"], out["n_inner_edges"] = len(border), len(inner)
    out["correlation_inflation"] = out["correlation_after"] / out["correlation_before"]
    out["contrast_ratio"] = out["contrast_after"] / out["contrast_before"]
    return out


@pytest.mark.parametrize("block", [2**22, 500])
def test_equals_loops(section, unchanged, monkeypatch, block):
    monkeypatch.setattr(_smoothing, "BLOCK_ENTRIES", block)
    section.obs.loc[section.obs_names[:7], "region"] = np.nan
    with unchanged(section):
        found = st.metrics.smoothing(section, "denoised", labels="region")
    wanted = expected(section, normalise(section.X), normalise(section.layers["denoised"]), "region")
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    assert found["n_unlabelled"] == 7
    assert found["n_genes"] == 30
    assert found["n_pairs"] == 435
    assert found["n_constant"] == 0


def test_nothing_changes_nothing(section):
    section.layers["twice"] = 2 * section.X
    found = st.metrics.smoothing(section, "twice", labels="region")
    np.testing.assert_allclose(found[["variance_kept", "correlation_inflation", "contrast_ratio"]], 1, rtol=1e-12)


def test_averaging_neighbours_blurs_borders_and_invents_correlation(section):
    graph = section.obsp["spatial_connectivities"] + sparse.eye(200)
    average = sparse.diags(1 / np.asarray(graph.sum(1)).ravel()) @ graph
    permuted = section.copy()
    permuted.X = section.X[np.random.default_rng(0).permutation(200)]
    real, null = (_averaged(adata, average @ average) for adata in (section, permuted))
    truth = st.metrics.smoothing(section, "true_mean", labels="region")
    # Where spots are in random order there is no border, and no pattern that would keep variance.
    assert null["contrast_before"] == pytest.approx(1, abs=0.05)
    assert null["variance_kept"] < real["variance_kept"] < 1
    assert null["correlation_inflation"] > 1.5
    # The truth shows its borders more sharply than the counts do, their average less.
    assert real["contrast_ratio"] < 1 < truth["contrast_ratio"]
    assert truth["contrast_after"] == np.inf


def _averaged(adata, operator):
    adata.layers["mean"] = (operator @ adata.X).tocsr()
    return st.metrics.smoothing(adata, "mean", labels="region")


def test_a_gene_subset_is_compared_on_its_own_genes(section):
    genes = ["gene7", "gene2", "gene11", "gene20"]
    frame = pd.DataFrame(section[:, genes].layers["denoised"], index=section.obs_names, columns=genes)
    section.obsm["dusted_mean"] = frame
    section.uns["dusted"] = {"scale": "counts", "written": ["obsm/dusted_mean"]}
    found = st.metrics.smoothing(section, "dusted", labels="region")
    wanted = expected(section, normalise(section[:, genes].X), normalise(frame.to_numpy()), "region")
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    # Genes are chosen after normalisation, and whatever the side that lacks genes.
    pair = st.metrics.smoothing(section, "dusted", genes=["gene2", "gene20"])
    before, after = normalise(section[:, genes].X)[:, [1, 3]], normalise(frame.to_numpy())[:, [1, 3]]
    assert pair["variance_kept"] == pytest.approx(np.median(after.var(0) / before.var(0)), rel=1e-6)
    assert pair["n_pairs"] == 1
    turned = st.metrics.smoothing(section, reference="dusted", labels="region")
    assert turned["contrast_ratio"] == pytest.approx(1 / found["contrast_ratio"], rel=1e-9)
    with pytest.raises(KeyError, match="1 of 2 genes are not in adata.obsm"):
        st.metrics.smoothing(section, reference="dusted", genes=["gene2", "gene0"])


def test_constant_genes_are_counted(irregular):
    irregular.layers["after"] = irregular.X.toarray()
    irregular.layers["after"][:, 1] = 0
    found = st.metrics.smoothing(irregular, "after", scale="stored")
    assert found["n_constant"] == 2
    assert found["n_pairs"] == 28
    assert found["variance_kept"] == 1
    assert found["correlation_inflation"] == pytest.approx(1)


def test_the_gene_mean_keeps_no_variance(section):
    """Its last bits vary in float32, and their correlation would be noise."""
    depth = np.asarray(section.X.sum(1)).ravel()
    section.layers["mean"] = (depth[:, None] * section.layers["true_mean"].mean(0)).astype(np.float32)
    found = st.metrics.smoothing(section, "mean")
    assert found["variance_kept"] < 1e-12
    assert found["n_constant"] == 30
    assert found["n_pairs"] == 0
    assert np.isnan(found["correlation_after"])


def test_a_draw_of_genes_follows_the_seed(section):
    every = st.metrics.smoothing(section, "denoised", n_genes=30)
    few = [st.metrics.smoothing(section, "denoised", n_genes=10, seed=seed) for seed in (0, 0, 1)]
    pd.testing.assert_series_equal(few[0], few[1])
    assert few[0]["n_pairs"] == 45
    assert few[0]["correlation_after"] != few[2]["correlation_after"]
    # The variance is that of all genes in any case.
    assert few[0]["variance_kept"] == few[2]["variance_kept"] == every["variance_kept"]


def test_directed_graphs_and_loops_count_each_pair_once(section):
    straight = st.metrics.smoothing(section, "denoised", labels="region")
    section.obsp["directed_connectivities"] = sparse.triu(section.obsp["spatial_connectivities"]).tocsr() + sparse.eye(
        200
    )
    pd.testing.assert_series_equal(
        st.metrics.smoothing(section, "denoised", labels="region", graph_key="directed"), straight
    )


def test_without_borders_there_is_no_contrast(section):
    names = ["contrast_before", "contrast_after", "contrast_ratio"]
    assert st.metrics.smoothing(section, "denoised")[[*names, "n_border_edges", "n_unlabelled"]].isna().all()
    section.obs["one"] = "tissue"
    found = st.metrics.smoothing(section, "denoised", labels="one")
    assert found[names].isna().all()
    assert found["n_border_edges"] == 0
    section.obs["none"] = pd.Categorical([None] * 200, categories=["tissue"])
    found = st.metrics.smoothing(section, "denoised", labels="none")
    assert found["n_unlabelled"] == 200
    assert found[names].isna().all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layer": "nothing"}, KeyError, "'nothing' is neither a layer"),
        ({"reference": "nothing"}, KeyError, "'nothing' is neither a layer"),
        ({"labels": "regions"}, KeyError, "Did you mean 'region'"),
        ({"labels": "region", "graph_key": "x"}, KeyError, "x_connectivities"),
        ({"graph_key": "x"}, KeyError, "x_connectivities"),
        ({"graph_key": "wide"}, TypeError, "graph_key='wide' has no effect without labels="),
        ({"scale": "log"}, ValueError, "scale='log'"),
        ({"n_genes": 1}, ValueError, "n_genes must be an integer >= 2"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"genes": "gene1"}, ValueError, "choose None, 'highly_variable' or a list"),
        ({"reference": "others"}, ValueError, "share no gene"),
    ],
)
def test_bad_input(section, change, error, words):
    section.obsp["wide_connectivities"] = section.obsp["spatial_connectivities"]
    section.obsm["others"] = pd.DataFrame({"other": np.arange(200.0)}, index=section.obs_names)
    with pytest.raises(error, match=words):
        st.metrics.smoothing(section, **{"layer": "denoised", **change})
