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
from stdenoise._io.read import layers_of
from stdenoise.methods._registry import registered

METHODS = registered()

# Parameters that make a method quick; methods that train and are not listed get three epochs.
QUICK = {
    "dusted": {"n_hidden": 8, "n_latent": 3, "n_epochs": 3, "lr": 1e-2, "gate_reduction": 4},
    "pca_reconstruction": {"n_components": 3},
    "poisson_factorization": {"rank": 3, "n_iterations": 20},
    # Most spots would have no candidates to be joined to.
    "sprod": {"radius": 120.0},
}

# What a method reads beside counts: what it needs, and what it takes where it is there.
READS = {
    "dusted": ("graph", "coordinates?"),
    "stagate": ("graph", "coordinates?"),
    "neighbor_mean": ("graph", "coordinates?"),
    **dict.fromkeys(["smoother", "sme", "sprod"], ("coordinates", "features?")),
    **dict.fromkeys(["dca", "scvi", "magic", "knn_smoothing", "alra", "raw", "gene_mean"], ()),
    **dict.fromkeys(["pca_reconstruction", "poisson_factorization"], ()),
}
# Of these nothing depends on libraries, as long as the graph joins none.
BLIND = {name for name, reads in READS.items() if reads == ()} - {"scvi"} | {"neighbor_mean"}
KEYS = {"graph": "graph_key", "coordinates": "spatial_key", "features": "features_key"}

# Of each number among the parameters the least one that is taken: an integer, a float, or what it must lie above.
ABOVE_0 = (0.0,)
LEAST = {
    "alra": {"rank": 1, "n_components": 2, "noise_start": 2, "threshold": ABOVE_0, "quantile": 0.0},
    "magic": {"knn": 1, "knn_max": 5, "decay": ABOVE_0, "t": 1, "n_pca": 1, "thresh": 0.0, "t_max": 1},
    "knn_smoothing": {"k": 1, "d": 1, "dither": 0.0},
    "smoother": {"k": 1, "rho": ABOVE_0, "strength": 0.0, "n_components": 0},
    "sme": {"radius": ABOVE_0, "n_neighbors_kept": 1, "n_components": 2},
    "sprod": {
        **dict.fromkeys(["radius_ratio", "radius", "margin", "capacity", "lambda_scale"], ABOVE_0),
        **dict.fromkeys(["n_components", "pseudo_components", "pseudo_clusters", "max_iterations"], 1),
        **{"perplexity": (1.0,), "smoothing": 0.0, "tol": 0.0},
    },
    "stagate": {
        **dict.fromkeys(["n_hidden", "n_latent", "n_epochs", "batch_size"], 1),
        **{"lr": ABOVE_0, "clip": ABOVE_0, "weight_decay": 0.0},
    },
    "dca": {
        **dict.fromkeys(["batch_size", "n_epochs", "reduce_lr", "early_stop"], 1),
        **{"lr": ABOVE_0, "clip": ABOVE_0, "validation_fraction": 0.0, "ridge": 0.0},
    },
    "dusted": {
        **dict.fromkeys(["gate_reduction", "n_hidden", "n_latent", "n_epochs", "batch_size", "patience"], 1),
        **{"lr": ABOVE_0, "clip": ABOVE_0, "alpha": 0.0, "weight_decay": 0.0},
    },
    "scvi": {**dict.fromkeys(["n_latent", "n_hidden", "n_layers", "n_epochs"], 1), "batch_size": 2},
    "neighbor_mean": {"n_hops": 1},
    "pca_reconstruction": {"n_components": 1},
    "poisson_factorization": {"rank": 1, "n_iterations": 1, "tol": 0.0},
}
REFUSED = [
    ("alra", {"quantile": 1.5}, "1.5"),
    ("alra", {"noise_start": 100}, "noise_start=100"),
    ("smoother", {"rho": 1.1}, "1.1"),
    ("dca", {"hidden": ()}, r"hidden=\(\)"),
    ("dca", {"hidden": 64}, "hidden=64"),
    ("dca", {"hidden": (64, 0, 64)}, r"hidden\[1\]=0"),
    ("dca", {"validation_fraction": 1}, "validation_fraction=1"),
    ("dca", {"ridge": 0.1}, "ridge=0.1 .*'nb-conddisp'"),
    ("dusted", {"patience": 3}, "patience=3 .*'fast'"),
    ("dusted", {"schedule": "fast", "restore_best": False}, "restore_best=False .*'paper'"),
]

