import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from skimage.metrics import structural_similarity
from sklearn.metrics import mean_squared_error
from sklearn.metrics.pairwise import cosine_similarity

import stdenoise as st
from stdenoise.metrics import _reconstruction


def normalise(values):
    values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=float)
    total = values.sum(1, keepdims=True)
    return np.log1p(1e4 * values / np.where(total > 0, total, 1))


@pytest.fixture
def grid():
    """132 spots on a rectangular grid, counts, their truth, and a denoised gene subset on the log scale."""
    rng = np.random.default_rng(0)
    row, col = (x.ravel() for x in np.mgrid[:12, :11])
    truth = rng.gamma(2, 2, size=(132, 9)) * (1 + (row > 5)[:, None] * rng.uniform(0, 3, 9))
    counts = rng.poisson(truth)
    counts[:, 4] = 0
    adata = ad.AnnData(
        X=sparse.csr_matrix(counts, dtype=np.float32),
        obs=pd.DataFrame({"edge": (row < 2) | (col < 2)}, index=[f"spot{i}" for i in range(132)]),
        var=pd.DataFrame(index=[f"gene{j}" for j in range(9)]),
        layers={"true": truth},
        obsm={"spatial": np.column_stack([col, row]) * 100.0},
    )
    genes = ["gene5", "gene1", "gene8"]
    values = normalise(truth[:, [5, 1, 8]]) + rng.normal(0, 0.3, size=(132, 3))
    adata.obsm["dusted_mean"] = pd.DataFrame(values.astype(np.float32), index=adata.obs_names, columns=genes)
    adata.uns["dusted"] = {"scale": "log1p", "written": ["obsm/dusted_mean"]}
    return adata


def columns_correlate(left, right):
    return [
        stats.pearsonr(a, b).statistic if np.ptp(a) and np.ptp(b) else np.nan
        for a, b in zip(left.T, right.T, strict=True)
    ]


def check(scores, predicted, truth):
    assert scores["mse"] == pytest.approx(mean_squared_error(truth, predicted), rel=1e-6)
    assert scores["rmse"] == pytest.approx(mean_squared_error(truth, predicted) ** 0.5, rel=1e-6)
    of_genes = columns_correlate(predicted, truth)
    assert scores["pearson_gene"] == pytest.approx(np.nanmean(of_genes), abs=1e-6)
    assert scores["pearson_gene_median"] == pytest.approx(np.nanmedian(of_genes), abs=1e-6)
    assert scores["pearson_spot"] == pytest.approx(np.mean(columns_correlate(predicted.T, truth.T)), abs=1e-6)
    assert scores["cosine"] == pytest.approx(np.diag(cosine_similarity(predicted, truth)).mean(), abs=1e-6)
    assert scores["n_undefined"] == np.isnan(of_genes).sum()
    assert (scores["n_spots"], scores["n_genes"]) == truth.shape


def check_counts(scores, counts, truth):
    counts = counts * truth.sum(1, keepdims=True) / counts.sum(1, keepdims=True)
    assert scores["mse_counts"] == pytest.approx(mean_squared_error(truth, counts), rel=1e-5)


@pytest.mark.parametrize("block", [2**22, 300])
def test_scores_and_tables_equal_other_implementations(grid, unchanged, monkeypatch, block):
    monkeypatch.setattr(_reconstruction, "BLOCK_ENTRIES", block)
    with unchanged(grid):
        scores = st.metrics.reconstruction(grid, truth="true")
        genes, spots = (st.metrics.reconstruction(grid, truth="true", per=per) for per in ("gene", "spot"))
    predicted, truth = normalise(grid.X), normalise(grid.layers["true"])
    check(scores, predicted, truth)
    check_counts(scores, grid.X.toarray().astype(float), grid.layers["true"])
    assert scores["n_undefined"] == 1
    np.testing.assert_allclose(genes["mse"], ((predicted - truth) ** 2).mean(0), rtol=1e-6)
    np.testing.assert_allclose(genes["pearson"], columns_correlate(predicted, truth), atol=1e-6)
    assert list(spots.columns) == ["mse", "rmse", "pearson", "cosine", "ssim", "mse_counts"]
    assert spots.index.equals(grid.obs_names)
    np.testing.assert_allclose(spots["mse"], ((predicted - truth) ** 2).mean(1), rtol=1e-6)
    for table in (genes, spots):
        np.testing.assert_allclose(table["rmse"] ** 2, table["mse"], rtol=1e-12)
        assert table["mse_counts"].mean() == pytest.approx(scores["mse_counts"], rel=1e-12)
        assert table["ssim"].mean() == pytest.approx(scores["ssim"], abs=1e-12)
    # A gene on its own, and where the window fits.
    spots = st.metrics.reconstruction(grid, truth="true", genes=["gene2"], per="spot")
    p, t = (side[:, 2].reshape(12, 11) for side in (predicted, truth))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    _, reference = structural_similarity(p, t, data_range=np.ptp(t), **options)
    np.testing.assert_allclose(spots["ssim"].to_numpy().reshape(12, 11)[5:-5, 5:-5], reference[5:-5, 5:-5], atol=1e-6)


