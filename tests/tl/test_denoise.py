import hashlib
import sys
import types
from importlib.metadata import EntryPoint
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise._io.read import layers_of
from stdenoise.methods import DUSTEDConfig, Method, MethodInfo, _registry
from stdenoise.spatial.results import Block

RESULT = ("dusted_mean", "dusted_dispersion", "dusted_dropout")
SUBSET = ["gene7", "gene1", "gene10"]
SORTED = ["gene1", "gene7", "gene10"]


def mean_of(adata, **arguments):
    return st.tl.denoise(adata, copy=True, **arguments).layers["dusted_mean"]


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# What is written


@pytest.mark.parametrize(("key", "genes", "likelihood"), [(None, None, "nb"), ("mine", SUBSET, "zinb")])
def test_nothing_but_the_result_is_written(hexagonal, small, freeze, key, genes, likelihood):
    hexagonal.raw = hexagonal.copy()
    hexagonal.layers["mine"] = hexagonal.X.toarray()
    before = freeze(hexagonal)
    arguments = {"likelihood": likelihood, "return_attention": genes is not None}
    assert st.tl.denoise(hexagonal, key_added=key, genes=genes, **arguments, **small) is None
    after = freeze(hexagonal)
    key = key or "dusted"
    arrays = ["mean", "dispersion"] + (["dropout"] if likelihood == "zinb" else [])
    expected = {f"obsm/X_{key}", f"uns/{key}"} | {f"{'obsm' if genes else 'layers'}/{key}_{name}" for name in arrays}
    if genes:
        expected |= {f"obsp/{key}_attention", f"var/{key}_modelled"}
    fresh = set()
    for name in ("layers", "obsm", "obsp", "uns"):
        assert {kept: after[name][kept] for kept in before[name]} == before[name]
        fresh |= {f"{name}/{new}" for new in after[name].keys() - before[name].keys()}
    for name in ("X", "raw", "obs"):
        assert after[name] == before[name]
    fresh |= {f"var/{new}" for new in after["var"][1].keys() - before["var"][1].keys()}
    assert fresh == set(hexagonal.uns[key]["written"]) == expected
    assert hexagonal.obsm[f"X_{key}"].shape == (61, 3)
    for name in arrays:
        if genes is None:
            assert hexagonal.layers[f"{key}_{name}"].shape == (61, 12)
            assert hexagonal.layers[f"{key}_{name}"].dtype == np.float32
        else:
            frame = hexagonal.obsm[f"{key}_{name}"]
            assert (list(frame.columns), list(frame.index)) == (SORTED, list(hexagonal.obs_names))
    if genes:
        assert list(hexagonal.var_names[hexagonal.var[f"{key}_modelled"]]) == SORTED
        assert list(hexagonal.uns[key]["genes"]) == SORTED


def test_values_are_in_their_ranges(irregular, small, caplog):
    caplog.set_level("INFO", logger="stdenoise")
    st.tl.denoise(irregular, return_attention=True, **small)
    mean, dispersion, dropout = (irregular.layers[name] for name in RESULT)
    assert (np.isfinite(mean) & (mean > 0)).all()
    assert (np.isfinite(dispersion) & (dispersion > 0)).all()
    assert ((dropout >= 0) & (dropout <= 1)).all()
    assert np.isfinite(irregular.obsm["X_dusted"]).all()
    attention = irregular.obsp["dusted_attention"]
    np.testing.assert_allclose(attention.sum(axis=1), 1, rtol=1e-5)
    expected = irregular.obsp["spatial_connectivities"].toarray() + np.eye(41) > 0
    np.testing.assert_array_equal(attention.toarray() > 0, expected)
    assert "1 of 41 spots are empty" in caplog.text
    assert "wrote layers/dusted_mean" in caplog.text


def test_genes_in_any_sequence(hexagonal, small, assert_same):
    listed = st.tl.denoise(hexagonal, genes=SUBSET, copy=True, **small)
    hexagonal.var["highly_variable"] = hexagonal.var_names.isin(SUBSET)
    for genes in (tuple(SUBSET), pd.Index(SUBSET), np.array(SUBSET), "highly_variable"):
        assert_same(listed.obsm, st.tl.denoise(hexagonal, genes=genes, copy=True, **small).obsm)
    whole = st.tl.denoise(hexagonal, genes=list(hexagonal.var_names[::-1]), copy=True, **small)
    np.testing.assert_array_equal(whole.obsm["dusted_mean"].to_numpy(), mean_of(hexagonal, **small))


def test_size_factors_of_a_subset_count_all_genes(hexagonal):
    hexagonal.X = hexagonal.X[::-1].copy()
    st.tl.denoise(hexagonal, "gene_mean", genes=SUBSET)
    counts = hexagonal.X.toarray()
    depth = counts.sum(axis=1)
    expected = depth[:, None] * (counts[:, [1, 7, 10]].sum(axis=0) / depth.sum())
    np.testing.assert_allclose(hexagonal.obsm["gene_mean_mean"], expected, rtol=1e-5)


