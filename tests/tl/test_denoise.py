import hashlib
import subprocess
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
from stdenoise.methods import DUSTEDConfig, Method, MethodInfo, _registry
from stdenoise.spatial.results import Denoised

CPU = torch.device("cpu")
RESULT = ("dusted_mean", "dusted_dispersion", "dusted_dropout")
SUBSET = ["gene7", "gene1", "gene10"]


def mean_of(adata, **arguments):
    return st.tl.denoise(adata, copy=True, **arguments).layers["dusted_mean"]


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# What is written


@pytest.mark.parametrize(("likelihood", "names"), [("zinb", RESULT), ("nb", RESULT[:2])])
def test_all_genes_go_to_layers(hexagonal, small, likelihood, names):
    st.tl.denoise(hexagonal, likelihood=likelihood, **small)
    assert set(hexagonal.layers) == {"true_mean", *names}
    assert set(hexagonal.obsm) == {"spatial", "X_dusted"}
    assert "dusted_modelled" not in hexagonal.var
    for name in names:
        assert hexagonal.layers[name].shape == (61, 12)
        assert hexagonal.layers[name].dtype == np.float32
    assert hexagonal.obsm["X_dusted"].shape == (61, small["n_latent"])


def test_values_are_in_their_ranges(irregular, small):
    st.tl.denoise(irregular, **small)
    mean, dispersion, dropout = (irregular.layers[name] for name in RESULT)
    assert (np.isfinite(mean) & (mean > 0)).all()
    assert (np.isfinite(dispersion) & (dispersion > 0)).all()
    assert ((dropout >= 0) & (dropout <= 1)).all()
    assert np.isfinite(irregular.obsm["X_dusted"]).all()


@pytest.mark.parametrize(("likelihood", "names"), [("zinb", RESULT), ("nb", RESULT[:2])])
def test_some_genes_go_to_data_frames_in_the_order_of_var(hexagonal, small, likelihood, names):
    st.tl.denoise(hexagonal, genes=SUBSET, likelihood=likelihood, **small)
    assert set(hexagonal.layers) == {"true_mean"}
    assert set(hexagonal.obsm) == {"spatial", "X_dusted", *names}
    for name in names:
        assert list(hexagonal.obsm[name].columns) == ["gene1", "gene7", "gene10"]
        assert hexagonal.obsm[name].index.equals(hexagonal.obs_names)
    assert list(hexagonal.var_names[hexagonal.var["dusted_modelled"]]) == ["gene1", "gene7", "gene10"]
    assert list(hexagonal.uns["dusted"]["genes"]) == ["gene1", "gene7", "gene10"]


@pytest.mark.parametrize("container", [tuple, pd.Index, np.array])
def test_genes_in_any_sequence(hexagonal, small, container, assert_same):
    listed = st.tl.denoise(hexagonal, genes=SUBSET, copy=True, **small)
    other = st.tl.denoise(hexagonal, genes=container(SUBSET), copy=True, **small)
    assert_same(listed.obsm, other.obsm)


def test_highly_variable_genes_are_those_marked_in_var(hexagonal, small, assert_same):
    hexagonal.var["highly_variable"] = hexagonal.var_names.isin(SUBSET)
    listed = st.tl.denoise(hexagonal, genes=SUBSET, copy=True, **small)
    marked = st.tl.denoise(hexagonal, genes="highly_variable", copy=True, **small)
    assert_same(listed.obsm, marked.obsm)


def test_all_genes_by_name_give_the_numbers_of_no_choice(hexagonal, small):
    named = st.tl.denoise(hexagonal, genes=list(hexagonal.var_names), copy=True, **small)
    np.testing.assert_array_equal(named.obsm["dusted_mean"].to_numpy(), mean_of(hexagonal, **small))


def test_provenance(hexagonal, small):
    st.tl.denoise(hexagonal, seed=7, device="cpu", likelihood="nb", **small)
    record = hexagonal.uns["dusted"]
    assert record["method"] == "dusted"
    assert record["scale"] == "counts"
    assert (record["layer"], record["graph_key"], record["library_key"]) == ("X", "spatial", "")
    assert (record["seed"], record["device"], record["genes"]) == (7, "cpu", "all")
    assert DUSTEDConfig(**record["params"]) == DUSTEDConfig(likelihood="nb", **small)
    assert record["versions"]["stdenoise"] == st.__version__
    assert set(record["versions"]) == {"python", "stdenoise", "torch", "anndata"}
    n_values = {name: len(values) for name, values in record["history"].items()}
    assert n_values == {"loss": 3, "gradient_norm": 3}