def test_a_gene_subset_on_the_log_scale_gets_no_second_logarithm(grid):
    genes = list(grid.obsm["dusted_mean"])
    predicted, truth = grid.obsm["dusted_mean"].to_numpy(), grid[:, genes].layers["true"]
    scores = st.metrics.reconstruction(grid, "dusted", truth="true")
    check(scores, predicted, normalise(truth))
    check_counts(scores, np.expm1(predicted.astype(float)), truth)
    # The choice comes after normalisation: the scores of a gene are those that it has among all.
    chosen = st.metrics.reconstruction(grid, "dusted", truth="true", genes=["gene8", "gene5"], per="gene")
    every = st.metrics.reconstruction(grid, "dusted", truth="true", per="gene")
    assert list(chosen.index) == ["gene8", "gene5"]
    pd.testing.assert_frame_equal(chosen, every.loc[["gene8", "gene5"]])


def test_stored_values_even_negative_ones(grid):
    grid.layers["lower"] = grid.X.toarray() - 3
    scores = st.metrics.reconstruction(grid, "lower", truth="true", scale="stored")
    check(scores, grid.layers["lower"], grid.layers["true"])
    assert np.isnan(scores["mse_counts"])


def test_within_equals_a_cut(grid):
    table = st.metrics.reconstruction(grid, truth="true", within="edge")
    assert list(table.index) == ["all", "inside", "outside"]
    pd.testing.assert_series_equal(table.loc["all"], st.metrics.reconstruction(grid, truth="true"), check_names=False)
    for name, part in (("inside", grid[grid.obs["edge"]]), ("outside", grid[~grid.obs["edge"]])):
        cut = st.metrics.reconstruction(part.copy(), truth="true").drop("ssim")
        pd.testing.assert_series_equal(table.loc[name].drop("ssim"), cut, check_names=False, rtol=1e-12)
    share = table.loc[["inside", "outside"], "n_spots"] / 132
    for score in ("mse", "ssim"):
        assert table.loc["all", score] == pytest.approx((share * table[score].drop("all")).sum(), rel=1e-12)
    both = st.metrics.reconstruction(grid, truth="true", per="gene", within="edge")
    pd.testing.assert_frame_equal(both.loc["all"], st.metrics.reconstruction(grid, truth="true", per="gene"))
    assert list(both.index.names) == ["spots", "gene"]
    assert both.loc["inside", "mse"].mean() == pytest.approx(table.loc["inside", "mse"], rel=1e-12)
    grid.obs["edge"] = False
    table = st.metrics.reconstruction(grid, truth="true", within="edge")
    assert table.loc["inside", "n_spots"] == 0
    assert table.loc["inside"].drop(["n_spots", "n_genes", "n_undefined"]).isna().all()
    pd.testing.assert_series_equal(table.loc["outside"], table.loc["all"], check_names=False)


def test_ssim_needs_a_grid(grid, hexagonal):
    assert np.isnan(st.metrics.reconstruction(hexagonal, truth="true_mean")["ssim"])
    expected = st.metrics.reconstruction(grid, truth="true")["ssim"]
    grid.obsm["array"] = grid.obsm.pop("spatial")
    assert np.isnan(st.metrics.reconstruction(grid, truth="true")["ssim"])
    assert st.metrics.reconstruction(grid, truth="true", spatial_key="array")["ssim"] == expected