pytestmark = pytest.mark.filterwarnings("ignore:spots have")

each = pytest.mark.parametrize("name", METHODS)
without_scvi = pytest.mark.skipif(importlib.util.find_spec("scvi") is None, reason="scvi-tools is not installed")
each_that_runs = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[without_scvi] if name == "scvi" else []) for name in METHODS]
)


def fields_of(name):
    return {field.name: field for field in dataclasses.fields(METHODS[name]().config)}


def quick(name):
    return QUICK.get(name, {"n_epochs": 3} if "n_epochs" in fields_of(name) else {})


def run(adata, name, **arguments):
    return st.tl.denoise(adata, method=name, **{**quick(name), **arguments})


def assert_sound(adata, name):
    """Assert that what was written is what is said to be, that all values are finite, and expression is not negative."""
    writes = METHODS[name](**quick(name)).writes
    found = {key for key in (*layers_of(adata), *adata.obsm) if name in key}
    assert found == {f"X_{name}" if array == "latent" else f"{name}_{array}" for array in writes}
    for array in set(writes) - {"latent"}:
        values = adata.layers[f"{name}_{array}"]
        assert values.shape == adata.shape
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    if "latent" in writes:
        assert len(adata.obsm[f"X_{name}"]) == adata.n_obs
        assert np.isfinite(adata.obsm[f"X_{name}"]).all()


# The record and the parameters of a method


@each
def test_the_record_and_the_parameters_are_described(name):
    cls, info = METHODS[name], METHODS[name].info
    assert info.name == cls().label == name
    row = st.methods.table().loc[name]
    for column in ("summary", "scale", "writes", "size", "reference", "licence"):
        assert row[column].strip(), column
    assert info.scale in ("counts", "log1p")
    assert (*info.needs, *(f"{what}?" for what in info.optional)) == READS[name]
    assert info.writes[0] == "mean"
    assert set(info.writes) <= {"mean", "dispersion", "dropout", "latent", "attention"}
    assert "Examples\n--------\n>>> " in inspect.getdoc(cls)
    assert cls.__name__ in st.methods.__all__
    config = type(cls().config)
    assert config.__dataclass_params__.frozen
    assert all(field.default is not dataclasses.MISSING for field in fields_of(name).values())
    _, _, parameters = inspect.getdoc(config).partition("Parameters\n----------\n")
    documented = re.findall(r"^(\w[\w, ]*)$", parameters, flags=re.MULTILINE)
    assert [part.strip() for line in documented for part in line.split(",")] == list(fields_of(name))
    shown = repr(cls(**quick(name)))
    assert shown.startswith(f"{cls.__name__}(")
    assert all(f"{parameter}={value!r}" in shown for parameter, value in quick(name).items())


@each
def test_every_parameter_is_checked(name):
    least = LEAST.get(name, {})
    is_number = re.compile(r"^(Annotated\[)?(Count|AtLeastTwo|NonNegativeInt|Positive|NonNegative|Share)\b")
    assert {field for field, record in fields_of(name).items() if is_number.match(record.type)} == set(least)
    base = {"schedule": "fast"} if name == "dusted" else {}

    def refused(field, value):
        with pytest.raises((TypeError, ValueError), match=rf"{field}.*{re.escape(repr(value))}"):
            METHODS[name](**{**base, field: value})

    for field in fields_of(name):
        refused(field, "nonsense")
    for field, value in least.items():
        taken = value[0] + 0.1 if isinstance(value, tuple) else value
        assert getattr(METHODS[name](**{**base, field: taken}).config, field) == taken
        refused(field, value[0] if isinstance(value, tuple) else value - 1)
        if isinstance(value, int):
            refused(field, value + 0.5)
    with pytest.raises(TypeError, match=f"{name} has no parameter 'qqq'"):
        METHODS[name](qqq=3)


