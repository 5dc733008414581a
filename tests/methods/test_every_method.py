"""What is true of every method behind the verb, whoever wrote it: run over all that are registered."""

import dataclasses
import importlib.util
import inspect
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise.methods._registry import registered

METHODS = registered()

# Parameters that make a method quick; methods that train and are not listed get three epochs.
QUICK = {
    "dusted": {"n_hidden": 8, "n_latent": 3, "n_epochs": 3, "lr": 1e-2, "gate_reduction": 4},
    "pca_reconstruction": {"n_components": 3},
    "poisson_factorization": {"rank": 3, "n_iterations": 20},
}

# Results of one library that do not depend on the counts of another: neighbours only, no weights or components shared.
LOCAL = {"raw", "neighbor_mean", "smoother"}

ARRAYS = ("mean", "dispersion", "dropout", "latent", "attention")

pytestmark = pytest.mark.filterwarnings("ignore:spots have")


def each(*, where=lambda info: True):
    """Parametrise over the names of the methods whose record fulfils a condition."""
    without_scvi = pytest.mark.skipif(importlib.util.find_spec("scvi") is None, reason="scvi-tools is not installed")
    names = [name for name, cls in METHODS.items() if where(cls.info)]
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[without_scvi] if name == "scvi" else []) for name in names]
    )


def fields_of(name):
    return [field.name for field in dataclasses.fields(METHODS[name]().config)]


def quick(name):
    return QUICK.get(name, {"n_epochs": 3} if "n_epochs" in fields_of(name) else {})


def run(adata, name, **arguments):
    return st.tl.denoise(adata, method=name, **{**quick(name), **arguments})


def mean_of(adata, name, **arguments):
    return run(adata, name, copy=True, **arguments).layers[f"{name}_mean"]


def with_counts(adata, change, dense=False):
    matrix = adata.X.toarray()
    change(matrix)
    adata.X = matrix if dense else sparse.csr_matrix(matrix)
    return adata


def set_one(value):
    def change(matrix):
        matrix[2, 3] = value

    return change


def assert_sound(adata, name):
    """Assert that all values written are finite, and expression is not negative."""
    info = METHODS[name].info
    for array in ("mean", "dispersion", "dropout"):
        if f"{name}_{array}" in adata.layers:
            assert array in info.writes
            values = adata.layers[f"{name}_{array}"]
            assert values.shape == adata.shape
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
            assert (values >= 0).all()
    assert f"{name}_mean" in adata.layers
    if f"X_{name}" in adata.obsm:
        assert "latent" in info.writes
        assert len(adata.obsm[f"X_{name}"]) == adata.n_obs
        assert np.isfinite(adata.obsm[f"X_{name}"]).all()


# The record of a method


@each()
def test_the_record_is_complete(name):
    row = st.methods.table().loc[name]
    for column in ("summary", "scale", "writes", "size", "reference", "licence"):
        assert row[column].strip(), column
    info = METHODS[name].info
    assert info.name == name
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert info.scale in ("counts", "log1p")
    assert set(info.needs) <= {"graph", "coordinates"}
    assert set(info.optional) <= {"coordinates", "features"}
    assert info.writes[0] == "mean"
    assert set(info.writes) <= set(ARRAYS)


@each()
def test_the_configuration_is_frozen_and_has_a_documented_default_for_every_field(name):
    config = METHODS[name]().config
    assert dataclasses.is_dataclass(config)
    assert type(config).__dataclass_params__.frozen
    for field in dataclasses.fields(config):
        assert field.default is not dataclasses.MISSING, field.name
    _, _, parameters = inspect.getdoc(type(config)).partition("Parameters\n----------\n")
    documented = re.findall(r"^(\w[\w, ]*)$", parameters, flags=re.MULTILINE)
    assert [part.strip() for line in documented for part in line.split(",")] == fields_of(name)


@each()
def test_the_class_is_documented_with_an_example(name):
    documentation = inspect.getdoc(METHODS[name])
    assert "Examples\n--------\n>>> " in documentation
    if METHODS[name].__module__.startswith("stdenoise."):
        assert METHODS[name].__name__ in st.methods.__all__