def test_truths_of_every_kind(grid):
    expected = st.metrics.reconstruction(grid, truth="true")
    order, other = np.random.default_rng(0).permutation(132), np.random.default_rng(1).permutation(9)
    frame = pd.DataFrame(grid.layers["true"], index=grid.obs_names, columns=grid.var_names)
    mixed = frame.iloc[order, other]
    for truth in (grid.layers["true"], sparse.csc_matrix(grid.layers["true"]), mixed, ad.AnnData(mixed)):
        pd.testing.assert_series_equal(st.metrics.reconstruction(grid, truth=truth), expected)


def test_the_truth_itself_is_perfect_and_the_gene_mean_has_no_correlation(grid):
    grid.layers["scaled"] = grid.layers["true"] * np.random.default_rng(0).uniform(0.5, 2, size=(132, 1))
    scores = st.metrics.reconstruction(grid, "scaled", truth="true")
    assert scores[["mse", "mse_counts"]].max() < 1e-20
    np.testing.assert_allclose(scores[["pearson_gene", "pearson_spot", "cosine", "ssim"]].astype(float), 1, atol=1e-9)
    depth = np.asarray(grid.X.sum(1))
    grid.layers["mean"] = (depth * grid.layers["true"].mean(0)).astype(np.float32)
    scores = st.metrics.reconstruction(grid, "mean", truth="true")
    assert scores["n_undefined"] == 9
    assert np.isnan(scores["pearson_gene"])
    assert scores["mse"] < st.metrics.reconstruction(grid, truth="true")["mse"]


def test_empty_spots_and_constant_genes(irregular):
    irregular.layers["true"] = irregular.X.toarray() + 0.5
    scores = st.metrics.reconstruction(irregular, truth="true")
    spots = st.metrics.reconstruction(irregular, truth="true", per="spot")
    assert scores["n_undefined"] == 1
    assert spots["pearson"].isna().sum() == 1
    assert np.isfinite(scores[["mse", "pearson_gene", "pearson_spot", "cosine", "mse_counts"]].astype(float)).all()


def test_bad_input(grid):
    grid.obs["number"] = 1.0
    grid.obs["unsure"] = pd.array([True, None] * 66, dtype="boolean")
    truth = grid.layers["true"]
    grid.layers["negative"] = truth - 3
    grid.layers["missing"] = truth.copy()
    grid.layers["missing"][0, 0] = np.nan
    twice = pd.DataFrame(truth[:, :2], index=grid.obs_names, columns=["a", "a"])
    for change, error, words in [
        ({"truth": "ture"}, KeyError, "'ture'"),
        ({"truth": 3}, TypeError, "int"),
        ({"layer": "nothing"}, KeyError, "'nothing'"),
        ({"genes": ["gene0", "no"]}, KeyError, "'no'"),
        ({"scale": "log"}, ValueError, "'log'"),
        ({"per": "cell"}, ValueError, "'cell'"),
        ({"within": "edge", "per": "spot"}, ValueError, "within='edge'.* per='spot'"),
        ({"within": "egde"}, KeyError, "'edge'"),
        ({"within": "number"}, TypeError, "True and False.*float"),
        ({"within": "unsure"}, TypeError, "True and False"),
        ({"layer": "negative"}, ValueError, "negative values"),
        ({"truth": "missing"}, ValueError, "1 NaN"),
        ({"truth": np.full((132, 9), np.nan)}, ValueError, "'truth'.* 1188 NaN"),
        ({"truth": pd.DataFrame(np.ones((132, 9)))}, KeyError, "132 of 132 spots"),
        ({"layer": "dusted", "truth": truth}, ValueError, r"\(132, 9\).*dusted_mean.*\(132, 3\)"),
        ({"truth": truth[1:]}, ValueError, r"\(131, 9\).* \(132, 9\)"),
        ({"truth": grid[2:]}, KeyError, r"2 of 132 spots.*\['spot0', 'spot1'\].* 130"),
        ({"truth": grid[:, 1:]}, KeyError, r"1 of 9 genes.*\['gene0'\]"),
        ({"truth": twice}, ValueError, "1 genes twice.*'a'"),
        ({"truth": ad.AnnData(obs=grid.obs)}, ValueError, "no X"),
        ({"device": "tpu"}, ValueError, "'tpu'"),
        ({"spatial_key": "arrays"}, KeyError, "'arrays'"),
    ]:
        with pytest.raises(error, match=words):
            st.metrics.reconstruction(grid, **{"truth": "true", **change})