def test_bad_values_and_pairs_of_values_are_named():
    for name, params, message in REFUSED:
        with pytest.raises((TypeError, ValueError), match=message):
            METHODS[name](**params)


def test_a_near_miss_is_recognised_and_labels_name_what_is_not_default():
    with pytest.raises(TypeError, match="magic has no parameter 'n_pcs'.* Did you mean 'n_pca'"):
        st.methods.MAGIC(n_pcs=3)
    assert st.methods.NeighborMean(n_hops=1).label == "neighbor_mean"
    assert st.methods.NeighborMean(n_hops=4).label == "neighbor_mean(n_hops=4)"
    assert st.methods.DCA(hidden=[9, 4, 9]).label == "dca(hidden=(9, 4, 9))"


# What is read


@each_that_runs
def test_a_method_reads_what_it_says_under_any_key_and_nothing_else(name, hexagonal, unchanged):
    needed = [what for what in READS[name] if what[-1] != "?"]
    optional = [what[:-1] for what in READS[name] if what[-1] == "?"]
    coordinates, graph = hexagonal.obsm.pop("spatial"), hexagonal.obsp.pop("spatial_connectivities")
    del hexagonal.obsp["spatial_distances"]
    if "graph" in needed:
        hexagonal.obsp["mine_connectivities"] = graph
    if "coordinates" in needed:
        hexagonal.obsm["mine"] = coordinates
    keys = {KEYS[what]: "mine" for what in needed}
    run(hexagonal, name, **keys)
    record = hexagonal.uns[name]
    assert {what: record[key] for what, key in KEYS.items() if record[key]} == dict.fromkeys(needed, "mine")
    hexagonal.obsp["mine_connectivities"], hexagonal.obsm["mine"] = graph, coordinates
    if optional:
        run(hexagonal, name, **keys, **{KEYS[what]: "mine" for what in optional})
        assert all(hexagonal.uns[name][KEYS[what]] == "mine" for what in (*needed, *optional))
    for what in set(KEYS) - {*needed, *optional}:
        key = KEYS[what]
        users = [other for other, reads in READS.items() if what in reads or f"{what}?" in reads]
        message = re.escape(f"{key}='mine'") + ".*" + ".*".join(user for user in METHODS if user in users)
        with unchanged(hexagonal), pytest.raises(TypeError, match=message):
            run(hexagonal, name, **keys, **{key: "mine"})


def test_coordinates_that_are_missing_or_not_finite(hexagonal, unchanged):
    hexagonal.obsm["X_spatial"] = hexagonal.obsm["spatial"] * np.where(np.arange(61) == 4, np.nan, 1)[:, None]
    hexagonal.obsm["spatial"][4, 1] = np.inf
    for left, error, message in [
        (["spatial", "X_spatial"], ValueError, r"\['spatial'\] has .* in 1 spots"),
        (["X_spatial"], ValueError, r"\['X_spatial'\] has .* in 1 spots"),
        ([], KeyError, "'spatial' is not in adata.obsm"),
    ]:
        for key in {"spatial", "X_spatial"} - set(left):
            hexagonal.obsm.pop(key, None)
        with unchanged(hexagonal), pytest.raises(error, match=message):
            run(hexagonal, "smoother")


def test_the_other_name_of_the_coordinates(hexagonal):
    hexagonal.obsm["X_spatial"] = hexagonal.obsm.pop("spatial")
    for name, expected in (("smoother", "X_spatial"), ("dusted", "X_spatial"), ("magic", "")):
        run(hexagonal, name)
        assert hexagonal.uns[name]["spatial_key"] == expected