def test_provenance_lists_what_was_written(hexagonal, small, freeze):
    before = freeze(hexagonal)
    st.tl.denoise(hexagonal, genes=SUBSET, return_attention=True, **small)
    after = freeze(hexagonal)
    fresh = {
        f"{part}/{name}" for part in ("layers", "obsm", "obsp", "uns") for name in set(after[part]) - set(before[part])
    }
    fresh |= {f"var/{name}" for name in set(after["var"][1]) - set(before["var"][1])}
    assert set(hexagonal.uns["dusted"]["written"]) == fresh


@pytest.mark.parametrize("genes", [None, SUBSET])
def test_input_is_kept_to_the_byte(hexagonal, small, freeze, genes):
    hexagonal.raw = hexagonal.copy()
    hexagonal.layers["mine"] = hexagonal.X.toarray()
    before = freeze(hexagonal)
    st.tl.denoise(hexagonal, genes=genes, **small)
    after = freeze(hexagonal)
    for name in ("X", "raw", "obs", "obsp"):
        assert after[name] == before[name]
    for name in ("layers", "obsm", "uns"):
        assert {key: after[name][key] for key in before[name]} == before[name]


def test_copy_leaves_the_input_as_it_was(hexagonal, small, unchanged, assert_same):
    with unchanged(hexagonal):
        copied = st.tl.denoise(hexagonal, copy=True, **small)
    assert st.tl.denoise(hexagonal, **small) is None
    assert_same(copied.layers, hexagonal.layers)
    assert_same(copied.uns, hexagonal.uns)


def test_a_view_is_written_to_without_its_parent(hexagonal, small, unchanged):
    with unchanged(hexagonal):
        view = hexagonal[:40]
        st.tl.denoise(view, **small)
    np.testing.assert_array_equal(view.layers["dusted_mean"], mean_of(hexagonal[:40].copy(), **small))


def test_key_added_names_everything(hexagonal, small):
    st.tl.denoise(hexagonal, genes=SUBSET, key_added="mine", return_attention=True, **small)
    assert set(hexagonal.obsm) == {"spatial", "X_mine", "mine_mean", "mine_dispersion", "mine_dropout"}
    assert "mine_modelled" in hexagonal.var
    assert "mine_attention" in hexagonal.obsp
    assert hexagonal.uns["mine"]["method"] == "dusted"
    assert not any("dusted" in name for part in ("layers", "uns", "var") for name in getattr(hexagonal, part))


def test_results_under_two_keys_live_side_by_side(hexagonal, small):
    st.tl.denoise(hexagonal, **small)
    first = hexagonal.layers["dusted_mean"].copy()
    st.tl.denoise(hexagonal, key_added="other", seed=1, **small)
    np.testing.assert_array_equal(hexagonal.layers["dusted_mean"], first)
    assert (hexagonal.layers["other_mean"] != first).any()


def test_a_rerun_replaces_the_dropout_of_another_likelihood(hexagonal, small):
    st.tl.denoise(hexagonal, **small)
    st.tl.denoise(hexagonal, likelihood="nb", **small)
    assert set(hexagonal.layers) == {"true_mean", "dusted_mean", "dusted_dispersion"}


def test_a_rerun_replaces_a_subset_by_all_genes_and_back(hexagonal, small):
    st.tl.denoise(hexagonal, genes=SUBSET, return_attention=True, **small)
    st.tl.denoise(hexagonal, **small)
    assert set(hexagonal.obsm) == {"spatial", "X_dusted"}
    assert "dusted_modelled" not in hexagonal.var
    assert "dusted_attention" not in hexagonal.obsp
    st.tl.denoise(hexagonal, genes=SUBSET, **small)
    assert set(hexagonal.layers) == {"true_mean"}


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_rerun_replaces_what_came_back_from_the_disk(hexagonal, small, reload, suffix):
    st.tl.denoise(hexagonal, **small)
    back = reload(hexagonal, suffix)
    st.tl.denoise(back, likelihood="nb", **small)
    assert set(back.layers) == {"true_mean", "dusted_mean", "dusted_dispersion"}


FOREIGN = {
    "layers/dusted_mean": lambda a: a.layers.update(dusted_mean=a.X.copy()),
    "layers/dusted_dropout": lambda a: a.layers.update(dusted_dropout=a.X.copy()),
    "obsm/dusted_mean": lambda a: a.obsm.update(dusted_mean=np.ones((61, 2))),
    "obsm/X_dusted": lambda a: a.obsm.update(X_dusted=np.ones((61, 2))),
    "obsp/dusted_attention": lambda a: a.obsp.update(dusted_attention=sparse.eye_array(61, format="csr")),
    "var/dusted_modelled": lambda a: a.var.insert(0, "dusted_modelled", 1),
    "uns/dusted": lambda a: a.uns.update(dusted={"notes": "mine"}),
}


