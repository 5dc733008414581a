import numpy as np
import pytest
from sklearn.metrics import mean_poisson_deviance

import stdenoise as st
from stdenoise.stats.deviance import thin


def test_a_denoiser_beats_the_gene_mean_where_there_are_regions():
    adata = st.datasets.tissue(n_spots=400, n_genes=60)
    st.pp.spatial_graph(adata)
    candidates = [
        st.methods.Raw(),
        st.methods.GeneMean(),
        st.methods.NeighborMean(n_hops=3),
        st.methods.PoissonFactorization(rank=5, n_iterations=100),
    ]
    scores = [st.metrics.held_out(adata, method)["explained"].item() for method in candidates]
    assert scores == sorted(scores)
    assert scores[0] < -0.5
    assert scores[1] == pytest.approx(0, abs=1e-12)
    assert scores[2] > 0


def test_the_gene_mean_is_scored_as_by_hand(hexagonal):
    table = st.metrics.held_out(hexagonal, "gene_mean", fraction=0.2, seed=5)
    rest, held_out = (part.toarray() for part in thin(hexagonal.X, 0.2, np.random.default_rng(5)))
    expected = 0.25 * np.outer(rest.sum(1), rest.sum(0)) / rest.sum()
    by_hand = mean_poisson_deviance(held_out.ravel(), expected.ravel())
    assert table["poisson_deviance"].item() == pytest.approx(by_hand, rel=1e-6)
    assert table["n_molecules"].item() == held_out.sum()


def test_splits_are_runs_of_their_own(hexagonal):
    method = st.methods.PoissonFactorization(rank=2, n_iterations=10)
    both = st.metrics.held_out(hexagonal, method, n_splits=2, seed=7)
    second = st.metrics.held_out(hexagonal, "poisson_factorization", rank=2, n_iterations=10, seed=8)
    assert both["poisson_deviance"][1] == second["poisson_deviance"][0]
    assert both["poisson_deviance"].nunique() == 2


def test_the_default_method_writes_nothing_and_bad_input_is_refused(hexagonal, small, unchanged):
    with unchanged(hexagonal):
        table = st.metrics.held_out(hexagonal, genes=["gene1", "gene2"], **small)
        assert table["method"].item().startswith("dusted")
        for fraction in (0, 1, 2):
            with pytest.raises(ValueError, match=f"fraction.*{fraction}"):
                st.metrics.held_out(hexagonal, fraction=fraction)
        with pytest.raises(ValueError, match="raw counts"):
            st.metrics.held_out(hexagonal, "raw", layer="true_mean")
        with pytest.raises(ValueError, match="n_splits"):
            st.metrics.held_out(hexagonal, "raw", n_splits=0)