@each()
def test_a_method_shows_its_parameters(name):
    assert repr(METHODS[name]()).startswith(f"{METHODS[name].__name__}(")
    assert METHODS[name]().label == name
    for parameter, value in quick(name).items():
        assert f"{parameter}={value!r}" in repr(METHODS[name](**quick(name)))


# Input that is refused, without a trace


def refused(adata, unchanged, name, error, message, **arguments):
    with unchanged(adata), pytest.raises(error, match=message):
        run(adata, name, **arguments)


@each()
@pytest.mark.parametrize("bad", [None, np.ones((3, 3)), pd.DataFrame({"gene0": [1]})], ids=["None", "array", "frame"])
def test_not_an_anndata(name, bad):
    with pytest.raises(TypeError, match=f"adata must be an AnnData, not {type(bad).__name__}"):
        run(bad, name)


@each()
def test_no_spots_or_no_genes(name, hexagonal, unchanged):
    refused(hexagonal[:0].copy(), unchanged, name, ValueError, "adata is empty: 0 spots x 12 genes")
    refused(hexagonal[:, :0].copy(), unchanged, name, ValueError, "adata is empty: 61 spots x 0 genes")


@each()
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-3, r"adata.X has negative values \(smallest -3\); raw counts are >= 0"),
        (np.nan, "adata.X has 1 NaN or infinite values; raw counts are finite"),
        (np.inf, "adata.X has 1 NaN or infinite values"),
        (20.5, "adata.X does not hold raw counts: 1 of .* are fractional, such as 20.5. Pass the layer with raw"),
    ],
)
def test_values_that_are_no_counts(name, hexagonal, unchanged, value, message, dense):
    refused(with_counts(hexagonal, set_one(value), dense), unchanged, name, ValueError, message)


@each()
def test_logged_counts(name, hexagonal, unchanged):
    adata = with_counts(hexagonal, lambda matrix: np.log1p(matrix, out=matrix))
    refused(adata, unchanged, name, ValueError, "adata.X looks log-transformed, not raw counts")


@each()
def test_gene_names_that_occur_twice(name, hexagonal, unchanged):
    hexagonal.var_names = ["a", "a", "b", "b", "b", *"cdefghi"]
    message = r"2 gene names occur more than once, such as \['a', 'b'\]; call adata.var_names_make_unique\(\)"
    refused(hexagonal, unchanged, name, ValueError, message)


@each()
def test_all_spots_empty(name, hexagonal, unchanged):
    hexagonal.X = sparse.csr_matrix((61, 12))
    refused(hexagonal, unchanged, name, ValueError, "all 61 spots are empty: there is nothing to model")


@each(where=lambda info: "graph" in info.needs)
def test_no_graph(name, hexagonal, unchanged):
    del hexagonal.obsp
    message = r"'spatial_connectivities' is not in adata.obsp, which has nothing.*st.pp.spatial_graph\(adata\)"
    refused(hexagonal, unchanged, name, KeyError, message)


@each(where=lambda info: "coordinates" in info.needs)
def test_no_coordinates(name, hexagonal, unchanged):
    del hexagonal.obsm["spatial"]
    message = "'spatial' is not in adata.obsm, which has nothing. Store the coordinates"
    refused(hexagonal, unchanged, name, KeyError, message)


@each(where=lambda info: "coordinates" in info.needs)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coordinates_that_are_not_finite(name, hexagonal, unchanged, value):
    hexagonal.obsm["spatial"][4, 1] = value
    message = r"adata.obsm\['spatial'\] has NaN or infinite coordinates in 1 spots"
    refused(hexagonal, unchanged, name, ValueError, message)


@each(where=lambda info: "graph" in info.needs)
def test_a_graph_across_libraries(name, hexagonal, unchanged):
    hexagonal.obs["library"] = ["a"] * 30 + ["b"] * 31
    message = "edges join spots of different 'library'"
    refused(hexagonal, unchanged, name, ValueError, message, library_key="library")


@each()
def test_an_unknown_parameter(name, hexagonal, unchanged):
    fields = fields_of(name)
    message = rf"{name} has no parameter 'qqq'; it has \[.*\]\.$"
    refused(hexagonal, unchanged, name, TypeError, message, qqq=3)
    for field in fields:
        message = rf"{name} has no parameter '{field}s'; it has \[.*\]. Did you mean '{field}'\?"
        refused(hexagonal, unchanged, name, TypeError, message, **{f"{field}s": 3})


