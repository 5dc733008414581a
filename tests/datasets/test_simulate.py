import numpy as np
import pytest
from scipy import sparse

import stdenoise as st
from stdenoise.datasets._dropout import SETTINGS
from stdenoise.datasets._patterns import PATTERNS

TINY = {"n_spots": 60, "n_genes": 30}
LAYERS = ("true_counts", "observed_before_dropout")


@pytest.fixture(scope="module")
def tissues():
    """One tissue under the four settings."""
    return dict(st.datasets.simulated_benchmark(patterns=["P1"], seed=3, n_spots=200, n_genes=60))


@pytest.fixture(scope="module")
def every():
    """The whole benchmark twice over, in miniature."""
    return dict(st.datasets.simulated_benchmark(seed=2, n_replicates=2, edge_mode="additive", **TINY))


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_fields(every, pattern):
    adata, plan = every[f"{pattern}-4"], PATTERNS[pattern]
    assert adata.shape == (60, 30)
    for matrix in (adata.X, *(adata.layers[name] for name in LAYERS)):
        assert sparse.isspmatrix_csr(matrix)
        assert matrix.dtype == np.float32
        assert (matrix.data >= 1).all()
        np.testing.assert_array_equal(matrix.data, np.rint(matrix.data))
    types = adata.obs["cell_type"].cat
    assert types.categories.tolist() == [f"type{i + 1}" for i in range(len(plan.shares))]
    record = adata.uns["simulation"]
    assert (np.bincount(types.codes) == record["layout"]["sizes"]).all()
    assert record["protocol"]["umi"] == (pattern != "P6")
    assert (record["name"], record["pattern"], record["setting"]) == (f"{pattern}-4", pattern, 4)
    assert adata.obsm["spatial"].shape == (60, 2)
    assert adata.var["highly_expressed"].sum() == 1
    if pattern != "P6":
        assert (adata.layers["observed_before_dropout"] - adata.layers["true_counts"]).max() <= 0


def test_the_size_of_the_pattern_and_a_truth_that_differs_between_types():
    adata = st.datasets.simulate(n_genes=80)
    assert adata.shape == (1000, 80)
    assert st.datasets.simulate(n_spots=20).shape == (20, 500)
    assert adata.uns["simulation"]["name"] == "P1-1"
    logs = np.log1p(adata.layers["true_counts"].toarray())
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    variance = [
        np.array([logs[kinds == kind].mean(axis=0) for kind in range(3)]).var(axis=0).mean()
        for kinds in (types, np.random.default_rng(0).permutation(types))
    ]
    assert variance[0] > 10 * variance[1]


def test_settings_share_everything_but_dropout(tissues, freeze):
    first, *others = tissues.values()
    for other in others:
        for layer in LAYERS:
            assert freeze(other.layers[layer]) == freeze(first.layers[layer])
        assert freeze(other.obsm["spatial"]) == freeze(first.obsm["spatial"])
        shared = ["cell_type", "capture_rate", "depth"]
        assert freeze(other.obs[shared]) == freeze(first.obs[shared])
        assert freeze(other.X) != freeze(first.X)


@pytest.mark.parametrize("setting", [1, 2, 3, 4])
def test_losses(tissues, setting):
    adata = tissues[f"P1-{setting}"]
    before, mask = adata.layers["observed_before_dropout"].toarray(), adata.layers["dropout_mask"].toarray()
    np.testing.assert_array_equal(adata.X.toarray(), np.where(mask, 0, before))
    assert (before[mask] > 0).all()
    band = adata.obs["in_edge_band"].to_numpy()
    distance = np.minimum(adata.obsm["spatial"], 30 - adata.obsm["spatial"]).min(axis=1)
    np.testing.assert_array_equal(band, distance < SETTINGS[setting].width)
    assert band.any() == (setting > 1)
    for spots, rate in ((band, SETTINGS[setting].edge), (~band, SETTINGS[setting].overall)):
        n = max((before[spots] > 0).sum(), 1)
        assert (adata.obs["dropout_rate"].to_numpy()[spots] == rate).all()
        assert mask[spots].sum() / n == pytest.approx(rate, abs=3 * np.sqrt(rate * (1 - rate) / n))


