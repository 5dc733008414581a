import numpy as np
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise.methods import DUSTED, GeneMean, NeighborMean, Raw, Smoother
from stdenoise.methods._trial import check_fraction, held_out_scores
from stdenoise.spatial.normalize import lognorm
from stdenoise.spatial.results import Block


@pytest.fixture
def trial(irregular, read_trial):
    return read_trial(irregular, [NeighborMean()])


def test_expected_counts_know_the_scale_and_the_dropout(trial):
    values = torch.tensor(lognorm(trial.counts).toarray())
    expected = trial.expected(Block(mean=values, scale="log1p"))
    np.testing.assert_allclose(expected.numpy(), trial.counts.toarray(), atol=1e-6)
    mean, dropout = torch.full((41, 10), 2.0), torch.full((41, 10), 0.25)
    expected = trial.expected(Block(mean=mean, scale="counts", dropout=dropout))
    assert torch.equal(expected, torch.full((41, 10), 1.5))


def test_gene_subsets_keep_the_depth_of_all_genes(irregular, read_trial):
    trial = read_trial(irregular, [GeneMean()], genes=["gene1", "gene5"])
    mean = trial.fit(GeneMean(), seed=0, progress=False).mean[:].numpy()
    depth = irregular.X.toarray().sum(1)
    total = irregular[:, ["gene1", "gene5"]].X.toarray().sum(0)
    np.testing.assert_allclose(mean, np.outer(depth, total) / depth.sum(), rtol=1e-5)
    assert trial.modelled_genes == ["gene1", "gene5"]


def test_without_edges_every_spot_is_on_its_own(trial):
    alone = trial.without_edges()
    assert alone.tissue.graph.n_edges == 0
    mean = alone.fit(NeighborMean(n_hops=5), seed=0, progress=False).mean[:].numpy()
    np.testing.assert_allclose(mean, trial.counts.toarray(), rtol=1e-5)


def test_what_is_read_is_for_at_least_one_of_the_methods(irregular, read_trial):
    irregular.obsm["mine"] = irregular.obsm["spatial"] + 1
    irregular.obsp["mine_connectivities"] = irregular.obsp.pop("spatial_connectivities")
    assert not read_trial(irregular, [Raw()]).tissue.has("graph")
    assert read_trial(irregular, [Raw()], graph_key="mine", with_graph=True).tissue.has("graph")
    for methods, with_graph in (([Raw(), DUSTED()], False), ([Raw()], True)):
        with pytest.raises(KeyError, match="'spatial_connectivities'"):
            read_trial(irregular, methods, with_graph=with_graph)
    for key, user in (("graph_key", NeighborMean()), ("graph_key", DUSTED()), ("spatial_key", Smoother())):
        read_trial(irregular, [Raw(), user], **{key: "mine"})
        with pytest.raises(TypeError, match=f"{key}='mine' .*raw, gene_mean"):
            read_trial(irregular, [Raw(), GeneMean()], **{key: "mine"})
        with pytest.raises(KeyError, match="'nonsense"):
            read_trial(irregular, [Raw(), user], **{key: "nonsense"})


def test_a_method_is_run_as_by_the_verb(read_trial):
    # With several patches per pass, which are cut by coordinates.
    section = st.datasets.tissue(n_spots=300, n_genes=12)
    section.obsm["mine"] = section.obsm["spatial"][:, ::-1] * [1, 3]
    st.pp.spatial_graph(section)
    small = {"n_hidden": 8, "n_latent": 3, "n_epochs": 2, "gate_reduction": 4, "batch_size": 100}
    for key in ("spatial", "mine"):
        trial = read_trial(section, [DUSTED()], spatial_key=key)
        mean = trial.fit(DUSTED(**small), seed=0, progress=False).mean[:].numpy()
        whole = st.tl.denoise(section, "dusted", spatial_key=key, copy=True, **small)
        np.testing.assert_array_equal(mean, whole.layers["dusted_mean"])


def test_spots_without_training_counts_are_not_scored(irregular, trial):
    held_out = sparse.csr_matrix(np.ones(trial.counts.shape, dtype=np.float32))
    expected = torch.ones(trial.counts.shape)
    before = trial.deviance(expected, held_out, 0.1)
    expected[irregular.obs_names.get_loc("spot7")] = 1e-30
    assert trial.deviance(expected, held_out, 0.1) == before


def test_every_method_sees_the_same_molecules(trial):
    table = held_out_scores(trial, [Raw(), GeneMean()], fraction=0.2, n_splits=2, seed=3, progress=False)
    assert list(table["method"]) == ["raw", "gene_mean"] * 2
    assert list(table["seed"]) == [3, 3, 4, 4]
    by_split = table.groupby("split")["n_molecules"]
    assert (by_split.nunique() == 1).all()
    assert by_split.first().nunique() == 2
    gene_mean = table[table["method"] == "gene_mean"]
    np.testing.assert_allclose(gene_mean["poisson_deviance"], gene_mean["poisson_gene_mean"], rtol=1e-12)
    np.testing.assert_allclose(gene_mean["explained"], 0, atol=1e-12)


def test_fractions_lie_between_0_and_1():
    check_fraction("fraction", 0.5)
    for value in (0, 1, -0.1, 1.5, True, "half", float("nan")):
        with pytest.raises(ValueError, match=f"fraction .*{value!r}"):
            check_fraction("fraction", value)