@pytest.mark.parametrize("path", FOREIGN)
def test_what_others_wrote_is_not_overwritten(hexagonal, small, unchanged, path):
    FOREIGN[path](hexagonal)
    with unchanged(hexagonal), pytest.raises(ValueError, match=f"{path} exists and was not written by stdenoise"):
        st.tl.denoise(hexagonal, **small)
    st.tl.denoise(hexagonal, key_added="free", **small)
    assert "free_mean" in hexagonal.layers


def test_layer_is_read_instead_of_x(hexagonal, small):
    expected = mean_of(hexagonal, **small)
    hexagonal.layers["raw_counts"] = hexagonal.X.copy()
    hexagonal.X = np.full((61, 12), -0.5)
    st.tl.denoise(hexagonal, layer="raw_counts", **small)
    np.testing.assert_array_equal(hexagonal.layers["dusted_mean"], expected)
    assert hexagonal.uns["dusted"]["layer"] == "raw_counts"


def test_layer_is_read_where_there_is_no_x(hexagonal, small):
    expected = mean_of(hexagonal, **small)
    hexagonal.layers["raw_counts"] = hexagonal.X
    hexagonal.X = None
    np.testing.assert_array_equal(mean_of(hexagonal, layer="raw_counts", **small), expected)


def test_attention_sums_to_one_over_neighbours_and_self(irregular, small):
    st.tl.denoise(irregular, return_attention=True, **small)
    attention = irregular.obsp["dusted_attention"]
    np.testing.assert_allclose(attention.sum(axis=1), 1, rtol=1e-5)
    expected = irregular.obsp["spatial_connectivities"].toarray() + np.eye(41) > 0
    np.testing.assert_array_equal(attention.toarray() > 0, expected)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("genes", [None, SUBSET])
def test_results_survive_the_disk(hexagonal, small, reload, assert_same, suffix, genes):
    st.tl.denoise(hexagonal, genes=genes, return_attention=True, **small)
    back = reload(hexagonal, suffix)
    for part in ("layers", "obsm", "obsp", "uns", "var"):
        assert_same(getattr(hexagonal, part), getattr(back, part))
    assert_same(st.get.denoised(back).X, st.get.denoised(hexagonal).X)


# What the numbers depend on


def test_the_same_seed_gives_the_same_bits(hexagonal, small):
    assert digest(mean_of(hexagonal, seed=3, **small)) == digest(mean_of(hexagonal, seed=3, **small))


def test_another_seed_gives_other_numbers(hexagonal, small):
    assert (mean_of(hexagonal, seed=0, **small) != mean_of(hexagonal, seed=1, **small)).any()