def test_the_seed_and_the_replicate_choose_the_tissue(freeze):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    plan = {"pattern": "P6", "setting": 2, "seed": 5, **TINY}
    first, again = st.datasets.simulate(**plan), st.datasets.simulate(**plan)
    assert freeze(first) == freeze(again)
    for change in ({"seed": 6}, {"replicate": 1}, {"pattern": "P2"}):
        other = st.datasets.simulate(**{**plan, **change})
        assert freeze(first.layers["true_counts"]) != freeze(other.layers["true_counts"])
        assert freeze(first.obsm["spatial"]) != freeze(other.obsm["spatial"])
    # Global generators are left alone.
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_survives_a_round_trip(tissues, reload, assert_same, suffix):
    adata = tissues["P1-3"]
    back = reload(adata, suffix)
    for part in ("X", "obs", "var", "layers", "uns"):
        assert_same(getattr(adata, part), getattr(back, part))
    assert back.layers["dropout_mask"].dtype == bool


# The benchmark


def test_names():
    names = st.datasets.simulated_names()
    assert len(names) == len(set(names)) == 24
    assert names[:5] == ["P1-1", "P1-2", "P1-3", "P1-4", "P2-1"]
    assert len(set(st.datasets.simulated_names(n_replicates=3))) == 72
    assert st.datasets.simulated_names(patterns="P6", settings=[4], n_replicates=2) == ["P6-4", "P6-4-r1"]


def test_the_benchmark_yields_what_simulate_returns(every, freeze):
    assert list(every) == st.datasets.simulated_names(n_replicates=2)
    for name, adata in every.items():
        assert adata.uns["simulation"]["name"] == name
    alone = st.datasets.simulate("P3", setting=4, seed=2, replicate=1, edge_mode="additive", **TINY)
    assert freeze(alone) == freeze(every["P3-4-r1"])
    assert alone.uns["simulation"]["edge_mode"] == "additive"
    # Additive edges lose more.
    assert set(alone.obs["dropout_rate"]) == {0.2, 0.7}
    absolute = st.datasets.simulate("P3", setting=4, **TINY)
    assert set(absolute.obs["dropout_rate"]) == {0.2, 0.5}


def test_the_benchmark_is_lazy_makes_a_pattern_once_and_its_tissues_are_independent(monkeypatch):
    from stdenoise.datasets import _simulate

    made, make = [], _simulate._make_tissue
    monkeypatch.setattr(_simulate, "_make_tissue", lambda *args, **kwargs: made.append(args) or make(*args, **kwargs))
    sets = st.datasets.simulated_benchmark(patterns=["P1", "P2"], settings=[1, 2], **TINY)
    assert made == []
    _, first = next(sets)
    assert made == [("P1",)]
    expected = first.layers["true_counts"].copy()
    for values in (*(first.layers[name].data for name in LAYERS), first.obsm["spatial"], first.X.data):
        values[:] = -1
    _, second = next(sets)
    np.testing.assert_array_equal(second.layers["true_counts"].toarray(), expected.toarray())
    assert second.obsm["spatial"].min() >= 0
    assert second.layers["observed_before_dropout"].min() >= 0
    assert len(list(sets)) == 2
    assert made == [("P1",), ("P2",)]


def test_bad_input():
    for change, error, words in [
        ({"pattern": "P7"}, ValueError, r"'P7'.*\['P1'"),
        ({"setting": 5}, ValueError, r"setting=5 .*\[1, 2, 3, 4\]"),
        ({"edge_mode": "add"}, ValueError, "'add'.*'absolute', 'additive'"),
        ({"n_spots": -3}, ValueError, "n_spots .* -3"),
        ({"n_spots": 0}, ValueError, "n_spots .* 0"),
        ({"n_spots": 2}, ValueError, "n_spots .* 3.* 2"),
        ({"n_genes": 0}, ValueError, "n_genes .* 0"),
        ({"n_genes": 5.0}, TypeError, "n_genes"),
        ({"seed": -1}, ValueError, "seed"),
        ({"replicate": -1}, ValueError, "replicate"),
    ]:
        with pytest.raises(error, match=words):
            st.datasets.simulate(**change)
    # The benchmark refuses before it starts.
    for change, words in [
        ({"patterns": ["P1", "P0"]}, "'P0'"),
        ({"settings": [0]}, "setting=0"),
        ({"n_replicates": 0}, "n_replicates"),
        ({"edge_mode": "x"}, "'x'"),
        ({"n_spots": 4}, "n_spots .* 5"),
    ]:
        with pytest.raises(ValueError, match=words):
            st.datasets.simulated_benchmark(**change)


def test_smallest_size():
    assert st.datasets.simulate("P1", setting=4, n_spots=3, n_genes=1).shape == (3, 1)
