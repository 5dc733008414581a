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


def correlate(adata, gene="gene3", *, n_bootstrap=0, **options):
    return st.metrics.gene_protein_correlation(adata, gene, n_bootstrap=n_bootstrap, **options)


@pytest.mark.parametrize("layer", [None, "true_mean"])
def test_values_equal_scipy(section, layer, unchanged):
    with unchanged(section):
        table = correlate(section, protein="CD45", layer=layer)
    gene, protein = expression(section, "gene3", layer), section.obs["CD45"]
    assert table.loc["pearson", "value"] == pytest.approx(stats.pearsonr(gene, protein).statistic, abs=1e-6)
    assert table.loc["spearman", "value"] == pytest.approx(stats.spearmanr(gene, protein).statistic, abs=1e-6)
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
    expected = correlate(section, protein="CD45")
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


def test_the_scale_is_chosen(section):
    raw = section.X.toarray()[:, 3]
    table = correlate(section, protein="CD45", scale="stored")
    assert table.loc["pearson", "value"] == pytest.approx(stats.pearsonr(raw, section.obs["CD45"]).statistic, abs=1e-6)


def test_intervals_equal_percentiles_of_scipy_on_resamples(section, monkeypatch):
    """Another generator draws the resamples, so that bounds agree only up to their Monte Carlo error."""
    monkeypatch.setattr(_gene_protein, "BLOCK_ENTRIES", 150 * 300)
    table = correlate(section, protein="CD45", n_bootstrap=2000, confidence=0.9)
    gene, protein, rng = expression(section, "gene3"), section.obs["CD45"].to_numpy(), np.random.default_rng(5)
    for score, function in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        draws = []
        for rows in rng.integers(150, size=(800, 150)):
            draws.append(function(gene[rows], protein[rows]).statistic)
        low, high = np.percentile(draws, [5, 95])
        # Standard error of a 5 % quantile of 800 normal draws: 0.075 standard deviations.
        error = 4 * 0.08 * np.std(draws)
        assert table.loc[score, "low"] == pytest.approx(low, abs=error)
        assert table.loc[score, "high"] == pytest.approx(high, abs=error)


def test_intervals_cover_the_truth():
    """200 samples of a bivariate normal with correlation .6: a 90 % interval holds it about 180 times."""
    rng, hits = np.random.default_rng(0), 0
    x = rng.normal(size=(80, 200))
    y = 0.6 * x + 0.8 * rng.normal(size=(80, 200))
    adata = ad.AnnData(x)
    for i in range(200):
        table = correlate(adata, str(i), protein=y[:, i], n_bootstrap=200, confidence=0.9, scale="stored")
        hits += table.loc["pearson", "low"] <= 0.6 <= table.loc["pearson", "high"]
    # The percentile interval of 80 spots is known to be a little narrow; 4 binomial standard errors of .9 are .085.
    assert 0.815 <= hits / 200 <= 0.985


