import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import stdenoise as st
from stdenoise.datasets._dropout import SETTINGS
from stdenoise.datasets._patterns import PATTERNS

TINY = {"n_spots": 200, "n_genes": 60}


@pytest.fixture(scope="module")
def tissues():
    """One tissue under the four settings."""
    return dict(st.datasets.simulated_benchmark(patterns=["P1"], seed=3, **TINY))


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_fields(pattern):
    adata = st.datasets.simulate(pattern, setting=4, **TINY)
    assert adata.shape == (200, 60)
    for matrix in (adata.X, adata.layers["true_counts"], adata.layers["observed_before_dropout"]):
        assert sparse.isspmatrix_csr(matrix)
        assert matrix.dtype == np.float32
        assert (matrix.data >= 1).all()
        np.testing.assert_array_equal(matrix.data, np.rint(matrix.data))
    assert adata.obs["cell_type"].cat.categories.tolist() == [
        f"type{i + 1}" for i in range(len(PATTERNS[pattern].shares))
    ]
    assert adata.obs["cell_type"].value_counts().sum() == 200
    assert adata.uns["simulation"]["layout"]["sizes"].sum() == 200
    assert adata.uns["simulation"]["protocol"]["umi"] == (pattern != "P6")
    assert adata.obsm["spatial"].shape == (200, 2)
    assert adata.var["highly_expressed"].sum() == 1
    if pattern != "P6":
        excess = adata.layers["observed_before_dropout"] - adata.layers["true_counts"]
        assert excess.max() <= 0


def test_full_size_of_the_first_pattern():
    assert st.datasets.simulate("P1").shape == (1000, 500)


def test_settings_share_everything_but_dropout(tissues, freeze):
    first, *others = tissues.values()
    for other in others:
        for layer in ("true_counts", "observed_before_dropout"):
            assert freeze(other.layers[layer]) == freeze(first.layers[layer])
        assert freeze(other.obsm["spatial"]) == freeze(first.obsm["spatial"])
        shared = ["cell_type", "capture_rate", "depth"]
        assert freeze(other.obs[shared]) == freeze(first.obs[shared])
        assert freeze(other.X) != freeze(first.X)


def test_the_first_setting_loses_nothing(tissues, assert_same):
    adata = tissues["P1-1"]
    assert_same(adata.X, adata.layers["observed_before_dropout"])
    assert adata.layers["dropout_mask"].nnz == 0
    assert (adata.obs["dropout_rate"] == 0).all()
    assert not adata.obs["in_edge_band"].any()


@pytest.mark.parametrize("setting", [2, 3, 4])
def test_losses(tissues, setting):
    adata = tissues[f"P1-{setting}"]
    before, mask = adata.layers["observed_before_dropout"].toarray(), adata.layers["dropout_mask"].toarray()
    np.testing.assert_array_equal(adata.X.toarray(), np.where(mask, 0, before))
    assert (before[mask] > 0).all()
    band = adata.obs["in_edge_band"].to_numpy()
    distance = np.minimum(adata.obsm["spatial"], 30 - adata.obsm["spatial"]).min(axis=1)
    np.testing.assert_array_equal(band, distance < SETTINGS[setting].width)
    for spots, rate in ((band, SETTINGS[setting].edge), (~band, SETTINGS[setting].overall)):
        n = (before[spots] > 0).sum()
        assert (adata.obs["dropout_rate"].to_numpy()[spots] == rate).all()
        assert mask[spots].sum() / n == pytest.approx(rate, abs=3 * np.sqrt(rate * (1 - rate) / n))


def test_additive_edges_lose_more():
    absolute, additive = (
        st.datasets.simulate("P2", setting=3, edge_mode=mode, **TINY) for mode in ("absolute", "additive")
    )
    assert set(absolute.obs["dropout_rate"]) == {0.1, 0.3}
    assert set(additive.obs["dropout_rate"]) == {0.1, 0.4}
    assert additive.uns["simulation"]["edge_mode"] == "additive"


@pytest.mark.parametrize("pattern", ["P1", "P6"])
def test_the_same_seed_gives_the_same_bits(pattern, freeze):
    first, second = (st.datasets.simulate(pattern, setting=2, seed=5, **TINY) for _ in range(2))
    assert freeze(first) == freeze(second)


@pytest.mark.parametrize("change", [{"seed": 6}, {"replicate": 1}, {"pattern": "P2"}], ids=str)
def test_another_seed_gives_another_tissue(change, freeze):
    plan = {"pattern": "P1", "setting": 2, "seed": 5, **TINY}
    first, second = st.datasets.simulate(**plan), st.datasets.simulate(**{**plan, **change})
    assert freeze(first.layers["true_counts"]) != freeze(second.layers["true_counts"])
    assert freeze(first.obsm["spatial"]) != freeze(second.obsm["spatial"])