def test_provenance(hexagonal, small):
    st.tl.denoise(hexagonal, seed=7, device="cpu", likelihood="nb", **small)
    record = hexagonal.uns["dusted"]
    assert (record["method"], record["scale"]) == ("dusted", "counts")
    assert (record["layer"], record["graph_key"], record["library_key"]) == ("X", "spatial", "")
    assert (record["seed"], record["device"], record["genes"]) == (7, "cpu", "all")
    assert DUSTEDConfig(**record["params"]) == DUSTEDConfig(likelihood="nb", **small)
    assert record["versions"]["stdenoise"] == st.__version__
    assert set(record["versions"]) == {"python", "stdenoise", "torch", "anndata"}
    n_values = {name: len(values) for name, values in record["history"].items()}
    assert n_values == {"loss": 3, "gradient_norm": 3}


def test_copies_and_views_leave_what_they_come_from(hexagonal, small, unchanged, assert_same):
    view, other = hexagonal[10:50, 2:], hexagonal[10:50, 2:]
    with unchanged(hexagonal):
        copied = st.tl.denoise(view, copy=True, **small)
        assert view.is_view
        assert st.tl.denoise(other, **small) is None
    whole = view.copy()
    st.tl.denoise(whole, **small)
    for adata in (copied, other):
        assert_same(layers_of(adata), layers_of(whole))
        assert_same(adata.uns, whole.uns)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_rerun_replaces_what_came_back_from_the_disk_and_nothing_else(hexagonal, small, reload, assert_same, suffix):
    def back_from_disk(adata):
        back = reload(adata, suffix)
        for part in ("layers", "obsm", "obsp", "uns", "var"):
            assert_same(getattr(adata, part), getattr(back, part))
        assert_same(st.get.denoised(back).X, st.get.denoised(adata).X)
        return back

    st.tl.denoise(hexagonal, key_added="other", seed=1, **small)
    other = hexagonal.layers["other_mean"].copy()
    st.tl.denoise(hexagonal, genes=SUBSET, return_attention=True, **small)
    back = back_from_disk(hexagonal)
    st.tl.denoise(back, **small)
    assert set(back.obsm) == {"spatial", "X_dusted", "X_other"}
    assert "dusted_modelled" not in back.var
    assert "dusted_attention" not in back.obsp
    assert (back.layers["dusted_mean"] != other).any()
    back = back_from_disk(back)
    st.tl.denoise(back, likelihood="nb", **small)
    assert {name for name in layers_of(back) if "dusted" in name} == set(RESULT[:2])
    st.tl.denoise(back, genes=SUBSET, **small)
    assert set(layers_of(back)) == {"true_mean", "other_mean", "other_dispersion", "other_dropout"}
    np.testing.assert_array_equal(back.layers["other_mean"], other)


def test_what_others_wrote_is_not_overwritten(hexagonal, small, unchanged):
    for path, value in {
        "layers/dusted_mean": hexagonal.X,
        "layers/dusted_dropout": hexagonal.X,
        "obsm/dusted_mean": np.ones((61, 2)),
        "obsm/X_dusted": np.ones((61, 2)),
        "obsp/dusted_attention": sparse.eye_array(61, format="csr"),
        "var/dusted_modelled": 1,
        "uns/dusted": {"notes": "mine"},
    }.items():
        adata = hexagonal.copy()
        holder, name = path.split("/")
        getattr(adata, holder)[name] = value
        with unchanged(adata), pytest.raises(ValueError, match=f"{path} exists"):
            st.tl.denoise(adata, **small)
    st.tl.denoise(adata, key_added="free", **small)
    assert "free_mean" in adata.layers


def test_layer_is_read_instead_of_x(hexagonal, small):
    expected = mean_of(hexagonal, **small)
    hexagonal.layers["raw_counts"] = hexagonal.X.copy()
    for other in (np.full((61, 12), -0.5), None):
        hexagonal.X = other
        after = st.tl.denoise(hexagonal, layer="raw_counts", copy=True, **small)
        np.testing.assert_array_equal(after.layers["dusted_mean"], expected)
    assert after.uns["dusted"]["layer"] == "raw_counts"


# What the numbers depend on


def test_the_seed_decides_and_global_generators_neither_matter_nor_change(hexagonal, small):
    expected = mean_of(hexagonal, seed=3, **small)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert digest(mean_of(hexagonal, seed=3, **small)) == digest(expected)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert (mean_of(hexagonal, seed=0, **small) != expected).any()


