import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stdenoise as st
from stdenoise.metrics import _gene_protein


@pytest.fixture
def section():
    adata = st.datasets.tissue(n_spots=150, n_genes=20)
    rng = np.random.default_rng(0)
    adata.obs["CD45"] = np.round(adata.layers["true_mean"][:, 3] + rng.gamma(1, size=150), 1)
    return adata


def expression(adata, gene, layer=None):
    values = (adata.X.toarray() if layer is None else adata.layers[layer]).astype(float)
    return np.log1p(1e4 * values / values.sum(1, keepdims=True))[:, list(adata.var_names).index(gene)]


def correlate(adata, gene="gene3", *, n_bootstrap=0, protein="CD45", **options):
    return st.metrics.gene_protein_correlation(adata, gene, protein=protein, n_bootstrap=n_bootstrap, **options)


def test_values_equal_scipy_on_every_scale(section, unchanged):
    protein = section.obs["CD45"]
    genes = ["gene9", "gene3"]
    frame = pd.DataFrame(section[:, genes].layers["true_mean"], index=section.obs_names, columns=genes)
    section.obsm["dusted_mean"] = frame
    section.uns["dusted"] = {"scale": "log1p", "written": ["obsm/dusted_mean"]}
    for options, gene in [
        ({}, expression(section, "gene3")),
        ({"layer": "true_mean"}, expression(section, "gene3", "true_mean")),
        ({"scale": "stored"}, section.X.toarray()[:, 3]),
        # A denoised subset on the log scale gets no second logarithm.
        ({"layer": "dusted"}, frame["gene3"]),
    ]:
        with unchanged(section):
            table = correlate(section, **options)
        expected = [stats.pearsonr(gene, protein).statistic, stats.spearmanr(gene, protein).statistic]
        assert table.loc[["pearson", "spearman"], "value"].tolist() == pytest.approx(expected, abs=1e-6)
        assert list(table.columns) == ["gene", "value", "low", "high", "n_spots", "n_dropped"]
        assert table["low"].isna().all()
        assert (table["n_spots"] == 150).all()


def test_every_source_gives_the_same(section):
    values = section.obs["CD45"].to_numpy()
    section.obsm["proteins"] = pd.DataFrame({"CD3": -values, "CD45": values}, index=section.obs_names)
    section.obsm["array"] = np.column_stack([values, -values])
    mixed = np.random.default_rng(0).permutation(150)
    other = ad.AnnData(
        X=np.column_stack([values, values**2]).astype(np.float32)[mixed],
        obs=pd.DataFrame(index=section.obs_names[mixed]),
        var=pd.DataFrame(index=["CD45", "CD3"]),
    )
    expected = correlate(section)
    for protein in (("proteins", "CD45"), ("array", 0), values, list(values), section.obs["CD45"].iloc[mixed]):
        pd.testing.assert_frame_equal(correlate(section, protein=protein), expected)
    pd.testing.assert_frame_equal(correlate(section, protein=(other, "CD45")), expected, rtol=1e-6)
    opposite = correlate(section, protein=("array", 1))
    np.testing.assert_allclose(opposite["value"], -expected["value"], rtol=1e-12)


def test_spots_without_a_value_are_dropped_and_counted(section):
    kept = np.ones(150, dtype=bool)
    kept[[3, 70, 149]] = False
    gene, protein = expression(section, "gene3")[kept], section.obs["CD45"][kept]
    with_nan = section.obs["CD45"].where(kept)
    section.obs["nullable"] = with_nan.astype("Float64")
    for source in (protein, with_nan, "nullable"):
        table = correlate(section, protein=source)
        assert table.loc["pearson", "value"] == pytest.approx(stats.pearsonr(gene, protein).statistic, abs=1e-6)
        assert (table["n_spots"] == 147).all()
        assert (table["n_dropped"] == 3).all()


def test_intervals_equal_percentiles_of_resamples(section, monkeypatch):
    """Another generator draws the resamples, so that bounds agree only up to their Monte Carlo error."""
    monkeypatch.setattr(_gene_protein, "BLOCK_ENTRIES", 150 * 300)
    table = correlate(section, n_bootstrap=2000, confidence=0.9)
    rows = np.random.default_rng(5).integers(150, size=(800, 150))
    gene, protein = expression(section, "gene3")[rows], section.obs["CD45"].to_numpy()[rows]
    ranks = [stats.rankdata(side, axis=1) for side in (gene, protein)]
    for score, pair in (("pearson", (gene, protein)), ("spearman", ranks)):
        a, b = (stats.zscore(side, axis=1) for side in pair)
        draws = (a * b).mean(axis=1)
        low, high = np.percentile(draws, [5, 95])
        # Standard error of a 5 % quantile of 800 normal draws: 0.075 standard deviations.
        error = 4 * 0.08 * np.std(draws)
        assert table.loc[score, "low"] == pytest.approx(low, abs=error)
        assert table.loc[score, "high"] == pytest.approx(high, abs=error)