def test_global_generators_are_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    st.datasets.simulate("P1", **TINY)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_survives_a_round_trip(tissues, reload, assert_same, suffix):
    adata = tissues["P1-3"]
    back = reload(adata, suffix)
    for name in adata.layers:
        assert_same(adata.layers[name], back.layers[name])
    assert_same(adata.X, back.X)
    assert_same(adata.obs, back.obs)
    assert_same(adata.var, back.var)
    assert_same(adata.uns["simulation"], back.uns["simulation"])
    assert back.layers["dropout_mask"].dtype == bool


def test_the_truth_differs_between_types(tissues):
    truth = st.datasets.simulate("P1", n_genes=200, n_spots=300)
    logs = np.log1p(truth.layers["true_counts"].toarray())
    types = truth.obs["cell_type"].cat.codes.to_numpy()
    means = np.array([logs[types == kind].mean(axis=0) for kind in range(3)])
    shuffled = np.random.default_rng(0).permutation(types)
    null = np.array([logs[shuffled == kind].mean(axis=0) for kind in range(3)])
    assert means.var(axis=0).mean() > 10 * null.var(axis=0).mean()


# The benchmark


def test_names():
    names = st.datasets.simulated_names()
    assert len(names) == len(set(names)) == 24
    assert names[:5] == ["P1-1", "P1-2", "P1-3", "P1-4", "P2-1"]
    assert len(set(st.datasets.simulated_names(n_replicates=3))) == 72
    assert st.datasets.simulated_names(patterns=["P6"], settings=[4], n_replicates=2) == ["P6-4", "P6-4-r1"]


def test_the_benchmark_yields_what_simulate_returns(freeze):
    sets = list(st.datasets.simulated_benchmark(seed=2, n_replicates=2, edge_mode="additive", **TINY))
    assert [name for name, _ in sets] == st.datasets.simulated_names(n_replicates=2)
    for name, adata in sets:
        assert adata.uns["simulation"]["name"] == name
    alone = st.datasets.simulate("P3", setting=4, seed=2, replicate=1, edge_mode="additive", **TINY)
    assert freeze(alone) == freeze(dict(sets)["P3-4-r1"])


def test_the_benchmark_is_lazy_and_its_tissues_are_independent():
    sets = st.datasets.simulated_benchmark(patterns=["P1"], settings=[1, 2], **TINY)
    _, first = next(sets)
    expected = first.layers["true_counts"].copy()
    first.layers["true_counts"].data[:] = -1
    first.obsm["spatial"][:] = -1
    _, second = next(sets)
    np.testing.assert_array_equal(second.layers["true_counts"].toarray(), expected.toarray())
    assert second.obsm["spatial"].min() >= 0


def test_the_truth_of_a_pattern_is_made_once(monkeypatch):
    from stdenoise.datasets import _simulate

    made, make = [], _simulate._make_tissue
    monkeypatch.setattr(_simulate, "_make_tissue", lambda *args, **kwargs: made.append(args) or make(*args, **kwargs))
    assert len(list(st.datasets.simulated_benchmark(**TINY))) == 24
    assert made == [(pattern,) for pattern in PATTERNS]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pattern": "P7"}, ValueError, r"pattern='P7' is not valid; choose from \['P1'"),
        ({"setting": 5}, ValueError, r"setting=5 is not valid; choose from \[1, 2, 3, 4\]"),
        ({"edge_mode": "add"}, ValueError, "choose from .*'absolute', 'additive'"),
        ({"n_spots": -3}, ValueError, "n_spots must be an integer >= 1, not -3"),
        ({"n_spots": 0}, ValueError, "n_spots must be an integer >= 1, not 0"),
        ({"n_spots": 2}, ValueError, "n_spots must be an integer >= 3, one for each cell type, not 2"),
        ({"n_genes": 0}, ValueError, "n_genes must be an integer >= 1, not 0"),
        ({"n_genes": 5.0}, TypeError, "n_genes must be an integer"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0"),
        ({"replicate": -1}, ValueError, "replicate must be an integer >= 0"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        st.datasets.simulate(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patterns": ["P1", "P0"]}, "pattern='P0' is not valid"),
        ({"settings": [0]}, "setting=0 is not valid"),
        ({"n_replicates": 0}, "n_replicates must be an integer >= 1"),
        ({"edge_mode": "x"}, "edge_mode='x' is not valid"),
        ({"n_spots": 4}, "n_spots must be an integer >= 5"),
    ],
    ids=str,
)
def test_the_benchmark_refuses_before_it_starts(arguments, message):
    with pytest.raises(ValueError, match=message):
        st.datasets.simulated_benchmark(**arguments)


@pytest.mark.parametrize("shape", [(3, 1), (7, 2)])
def test_smallest_sizes(shape):
    adata = st.datasets.simulate("P1", setting=4, n_spots=shape[0], n_genes=shape[1])
    assert isinstance(adata, ad.AnnData)
    assert adata.shape == shape
