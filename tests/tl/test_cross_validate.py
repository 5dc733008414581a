import pytest

import stdenoise as st


@pytest.fixture(scope="module")
def section():
    adata = st.datasets.tissue(n_spots=300, n_genes=40)
    st.pp.spatial_graph(adata)
    return adata


def test_every_candidate_is_run_on_every_split(section):
    grid = {"neighbor_mean": {"n_hops": [1, 4]}, "poisson_factorization": {"rank": [2, 3], "tol": [1e-3]}}
    table = st.tl.cross_validate(section, list(grid), params=grid, n_splits=2)
    names = {
        "raw",
        "gene_mean",
        "neighbor_mean",
        "neighbor_mean(n_hops=4)",
        "poisson_factorization(rank=2, tol=0.001)",
        "poisson_factorization(rank=3, tol=0.001)",
    }
    assert set(table["method"]) == names
    assert (table.groupby("method")["split"].nunique() == 2).all()
    best = table.groupby("method")["poisson_deviance"].mean().idxmin()
    assert set(table.loc[table["recommended"], "method"]) == {best}
    assert table.attrs["recommendation"].startswith(f"use {best}: Poisson deviance ")


def test_rows_equal_single_runs(section):
    table = st.tl.cross_validate(section, [st.methods.NeighborMean(n_hops=2)], n_splits=2, seed=3)
    one = st.metrics.held_out(section, "neighbor_mean", n_hops=2, seed=4)
    row = table[(table["method"] == "neighbor_mean(n_hops=2)") & (table["seed"] == 4)]
    assert row["poisson_deviance"].item() == one["poisson_deviance"].item()


def test_noise_is_better_not_denoised(section):
    noise = section.copy()
    import numpy as np

    from stdenoise.stats.nulls import redraw

    noise.X = redraw(section.X, np.random.default_rng(0))
    table = st.tl.cross_validate(noise, ["neighbor_mean", "poisson_factorization"], n_splits=1)
    assert not table["recommended"].any()
    assert table.attrs["recommendation"].startswith(
        "do not denoise: no method expects the hidden molecules better than"
    )


def test_nothing_is_written(section, unchanged):
    with unchanged(section):
        st.tl.cross_validate(section, ["raw"], n_splits=1)


@pytest.mark.parametrize(
    ("methods", "arguments", "error", "message"),
    [
        ("dusted", {}, TypeError, r"methods must be a list, not 'dusted'; write \['dusted'\]"),
        (["dusty"], {}, ValueError, "method='dusty' is not valid.*Did you mean 'dusted'"),
        (["raw"], {"params": {"raww": {}}}, ValueError, "not among the methods given by name.*Did you mean 'raw'"),
        (["dusted"], {"params": {"dusted": {"lr": 1e-3}}}, TypeError, "must be a list of values, not 0.001"),
        (["dusted"], {"params": {"dusted": {"rate": [1]}}}, TypeError, "dusted has no parameter 'rate'"),
        (["raw"], {"fraction": 1.0}, ValueError, "fraction must be a number between 0 and 1"),
        (["raw"], {"graph_key": "wide"}, KeyError, "'wide_connectivities' is not in adata.obsp"),
        (["magic"], {"spatial_key": "nonsense"}, KeyError, "'nonsense' is not in adata.obsm"),
        (["raw"], {"n_splits": 0}, ValueError, "n_splits must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_refused(section, methods, arguments, error, message):
    with pytest.raises(error, match=message):
        st.tl.cross_validate(section, methods, **arguments)