def test_seeds(section):
    one, same, other = (correlate(section, protein="CD45", n_bootstrap=100, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, same)
    assert (one["value"] == other["value"]).all()
    assert (one["low"] != other["low"]).all()
    assert (one["low"] < one["value"]).all()
    assert (one["value"] < one["high"]).all()


def test_genes_have_the_same_numbers_alone_and_together(section):
    both = correlate(section, ["gene3", "gene5"], protein="CD45", n_bootstrap=50)
    for gene in ("gene3", "gene5"):
        alone = correlate(section, gene, protein="CD45", n_bootstrap=50)
        pd.testing.assert_frame_equal(both[both["gene"] == gene], alone)


def test_wider_confidence_is_wider(section):
    narrow, wide = (correlate(section, protein="CD45", n_bootstrap=200, confidence=c) for c in (0.5, 0.99))
    assert (wide["low"] < narrow["low"]).all()
    assert (wide["high"] > narrow["high"]).all()


def test_spearman_does_not_change_under_a_monotone_map(section):
    before = correlate(section, protein="CD45", n_bootstrap=50)
    section.obs["CD45"] = np.exp(section.obs["CD45"] / 5)
    after = correlate(section, protein="CD45", n_bootstrap=50)
    pd.testing.assert_series_equal(before.loc["spearman"], after.loc["spearman"])
    assert before.loc["pearson", "value"] != after.loc["pearson", "value"]


def test_a_denoised_gene_subset(section):
    genes = ["gene9", "gene3"]
    section.obsm["dusted_mean"] = pd.DataFrame(
        section[:, genes].layers["true_mean"], index=section.obs_names, columns=genes
    )
    section.uns["dusted"] = {"scale": "log1p", "written": ["obsm/dusted_mean"]}
    table = correlate(section, protein="CD45", layer="dusted")
    expected = stats.pearsonr(section.layers["true_mean"][:, 3], section.obs["CD45"]).statistic
    assert table.loc["pearson", "value"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"protein": "CD44"}, KeyError, "Did you mean 'CD45'"),
        ({"protein": "flat"}, ValueError, r"adata.obs\['flat'\] is constant \(2 in all 150 spots\)"),
        ({"protein": "text"}, TypeError, "must hold numbers"),
        ({"protein": "endless"}, ValueError, "1 infinite values"),
        ({"protein": np.ones(149)}, ValueError, r"shape \(149,\), but adata has 150 spots"),
        ({"protein": pd.Series(1.0, index=["a", "b"])}, ValueError, "shares no name of a spot"),
        ({"protein": pd.Series(1.0, index=["spot1", "spot1"])}, ValueError, "names 1 spots twice"),
        ({"protein": pd.Series([1.0, 2], index=["spot1", "spot2"])}, ValueError, "2 of 150 spots have a value"),
        ({"protein": ("spatial", 2)}, ValueError, "has 2 columns, so there is no column 2"),
        ({"protein": ("spatial", "x")}, TypeError, "must be an integer"),
        ({"protein": ("table", "CD44")}, KeyError, "which has the columns"),
        ({"protein": ("tables", "CD45")}, KeyError, "Did you mean 'table'"),
        ({"protein": (3, "CD45")}, TypeError, "protein as a tuple must be"),
        ({"gene": "gene99"}, KeyError, "gene99"),
        ({"gene": []}, ValueError, "empty list"),
        ({"gene": ["gene3", "gene0"], "layer": "zero"}, ValueError, r"genes \['gene0'\] are constant"),
        ({"confidence": 1.0}, ValueError, "confidence must lie between 0 and 1"),
        ({"confidence": 0}, ValueError, "confidence must be"),
        ({"n_bootstrap": -1}, ValueError, "n_bootstrap must be"),
        ({"scale": "log"}, ValueError, "scale='log'"),
    ],
)
def test_bad_input(section, change, error, words):
    section.obs["flat"] = 2.0
    section.obs["text"] = "a"
    section.obs["endless"] = np.where(np.arange(150) == 4, np.inf, 1.0)
    section.obsm["table"] = pd.DataFrame({"CD45": section.obs["CD45"]})
    section.layers["zero"] = section.X.toarray()
    section.layers["zero"][:, 0] = 0
    with pytest.raises(error, match=words):
        correlate(section, **{"protein": "CD45", **change})


@pytest.mark.data
def test_mean_colours_of_cells():
    """In this crop green follows pan-cytokeratin, so that keratins follow green and not blue."""
    path = Path(os.environ.get("STDENOISE_DATA", "no folder")) / "cosmx_lung12_if_mini.h5ad"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    adata = ad.read_h5ad(path)
    green = correlate(adata, "KRT19", protein=("if_rgb", 1), n_bootstrap=500)
    assert green.loc["pearson", "value"] == pytest.approx(0.3727, abs=1e-3)
    assert (green["low"] > 0).all()
    assert (green["n_spots"] == 118).all()