# Manners


@each_that_runs
def test_a_run_is_recorded_and_repeated_to_the_bit(name, irregular, freeze, reload, assert_same, capfd):
    """Whatever the global generators say, and with the earlier result back from the disk."""
    irregular.raw = irregular.copy()
    irregular.layers["mine"] = irregular.X.toarray()
    before = freeze(irregular)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert run(irregular, name, seed=7, device="cpu", progress=False) is None
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002

    assert_sound(irregular, name)
    record = irregular.uns[name]
    assert (record["method"], record["scale"]) == (name, METHODS[name].info.scale)
    assert (record["seed"], record["device"], record["genes"], record["layer"]) == (7, "cpu", "all", "X")
    assert set(record["versions"]) == {"python", "stdenoise", "torch", "anndata"}
    for quantity, values in record["history"].items():
        assert np.isfinite(values).all(), quantity
    after = freeze(irregular)
    for part in ("X", "raw", "obs", "var"):
        assert after[part] == before[part]
    for part in ("layers", "obsm", "obsp", "uns"):
        assert {key: after[part][key] for key in before[part]} == before[part]
        # All that is new carries the name of the method.
        assert all(name in key for key in set(after[part]) - set(before[part]))

    again = reload(irregular, ".h5ad")
    for adata in (irregular, again):
        assert type(METHODS[name]().config)(**adata.uns[name]["params"]) == METHODS[name](**quick(name)).config
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    run(again, name, seed=7, device="cpu")
    for part in ("layers", "obsm", "obsp"):
        assert_same(dict(getattr(again, part)), dict(getattr(irregular, part)))


# Odd data that is taken


@each_that_runs
def test_tiny_tissues(name, hexagonal):
    one = ad.AnnData(sparse.csr_matrix([[3.0]]), var=pd.DataFrame(index=["gene0"]))
    one.obsm["spatial"] = np.array([[5.0, 5.0]])
    # Some spots have no count in gene 7.
    few = [one, hexagonal[:1], hexagonal[:2], hexagonal[:3], hexagonal[:, ["gene7"]], hexagonal[:, ["gene7", "gene8"]]]
    for adata in (tissue.copy() for tissue in few):
        st.pp.spatial_graph(adata, radius=120)
        run(adata, name)
        assert_sound(adata, name)


@each_that_runs
def test_odd_tissues(name, hexagonal, irregular, volume):
    matrix = hexagonal.X.toarray()
    matrix[[0, 7, 60]] = 0
    matrix[:, [0, 5]] = 0
    empty, coincident, large = (hexagonal.copy() for _ in range(3))
    empty.X = sparse.csr_matrix(matrix)
    coincident.obsm["spatial"] = np.ones((61, 2))
    large.X = hexagonal.X * 1e6
    for adata, radius in ((empty, 120), (coincident, 120), (large, 120), (irregular, 0.5), (volume, 5)):
        st.pp.spatial_graph(adata, radius=radius)
        run(adata, name)
        assert_sound(adata, name)
    # Chosen genes without any count.
    run(empty, name, genes=["gene5", "gene0"])
    frame = empty.obsm[f"{name}_mean"]
    assert list(frame.columns) == ["gene0", "gene5"]
    assert np.isfinite(frame.to_numpy()).all()


@each_that_runs
def test_libraries_that_lie_over_one_another(name, irregular):
    irregular.obsm["spatial"][(irregular.obs["library"] == "right").to_numpy()] -= 50
    st.pp.spatial_graph(irregular, radius=4.5, library_key="library")
    run(irregular, name, library_key="library")
    assert_sound(irregular, name)
    assert irregular.uns[name]["library_key"] == "library"
    if name in BLIND:
        run(irregular, name, key_added="together")
        np.testing.assert_array_equal(irregular.layers["together_mean"], irregular.layers[f"{name}_mean"])