def test_the_state_of_global_generators_neither_matters_nor_changes(hexagonal, small):
    expected = digest(mean_of(hexagonal, **small))
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert digest(mean_of(hexagonal, **small)) == expected
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_the_same_seed_gives_the_same_bits_in_another_process(hexagonal, small, tmp_path):
    hexagonal.write_h5ad(tmp_path / "tissue.h5ad")
    script = f"""
import hashlib, anndata, stdenoise as st, torch
torch.set_num_threads({torch.get_num_threads()})
adata = anndata.read_h5ad({str(tmp_path / "tissue.h5ad")!r})
st.tl.denoise(adata, seed=3, **{small!r})
print(hashlib.sha256(adata.layers["dusted_mean"].tobytes()).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(mean_of(hexagonal, seed=3, **small))


FORMS = {
    "csc": lambda x: sparse.csc_matrix(x),
    "csr_array": lambda x: sparse.csr_array(x),
    "dense": lambda x: x.toarray(),
    "fortran": lambda x: np.asfortranarray(x.toarray()),
    "float64": lambda x: x.astype(np.float64),
    "int64": lambda x: x.astype(np.int64),
    "uint8": lambda x: x.astype(np.uint8),
    "dense int32": lambda x: x.toarray().astype(np.int32),
    "unsorted": lambda x: sparse.csr_matrix(x[:, ::-1])[:, ::-1],
    "stored zeros": lambda x: sparse.csr_matrix(
        (np.append(x.data, 0), np.append(x.indices, 0), [*x.indptr[:-1], x.nnz + 1])
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_counts_does_not_matter(irregular, small, form):
    expected = mean_of(irregular, **small)
    irregular.X = FORMS[form](irregular.X)
    np.testing.assert_allclose(mean_of(irregular, **small), expected, rtol=1e-6)


def test_a_view_gives_the_numbers_of_its_copy(hexagonal, small):
    view = hexagonal[10:50, 2:]
    np.testing.assert_array_equal(mean_of(view, **small), mean_of(view.copy(), **small))


def test_a_configured_method_equals_its_name_and_parameters(hexagonal, small):
    configured = st.methods.DUSTED(**small)
    np.testing.assert_array_equal(mean_of(hexagonal, method=configured), mean_of(hexagonal, **small))
    np.testing.assert_array_equal(mean_of(hexagonal, method="dusted", **small), mean_of(hexagonal, **small))


def test_method_is_the_second_positional_argument(hexagonal, small):
    st.tl.denoise(hexagonal, st.methods.DUSTED(likelihood="nb", **small))
    assert hexagonal.uns["dusted"]["params"]["likelihood"] == "nb"


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("dlpfc", {"likelihood": "zinb", "alpha": 1.5, "lr": 1e-4}),
        ("hocwta", {"likelihood": "nb", "alpha": 1.0, "lr": 2e-4}),
        ("simulated", {"likelihood": "nb", "alpha": 0.3, "lr": 1e-4}),
    ],
)
def test_presets_are_recorded_value_by_value(hexagonal, small, preset, expected):
    del small["lr"]
    st.tl.denoise(hexagonal, preset=preset, **small)
    assert hexagonal.uns["dusted"]["params"].items() >= expected.items()
    st.tl.denoise(hexagonal, preset=preset, alpha=0.9, **small)
    assert hexagonal.uns["dusted"]["params"].items() >= {**expected, "alpha": 0.9}.items()


@pytest.fixture
def rising(small):
    """Parameters with which the loss is lowest after the first of three steps."""
    return {"schedule": "paper", **small, "lr": 0.1, "n_epochs": 3}


def test_the_best_weights_differ_from_the_last_ones_when_the_loss_rises(hexagonal, rising):
    best, last = (st.tl.denoise(hexagonal, restore_best=choice, copy=True, **rising) for choice in (True, False))
    loss = best.uns["dusted"]["history"]["loss"]
    assert loss.argmin() == 1
    np.testing.assert_array_equal(loss, last.uns["dusted"]["history"]["loss"])
    assert (best.layers["dusted_mean"] != last.layers["dusted_mean"]).any()


def test_the_best_weights_are_the_last_ones_of_a_run_that_stops_there(hexagonal, rising):
    stopped = mean_of(hexagonal, restore_best=False, **{**rising, "n_epochs": 1})
    np.testing.assert_array_equal(mean_of(hexagonal, **rising), stopped)


@pytest.mark.parametrize(
    "changed",
    [{"gene_attention": False}, {"alpha": 0.0}, {"gate_reduction": 1}, {"weight_decay": 1.0}],
    ids=str,
)
def test_parameters_change_the_numbers(hexagonal, small, changed):
    small |= {"likelihood": "nb", "clip": 0.5, "lr": 1e-3}
    assert not np.allclose(mean_of(hexagonal, **small), mean_of(hexagonal, **{**small, **changed}), rtol=1e-6)


def test_reduction_divides_the_loss_by_the_number_of_genes(hexagonal, small):
    losses = [
        st.tl.denoise(hexagonal, likelihood="nb", reduction=reduction, copy=True, **small).uns["dusted"]["history"][
            "loss"
        ]
        for reduction in ("published", "mean")
    ]
    assert losses[0][0] == pytest.approx(12 * losses[1][0], rel=1e-5)


def test_the_graph_changes_the_numbers(hexagonal, small):
    st.pp.spatial_graph(hexagonal, radius=180, key_added="wide")
    narrow, wide = mean_of(hexagonal, **small), mean_of(hexagonal, graph_key="wide", **small)
    assert (narrow != wide).any()
    assert st.tl.denoise(hexagonal, graph_key="wide", copy=True, **small).uns["dusted"]["graph_key"] == "wide"


def test_a_graph_of_squidpy_is_read(hexagonal, small):
    sq = pytest.importorskip("squidpy")
    ours = mean_of(hexagonal, **small)
    del hexagonal.obsp, hexagonal.uns["spatial_neighbors"]
    sq.gr.spatial_neighbors(hexagonal, coord_type="generic", radius=120)
    np.testing.assert_array_equal(mean_of(hexagonal, **small), ours)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_weights_and_loops_of_the_graph_do_not_matter(hexagonal, small, dtype):
    expected = mean_of(hexagonal, **small)
    graph = hexagonal.obsp["spatial_connectivities"] * 3 + sparse.eye_array(61)
    hexagonal.obsp["spatial_connectivities"] = sparse.csc_matrix(graph.astype(dtype))
    np.testing.assert_array_equal(mean_of(hexagonal, **small), expected)


def test_coordinates_in_space(volume, small):
    assert np.isfinite(mean_of(volume, **small)).all()


def test_size_factors_of_a_subset_count_all_genes(hexagonal, read_spots):
    total = hexagonal.X.toarray().sum(axis=1)
    spots = read_spots(hexagonal, positions=np.array([1, 7, 10]))
    np.testing.assert_allclose(spots.size_factors, total / np.median(total), rtol=1e-6)


def test_training_lowers_the_loss(hexagonal, small):
    st.tl.denoise(hexagonal, **{**small, "n_epochs": 40})
    loss = hexagonal.uns["dusted"]["history"]["loss"]
    assert loss[-1] < 0.8 * loss[0]


# Two libraries


def test_no_edge_crosses_the_libraries_of_a_graph_built_with_them(irregular, small, read_spots):
    irregular.obsm["spatial"] = irregular.obsm["spatial"] % 10
    st.pp.spatial_graph(irregular, library_key="library")
    graph = read_spots(irregular, graph_key="spatial", library_key="library").graph
    library = irregular.obs["library"].cat.codes.to_numpy()
    assert graph.n_edges > 100
    np.testing.assert_array_equal(library[graph.row], library[graph.col])
    st.tl.denoise(irregular, library_key="library", **small)
    assert irregular.uns["dusted"]["library_key"] == "library"


def test_a_graph_across_libraries_is_refused(irregular, small, unchanged):
    irregular.obsm["spatial"] = irregular.obsm["spatial"] % 10
    st.pp.spatial_graph(irregular)
    with (
        unchanged(irregular),
        pytest.raises(ValueError, match=r"of \d+ edges join spots of different 'library'; build the graph with"),
    ):
        st.tl.denoise(irregular, library_key="library", **small)


def test_one_edge_across_libraries_is_enough_to_refuse(irregular, small):
    graph = irregular.obsp["spatial_connectivities"].tolil()
    left, right = (int(np.flatnonzero(irregular.obs["library"] == name)[0]) for name in ("left", "right"))
    graph[left, right] = 1
    irregular.obsp["spatial_connectivities"] = graph.tocsr()
    with pytest.raises(ValueError, match=r"^1 of \d+ edges join"):
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

    def __init__(self, **params):
        self.config = DUSTEDConfig(**params)

    def fit(self, spots, *, seed, progress):
        assert spots.graph is None
        return Denoised(mean=0.5 * spots.lognorm.to_dense(), scale="log1p")


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


def test_a_registered_method_is_run_by_its_name(hexagonal, other_package):
    other_package("shrink", "Shrink")
    del hexagonal.obsp
    st.tl.denoise(hexagonal, method="shrink")
    counts = hexagonal.X.toarray()
    expected = 0.5 * np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(hexagonal.layers["shrink_mean"], expected, rtol=1e-5)
    assert hexagonal.uns["shrink"]["scale"] == "log1p"
    assert set(hexagonal.layers) == {"true_mean", "shrink_mean"}
    assert "shrink" in st.methods.table().index


def test_a_built_in_name_cannot_be_taken_over(other_package):
    other_package("dusted", "Shrink")
    assert _registry.registered()["dusted"] is st.methods.DUSTED


def test_an_entry_point_that_is_no_method_is_named(hexagonal, other_package):
    other_package("three", "number")
    with pytest.raises(
        TypeError, match="entry point 'a_package_of_others:number' of group 'stdenoise.methods' is not a"
    ):
        st.tl.denoise(hexagonal, method="three")


def test_a_method_without_a_graph_still_checks_the_library_key(hexagonal, other_package, unchanged):
    other_package("shrink", "Shrink")
    with unchanged(hexagonal), pytest.raises((KeyError, ValueError), match="libary"):
        st.tl.denoise(hexagonal, method="shrink", library_key="libary")


# Progress and log


@pytest.mark.parametrize(
    ("setting", "argument", "shown"), [(None, True, True), (True, False, False), (True, None, True)]
)
def test_progress_goes_to_standard_error_when_asked_for(hexagonal, small, capsys, setting, argument, shown):
    with st.settings.override(progress=setting):
        st.tl.denoise(hexagonal, progress=argument, **small)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("3/3" in captured.err) == shown


def test_empty_spots_and_results_are_logged(irregular, small, caplog):
    caplog.set_level("INFO", logger="stdenoise")
    st.tl.denoise(irregular, **small)
    assert "1 of 41 spots are empty" in caplog.text
    assert "wrote layers/dusted_mean" in caplog.text