@each()
def test_every_parameter_is_checked(name, hexagonal, unchanged):
    for field in fields_of(name):
        refused(hexagonal, unchanged, name, (TypeError, ValueError), field, **{field: "nonsense"})


KEYS = {"graph_key": "graph", "spatial_key": "coordinates", "features_key": "features"}


@each()
@pytest.mark.parametrize("key", [*KEYS, "library_key"])
def test_a_key_that_names_nothing(name, hexagonal, unchanged, key):
    refused(hexagonal, unchanged, name, KeyError, "'nonsense.*' is not in adata.obs.*, which has", **{key: "nonsense"})


@each()
@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_read_and_recorded_or_refused(name, hexagonal, unchanged, key):
    info = METHODS[name].info
    hexagonal.obsm["mine"] = hexagonal.obsm["spatial"] * 2
    hexagonal.obsp["mine_connectivities"] = hexagonal.obsp["spatial_connectivities"]
    if KEYS[key] in (*info.needs, *info.optional):
        run(hexagonal, name, **{key: "mine"})
        assert hexagonal.uns[name][key] == "mine"
        return
    users = [n for n, cls in METHODS.items() if KEYS[key] in (*cls.info.needs, *cls.info.optional)]
    message = f"{key}='mine' has no effect for {name}, which reads no {KEYS[key]}; methods that do: {users}"
    refused(hexagonal, unchanged, name, TypeError, re.escape(message), **{key: "mine"})


@each()
def test_the_default_keys_of_what_is_not_there_and_not_read(name, hexagonal):
    info = METHODS[name].info
    if "graph" not in info.needs:
        del hexagonal.obsp
    if "coordinates" not in info.needs:
        del hexagonal.obsm["spatial"]
    run(hexagonal, name)
    record = hexagonal.uns[name]
    assert record["graph_key"] == ("spatial" if "graph" in info.needs else "")
    assert record["spatial_key"] == ("spatial" if "coordinates" in info.needs else "")
    assert record["features_key"] == ""


def test_the_other_name_of_the_coordinates(hexagonal):
    hexagonal.obsm["X_spatial"] = hexagonal.obsm.pop("spatial")
    for name, expected in (("smoother", "X_spatial"), ("dusted", "X_spatial"), ("magic", "")):
        run(hexagonal, name)
        assert hexagonal.uns[name]["spatial_key"] == expected


@each()
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "gpu0"}, ValueError, r"device='gpu0' is not available; choose from \['auto', 'cpu'"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, not -1"),
        ({"seed": 1.5}, TypeError, "seed must be an integer >= 0, not 1.5"),
        ({"seed": 2**64}, ValueError, "seed must be .*18446744073709551616"),
        ({"layer": "true_maen"}, KeyError, "'true_maen' is not in adata.layers.*Did you mean 'true_mean'"),
        ({"library_key": "regoin"}, KeyError, "'regoin' is not in adata.obs, .*Did you mean 'region'"),
        ({"genes": ["gene1", "gnee2"]}, KeyError, r"1 of 2 genes are not in .*\['gnee2'\].* Did you mean 'gene2'"),
        ({"genes": []}, ValueError, r"genes=\[\] selects no gene"),
        ({"progress": "yes"}, TypeError, "progress must be True, False or None"),
    ],
    ids=lambda case: str(case) if isinstance(case, dict) else "",
)
def test_bad_arguments(name, hexagonal, unchanged, arguments, error, message):
    refused(hexagonal, unchanged, name, error, message, **arguments)


@each()
def test_what_others_wrote_is_not_overwritten(name, hexagonal, unchanged):
    hexagonal.layers[f"{name}_mean"] = hexagonal.X.copy()
    message = f"layers/{name}_mean exists and was not written by stdenoise"
    refused(hexagonal, unchanged, name, ValueError, message)


# Manners


