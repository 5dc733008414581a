import numpy as np
import pytest

import stdenoise as st
from stdenoise.stats.nulls import redraw


@pytest.fixture(scope="module")
def section():
    adata = st.datasets.tissue(n_spots=300, n_genes=40)
    st.pp.spatial_graph(adata)
    return adata


def test_every_candidate_is_run_on_every_split(section, unchanged):
    grid = {"neighbor_mean": {"n_hops": [1, 4]}, "poisson_factorization": {"rank": [2, 3], "tol": [1e-3]}}
    with unchanged(section):
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
    arguments = {"genes": ["gene1", "gene3", "gene4"], "fraction": 0.2}
    method = st.methods.NeighborMean(n_hops=2)
    table = st.tl.cross_validate(section, [method, method], n_splits=2, seed=3, **arguments)
    one = st.metrics.held_out(section, "neighbor_mean", n_hops=2, seed=4, **arguments)
    row = table[(table["method"] == "neighbor_mean(n_hops=2)") & (table["seed"] == 4)]
    assert row["poisson_deviance"].item() == one["poisson_deviance"].item()


def test_noise_is_better_not_denoised(section):
    noise = section.copy()
    noise.X = redraw(section.X, np.random.default_rng(0))
    table = st.tl.cross_validate(noise, ["neighbor_mean", "poisson_factorization"], n_splits=1)
    assert not table["recommended"].any()
    assert table.attrs["recommendation"].startswith("do not denoise: ")


def test_bad_arguments_are_refused(section):
    for methods, arguments, error, fragment in [
        ("dusted", {}, TypeError, r"\['dusted'\]"),
        (["dusty"], {}, ValueError, "'dusty'.* mean 'dusted'"),
        (["raw"], {"params": {"raww": {}}}, ValueError, "'raww'.* mean 'raw'"),
        (["dusted"], {"params": {"dusted": {"lr": 1e-3}}}, TypeError, "'lr'.* 0.001"),
        (["dusted"], {"params": {"dusted": {"rate": [1]}}}, TypeError, "'rate'"),
        (["raw"], {"fraction": 1.0}, ValueError, "fraction "),
        (["raw"], {"seed": -1}, ValueError, "seed .*not -1"),
        (["raw"], {"graph_key": "wide"}, KeyError, "'wide_connectivities' is not in adata.obsp"),
        (["magic"], {"spatial_key": "nonsense"}, KeyError, "'nonsense' is not in adata.obsm"),
        (["raw"], {"n_splits": 0}, ValueError, "n_splits .*not 0"),
    ]:
        with pytest.raises(error, match=fragment):
            st.tl.cross_validate(section, methods, **arguments)