FORMS = {
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "fortran": lambda x: np.asfortranarray(x.toarray()),
    "float64": lambda x: x.astype(np.float64),
    "int64": lambda x: x.astype(np.int64),
    "dense uint8": lambda x: x.toarray().astype(np.uint8),
    "unsorted": lambda x: sparse.csr_matrix(x[:, ::-1])[:, ::-1],
    "stored zeros": lambda x: sparse.csr_matrix(
        (np.append(x.data, 0), np.append(x.indices, 0), [*x.indptr[:-1], x.nnz + 1])
    ),
}


def test_the_form_of_the_counts_does_not_matter(irregular, small, freeze):
    expected = mean_of(irregular, **small)
    for name, form in FORMS.items():
        adata = irregular.copy()
        adata.X = form(irregular.X)
        before = freeze(adata)["X"]
        np.testing.assert_allclose(mean_of(adata, **small), expected, rtol=1e-6, err_msg=name)
        assert freeze(adata)["X"] == before, name


def test_a_configured_method_equals_its_name_and_parameters(hexagonal, small):
    configured = st.methods.DUSTED(likelihood="nb", **small)
    named = mean_of(hexagonal, method="dusted", likelihood="nb", **small)
    np.testing.assert_array_equal(named, mean_of(hexagonal, likelihood="nb", **small))
    st.tl.denoise(hexagonal, configured)
    np.testing.assert_array_equal(hexagonal.layers["dusted_mean"], named)


def test_presets_are_recorded_value_by_value(hexagonal, small):
    del small["lr"]
    for preset, expected in (
        ("dlpfc", {"likelihood": "zinb", "alpha": 1.5, "lr": 1e-4}),
        ("hocwta", {"likelihood": "nb", "alpha": 1.0, "lr": 2e-4}),
        ("simulated", {"likelihood": "nb", "alpha": 0.3, "lr": 1e-4}),
    ):
        st.tl.denoise(hexagonal, preset=preset, **small)
        assert hexagonal.uns["dusted"]["params"].items() >= expected.items()
    st.tl.denoise(hexagonal, preset=preset, alpha=0.9, **small)
    assert hexagonal.uns["dusted"]["params"].items() >= {**expected, "alpha": 0.9}.items()


def test_the_best_weights_are_kept_where_the_loss_rises(hexagonal, small):
    rising = {"schedule": "paper", **small, "lr": 0.1}
    best, last = (st.tl.denoise(hexagonal, restore_best=choice, copy=True, **rising) for choice in (True, False))
    loss = best.uns["dusted"]["history"]["loss"]
    assert loss.argmin() == 1
    np.testing.assert_array_equal(loss, last.uns["dusted"]["history"]["loss"])
    assert (best.layers["dusted_mean"] != last.layers["dusted_mean"]).any()
    # They are those of a run that ends after the first step.
    stopped = mean_of(hexagonal, restore_best=False, **{**rising, "n_epochs": 1})
    np.testing.assert_array_equal(best.layers["dusted_mean"], stopped)


def test_parameters_change_the_numbers(hexagonal, small):
    small |= {"likelihood": "nb", "clip": 0.5, "lr": 1e-3}
    before = mean_of(hexagonal, **small)
    for changed in ({"gene_attention": False}, {"alpha": 0.0}, {"gate_reduction": 1}, {"weight_decay": 1.0}):
        assert not np.allclose(before, mean_of(hexagonal, **{**small, **changed}), rtol=1e-6), changed


def test_reduction_divides_the_loss_by_the_number_of_genes(hexagonal, small):
    published, mean = (
        st.tl.denoise(hexagonal, likelihood="nb", reduction=reduction, copy=True, **small).uns["dusted"]["history"]
        for reduction in ("published", "mean")
    )
    assert published["loss"][0] == pytest.approx(12 * mean["loss"][0], rel=1e-5)


def test_of_the_graph_its_pattern_matters_and_nothing_else(hexagonal, small):
    expected = mean_of(hexagonal, **small)
    st.pp.spatial_graph(hexagonal, radius=180, key_added="wide")
    wide = st.tl.denoise(hexagonal, graph_key="wide", copy=True, **small)
    assert (wide.layers["dusted_mean"] != expected).any()
    assert wide.uns["dusted"]["graph_key"] == "wide"
    weighted = hexagonal.obsp["spatial_connectivities"] * 3 + sparse.eye_array(61)
    for dtype in (bool, np.int8, np.float32):
        hexagonal.obsp["spatial_connectivities"] = sparse.csc_matrix(weighted.astype(dtype))
        np.testing.assert_array_equal(mean_of(hexagonal, **small), expected)


def test_a_graph_of_squidpy_is_read(hexagonal, small):
    sq = pytest.importorskip("squidpy")
    ours = mean_of(hexagonal, **small)
    del hexagonal.obsp, hexagonal.uns["spatial_neighbors"]
    sq.gr.spatial_neighbors(hexagonal, coord_type="generic", radius=120)
    np.testing.assert_array_equal(mean_of(hexagonal, **small), ours)