@each()
def test_results_and_provenance(name, irregular):
    run(irregular, name, seed=7, device="cpu")
    assert_sound(irregular, name)
    record = irregular.uns[name]
    assert record["method"] == name
    assert record["scale"] == METHODS[name].info.scale
    assert (record["seed"], record["device"], record["genes"], record["layer"]) == (7, "cpu", "all", "X")
    assert type(METHODS[name]().config)(**record["params"]) == METHODS[name](**quick(name)).config
    assert set(record["versions"]) == {"python", "stdenoise", "torch", "anndata"}
    for quantity, values in record["history"].items():
        assert np.isfinite(values).all(), quantity


@each()
def test_input_is_kept_to_the_byte(name, irregular, freeze):
    irregular.raw = irregular.copy()
    irregular.layers["mine"] = irregular.X.toarray()
    before = freeze(irregular)
    run(irregular, name)
    after = freeze(irregular)
    for part in ("X", "raw", "obs", "var"):
        assert after[part] == before[part]
    for part in ("layers", "obsm", "obsp", "uns"):
        assert {key: after[part][key] for key in before[part]} == before[part]
        # All that is new carries the name of the method.
        assert all(name in key for key in set(after[part]) - set(before[part]))


LIKELIHOODS = [
    *[("dusted", {"likelihood": name}) for name in ("zinb", "nb")],
    *[("dca", {"likelihood": name}) for name in ("nb-conddisp", "nb", "zinb", "zinb-shared", "poisson")],
]


@pytest.mark.parametrize(
    ("name", "params"), [*((name, {}) for name in METHODS if name != "scvi"), *LIKELIHOODS], ids=str
)
def test_exactly_the_arrays_of_the_configuration_are_written(name, params, hexagonal, unchanged):
    writes = METHODS[name](**params).writes
    assert set(writes) <= set(METHODS[name].info.writes)
    for array in {"dispersion", "dropout", "latent"} - set(writes):
        message = re.escape(f"arrays={array!r} is not valid for {name}") + f".*{re.escape(str(list(writes)))}"
        refused(hexagonal, unchanged, name, ValueError, message, arrays=["mean", array], **params)
    before = {*hexagonal.layers, *hexagonal.obsm}
    run(hexagonal, name, **params)
    new = {*hexagonal.layers, *hexagonal.obsm} - before
    assert new == {f"X_{name}" if array == "latent" else f"{name}_{array}" for array in writes}
    for array in writes:
        one = run(hexagonal, name, copy=True, arrays=[array], key_added="one", **params)
        assert {*one.layers, *one.obsm} - before - new == {"one_mean", "X_one" if array == "latent" else f"one_{array}"}


@each()
def test_copy_leaves_the_input_as_it_was(name, irregular, unchanged, assert_same):
    with unchanged(irregular):
        copied = run(irregular, name, copy=True)
    assert run(irregular, name) is None
    for part in ("layers", "obsm", "uns"):
        assert_same(dict(getattr(copied, part)), dict(getattr(irregular, part)))


@each()
def test_the_same_seed_gives_the_same_bits_whatever_the_global_generators(name, irregular):
    expected = mean_of(irregular, name, seed=3)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(mean_of(irregular, name, seed=3), expected)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


FORMS = {
    "csc": sparse.csc_matrix,
    "dense": lambda x: x.toarray(),
    "float64": lambda x: x.astype(np.float64),
    "int64": lambda x: x.astype(np.int64),
    "unsorted": lambda x: sparse.csr_matrix(x[:, ::-1])[:, ::-1],
    "stored zeros": lambda x: sparse.csr_matrix(
        (np.append(x.data, 0), np.append(x.indices, 0), [*x.indptr[:-1], x.nnz + 1])
    ),
}


@each()
@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_counts_does_not_matter(name, irregular, form):
    expected = mean_of(irregular, name)
    irregular.X = FORMS[form](irregular.X)
    np.testing.assert_allclose(mean_of(irregular, name), expected, rtol=1e-5, atol=1e-6)


@each()
def test_results_survive_the_disk(name, irregular, reload, assert_same):
    run(irregular, name)
    again = reload(irregular, ".h5ad")
    for part in ("layers", "obsm", "obsp"):
        assert_same(dict(getattr(again, part)), dict(getattr(irregular, part)))
    params = again.uns[name]["params"]
    assert type(METHODS[name]().config)(**params) == METHODS[name](**quick(name)).config
    # A second run replaces what came back.
    run(again, name)
    assert_same(again.layers[f"{name}_mean"], irregular.layers[f"{name}_mean"])