def test_intervals_follow_the_seed_and_the_confidence_and_not_the_other_genes(section):
    both = correlate(section, ["gene3", "gene5"], n_bootstrap=100)
    for gene in ("gene3", "gene5"):
        pd.testing.assert_frame_equal(both[both["gene"] == gene], correlate(section, gene, n_bootstrap=100))
    one, other, narrow, wide = (
        correlate(section, n_bootstrap=100, **change)
        for change in ({}, {"seed": 1}, {"confidence": 0.5}, {"confidence": 0.99})
    )
    assert (one["value"] == other["value"]).all()
    assert (one["low"] != other["low"]).all()
    for outer, inner in ((wide, one), (one, narrow)):
        assert (outer["low"] < inner["low"]).all()
        assert (outer["high"] > inner["high"]).all()
    # Ranks do not change under a monotone map.
    section.obs["CD45"] = np.exp(section.obs["CD45"] / 5)
    after = correlate(section, n_bootstrap=100)
    pd.testing.assert_series_equal(one.loc["spearman"], after.loc["spearman"])
    assert one.loc["pearson", "value"] != after.loc["pearson", "value"]


def test_bad_input(section):
    section.obs["flat"] = 2.0
    section.obs["text"] = "a"
    section.obs["endless"] = np.where(np.arange(150) == 4, np.inf, 1.0)
    section.obsm["table"] = pd.DataFrame({"CD45": section.obs["CD45"]})
    section.layers["zero"] = section.X.toarray()
    section.layers["zero"][:, 0] = 0
    for change, error, words in [
        ({"protein": "CD44"}, KeyError, "'CD45'"),
        ({"protein": "flat"}, ValueError, r"\['flat'\].* \(2 in all 150"),
        ({"protein": "text"}, TypeError, "text"),
        ({"protein": "endless"}, ValueError, "1 infinite"),
        ({"protein": np.ones(149)}, ValueError, r"\(149,\).* 150"),
        ({"protein": pd.Series(1.0, index=["a", "b"])}, ValueError, "shares no name"),
        ({"protein": pd.Series(1.0, index=["spot1", "spot1"])}, ValueError, "1 spots twice"),
        ({"protein": pd.Series([1.0, 2], index=["spot1", "spot2"])}, ValueError, "2 of 150"),
        ({"protein": ("spatial", 2)}, ValueError, "2 columns.* 2"),
        ({"protein": ("spatial", "x")}, TypeError, "integer"),
        ({"protein": ("table", "CD44")}, KeyError, r"'CD44'.*\['CD45'\]"),
        ({"protein": ("tables", "CD45")}, KeyError, "'table'"),
        ({"protein": (3, "CD45")}, TypeError, "tuple"),
        ({"gene": "gene99"}, KeyError, "gene99"),
        ({"gene": []}, ValueError, "empty"),
        ({"gene": ["gene3", "gene0"], "layer": "zero"}, ValueError, r"\['gene0'\]"),
        ({"confidence": 1.0}, ValueError, "confidence.* 1.0"),
        ({"confidence": 0}, ValueError, "confidence"),
        ({"n_bootstrap": -1}, ValueError, "n_bootstrap"),
        ({"scale": "log"}, ValueError, "'log'"),
    ]:
        with pytest.raises(error, match=words):
            correlate(section, **change)


@pytest.mark.data
def test_mean_colours_of_cells():
    """In this crop green follows pan-cytokeratin, so that keratins follow green and not blue."""
    path = Path(os.environ.get("STDENOISE_DATA", "no folder")) / "cosmx_lung12_if_mini.h5ad"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    green = correlate(ad.read_h5ad(path), "KRT19", protein=("if_rgb", 1), n_bootstrap=500)
    assert green.loc["pearson", "value"] == pytest.approx(0.3727, abs=1e-3)
    assert (green["low"] > 0).all()
    assert (green["n_spots"] == 118).all()