def test_training_lowers_the_loss(hexagonal, small):
    st.tl.denoise(hexagonal, **{**small, "n_epochs": 40})
    loss = hexagonal.uns["dusted"]["history"]["loss"]
    assert loss[-1] < 0.8 * loss[0]


# Two libraries


def test_one_edge_across_libraries_is_enough_to_refuse(irregular, small, unchanged):
    built = st.tl.denoise(irregular, library_key="library", copy=True, **small)
    assert built.uns["dusted"]["library_key"] == "library"
    graph = irregular.obsp["spatial_connectivities"].tolil()
    left, right = (int(np.flatnonzero(irregular.obs["library"] == name)[0]) for name in ("left", "right"))
    graph[left, right] = 1
    irregular.obsp["spatial_connectivities"] = graph.tocsr()
    with unchanged(irregular), pytest.raises(ValueError, match=r"^1 of \d+ edges .*'library'"):
        st.tl.denoise(irregular, library_key="library", **small)


def test_libraries_without_edges_between_them_do_not_mix_in_the_first_step(irregular, small):
    # The weights are shared, so compare the initial ones: one epoch returns the pass before the first step.
    small |= {"schedule": "paper", "n_epochs": 1, "gene_attention": False}
    before = mean_of(irregular, **small)
    right = (irregular.obs["library"] == "right").to_numpy()
    matrix = irregular.X.toarray()
    matrix[right] = matrix[right][:, ::-1]
    irregular.X = sparse.csr_matrix(matrix)
    after = mean_of(irregular, **small)
    np.testing.assert_allclose(after[~right], before[~right], rtol=1e-5)
    assert not np.allclose(after[right], before[right], rtol=1e-2)


# Methods of other packages


class Shrink(Method):
    """Half of the log-normalised values; needs no graph."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="shrink", summary="", needs=(), scale="log1p", writes=("mean",), size="", reference="", licence=""
    )
    config_type = DUSTEDConfig

    def fit(self, spots, *, seed, progress):
        assert not spots.has("graph")
        return Block(mean=0.5 * spots.lognorm.to_dense(), scale="log1p")


class Misfit(Shrink):
    """Has latent variables of too few spots, which cannot be stored."""

    writes = ("mean", "latent")

    def fit(self, spots, *, seed, progress):
        return Block(mean=spots.lognorm.to_dense(), scale="log1p", latent=torch.zeros(len(spots.size_factors) - 1, 2))


def test_a_result_that_cannot_be_stored_leaves_the_one_before(hexagonal, unchanged):
    st.tl.denoise(hexagonal, "gene_mean", genes=SUBSET, key_added="mine")
    with unchanged(hexagonal), pytest.raises(ValueError, match="60"):
        st.tl.denoise(hexagonal, Misfit(), key_added="mine")


@pytest.fixture
def other_package(monkeypatch):
    """A package that registers methods through the entry-point group."""
    module = types.ModuleType("a_package_of_others")
    module.Shrink, module.number = Shrink, 3
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def register(name, attribute):
        entry = EntryPoint(name, f"{module.__name__}:{attribute}", "stdenoise.methods")
        monkeypatch.setattr(_registry, "entry_points", lambda *, group: [entry] if group == entry.group else [])

    return register


def test_a_registered_method_is_run_by_its_name(hexagonal, other_package, unchanged):
    other_package("shrink", "Shrink")
    del hexagonal.obsp
    # It reads no graph, but a mistyped column is an error.
    with unchanged(hexagonal), pytest.raises(KeyError, match="libary"):
        st.tl.denoise(hexagonal, method="shrink", library_key="libary")
    st.tl.denoise(hexagonal, method="shrink")
    counts = hexagonal.X.toarray()
    expected = 0.5 * np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(hexagonal.layers["shrink_mean"], expected, rtol=1e-5)
    assert hexagonal.uns["shrink"]["scale"] == "log1p"
    assert set(layers_of(hexagonal)) == {"true_mean", "shrink_mean"}
    assert "shrink" in st.methods.table().index


def test_a_built_in_name_cannot_be_taken_over_and_what_is_no_method_is_named(hexagonal, other_package):
    other_package("dusted", "Shrink")
    assert _registry.registered()["dusted"] is st.methods.DUSTED
    other_package("three", "number")
    with pytest.raises(TypeError, match="'a_package_of_others:number'"):
        st.tl.denoise(hexagonal, method="three")


def test_progress_goes_to_standard_error_when_asked_for(hexagonal, small, capsys):
    for setting, argument, shown in ((None, True, True), (True, False, False), (True, None, True)):
        with st.settings.override(progress=setting):
            st.tl.denoise(hexagonal, progress=argument, **small)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("3/3" in captured.err) == shown