@each()
def test_some_genes_go_to_data_frames(name, irregular):
    run(irregular, name, genes=["gene7", "gene1", "gene5", "gene2"])
    frame = irregular.obsm[f"{name}_mean"]
    assert list(frame.columns) == ["gene1", "gene2", "gene5", "gene7"]
    assert list(frame.index) == list(irregular.obs_names)
    assert np.isfinite(frame.to_numpy()).all()
    assert f"{name}_mean" not in irregular.layers
    np.testing.assert_array_equal(st.get.denoised(irregular, name).X, frame.to_numpy())


@each()
def test_nothing_is_printed_without_a_progress_bar(name, irregular, capfd):
    run(irregular, name, progress=False)
    assert capfd.readouterr() == ("", "")


# Odd data that is taken


def tiny(adata, name, *, radius=120.0):
    st.pp.spatial_graph(adata, radius=radius)
    run(adata, name)
    assert_sound(adata, name)


@each()
@pytest.mark.parametrize("n_spots", [1, 2, 3])
def test_few_spots(name, hexagonal, n_spots):
    tiny(hexagonal[:n_spots].copy(), name)


@each()
@pytest.mark.parametrize("n_genes", [1, 2])
def test_few_genes(name, hexagonal, n_genes):
    # Some spots have no count in the one gene.
    tiny(hexagonal[:, hexagonal.var_names[7 : 7 + n_genes]].copy(), name)


@each()
def test_one_spot_and_one_gene(name):
    adata = ad.AnnData(sparse.csr_matrix([[3.0]]), var=pd.DataFrame(index=["gene0"]))
    adata.obsm["spatial"] = np.array([[5.0, 5.0]])
    tiny(adata, name)


@each()
def test_empty_spots_and_genes(name, hexagonal):
    def clear(matrix):
        matrix[[0, 7, 60]] = 0
        matrix[:, [0, 5]] = 0

    tiny(with_counts(hexagonal, clear), name)


@each()
def test_chosen_genes_without_any_count(name, hexagonal):
    def clear(matrix):
        matrix[:, [0, 5]] = 0

    adata = with_counts(hexagonal, clear)
    run(adata, name, genes=["gene0", "gene5"])
    assert np.isfinite(adata.obsm[f"{name}_mean"].to_numpy()).all()


@each()
def test_isolated_spots(name, irregular):
    tiny(irregular, name, radius=0.5)


@each()
def test_coincident_spots(name, hexagonal):
    hexagonal.obsm["spatial"] = np.ones((61, 2))
    tiny(hexagonal, name)


@each()
def test_coordinates_in_space(name, volume):
    run(volume, name)
    assert_sound(volume, name)


@each()
def test_very_large_counts(name, hexagonal):
    hexagonal.X = hexagonal.X * 1e6
    tiny(hexagonal, name)


# Libraries


def side_by_side(adata):
    """Put the two libraries over one another."""
    right = (adata.obs["library"] == "right").to_numpy()
    adata.obsm["spatial"][right] -= 50
    st.pp.spatial_graph(adata, radius=4.5, library_key="library")
    return right


@each()
def test_libraries_are_taken(name, irregular):
    side_by_side(irregular)
    run(irregular, name, library_key="library")
    assert_sound(irregular, name)
    assert irregular.uns[name]["library_key"] == "library"


@each(where=lambda info: info.name in LOCAL)
def test_one_library_does_not_feel_the_counts_of_another(name, irregular):
    right = side_by_side(irregular)
    before = mean_of(irregular, name, library_key="library")

    def turn(matrix):
        # The total of a spot, and with it every size factor, stays.
        matrix[right] = matrix[right][:, ::-1]

    after = mean_of(with_counts(irregular, turn), name, library_key="library")
    np.testing.assert_allclose(after[~right], before[~right], rtol=1e-5, atol=1e-6)
    assert not np.allclose(after[right], before[right])


# Evaluation


@each()
def test_held_out_molecules(name, hexagonal, unchanged):
    with unchanged(hexagonal):
        frame = st.metrics.held_out(hexagonal, name, **quick(name))
    assert len(frame) == 1
    assert np.isfinite(frame["poisson_deviance"]).all()
