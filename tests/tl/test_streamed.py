"""Denoising from disk to disk, and results that are written to a file."""

import errno
import hashlib
import logging
import re
import shutil
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata.experimental import read_lazy
from click.testing import CliRunner
from scipy import sparse

import stdenoise as st
from stdenoise import __main__ as cli
from stdenoise._io import rows, sink
from stdenoise._io import section as sections
from stdenoise._io.read import layers_of
from stdenoise._io.section import open_section
from stdenoise._io.source import Source
from stdenoise.methods import DCA, DUSTED
from stdenoise.methods._registry import inputs_of
from stdenoise.methods.dusted.module import DUSTEDModule
from stdenoise.tl import _open_run
from stdenoise.tl._plan import Plan, Size, make_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning", "ignore:zarr v3 autosharding:UserWarning"),
    pytest.mark.usefixtures("exact_files"),
]

SMALL = {"n_hidden": 8, "n_latent": 3, "n_epochs": 3}
# Large steps from where the means are not far off.
FAST = {**SMALL, "gate_reduction": 4, "alpha": 0.1, "lr": 1e-2}
PAPER = {**FAST, "schedule": "paper"}
ARRAYS = ("mean", "dispersion", "dropout")
N_SPOTS, N_GENES = 300, 12


@pytest.fixture(scope="module")
def section():
    """Two libraries side by side, with their spots in random order, a graph, and things to be kept."""
    adata = st.datasets.tissue(n_spots=N_SPOTS, n_genes=N_GENES)
    right = adata.obsm["spatial"][:, 0] > np.median(adata.obsm["spatial"][:, 0])
    adata.obsm["spatial"][right] += 5000
    adata.obs["library"] = pd.Categorical(np.where(right, "right", "left"))
    adata.obsm["other"] = np.arange(2.0 * N_SPOTS).reshape(-1, 2)
    adata.uns["note"] = "kept"
    adata.raw = adata
    adata = adata[np.random.default_rng(3).permutation(N_SPOTS)].copy()
    st.pp.spatial_graph(adata, library_key="library")
    # Many small numbers, which take long to write.
    del adata.uns["spatial_neighbors"]
    return adata


@pytest.fixture(scope="module")
def on_disk(section, tmp_path_factory):
    """The section as `.zarr` and `.h5ad`; not to be changed."""
    folder = tmp_path_factory.mktemp("section")
    section.write_zarr(folder / "in.zarr")
    section.write_h5ad(folder / "in.h5ad")
    return folder


@pytest.fixture(scope="module")
def model(section, tmp_path_factory):
    """File of a network that was trained on the section."""
    path = tmp_path_factory.mktemp("network") / "network.pt"
    st.tl.train(section, **{**FAST, "n_epochs": 20}).save(path)
    return path


@pytest.fixture
def network(model):
    return st.methods.load(model)


@pytest.fixture(scope="module")
def whole(section, model):
    """Result of the network in memory; not to be changed."""
    return st.tl.denoise(section, st.methods.load(model), copy=True)


class Idle(DUSTED):
    """Does no work."""

    def train(self, spots, run):
        pytest.fail("work was done")


@pytest.fixture
def patches(monkeypatch):
    """Let every network work on 70 spots at a time, from disk to disk where it may."""

    def plan(*_, may_stream, **__):
        return Plan(70, may_stream, torch.device("cpu"), {}, 1.0)

    monkeypatch.setattr(_open_run, "make_plan", plan)


@pytest.fixture
def run():
    def invoke(*arguments):
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    return invoke


def stream(source, out, *arguments, **params):
    """Denoise from disk to disk, and return what was written."""
    lazy = read_lazy(source) if isinstance(source, Path) else source
    assert st.tl.denoise(lazy, *arguments, out=out, **params) is None
    return ad.read_zarr(out)


def digest(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def values_of(adata, name):
    return adata.layers[name] if name in adata.layers else adata.obsm[name]


def assert_close(ours, theirs, key="dusted", names=ARRAYS, rtol=2e-4):
    for name in [f"{key}_{name}" for name in names]:
        np.testing.assert_allclose(values_of(ours, name), values_of(theirs, name), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(ours.obsm[f"X_{key}"], theirs.obsm[f"X_{key}"], rtol=rtol, atol=1e-5)
    left, right = ours.uns[key]["history"], theirs.uns[key]["history"]
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=rtol)


@pytest.fixture
def rest_is_kept(freeze, assert_same):
    """Assert that everything but the result is as it was, in the original order."""

    def rest(adata, key):
        copy = adata.copy()
        for holder in (copy.layers, copy.obsm, copy.uns):
            for name in [name for name in holder if name is not None and key in name]:
                del holder[name]
        copy.var = copy.var.drop(columns=f"{key}_modelled", errors="ignore")
        # The disk knows fewer types of numbers.
        uns, copy.uns = dict(copy.uns), {}
        return freeze(copy), uns

    def check(after, before, key="dusted"):
        assert list(after.obs_names) == list(before.obs_names)
        (ours, our_uns), (theirs, their_uns) = rest(after, key), rest(before, key)
        assert ours == theirs
        assert_same(our_uns, their_uns)

    return check


# The same result


def test_the_mean_of_neighbours_needs_no_network(section, on_disk, patches, tmp_path):
    for n_hops in (1, 3):
        whole = st.tl.denoise(section, "neighbor_mean", n_hops=n_hops, copy=True)
        back = stream(on_disk / "in.zarr", tmp_path / "out.zarr", "neighbor_mean", n_hops=n_hops)
        np.testing.assert_allclose(back.layers["neighbor_mean_mean"], whole.layers["neighbor_mean_mean"], rtol=1e-5)
        assert back.uns["neighbor_mean"]["params"] == {"n_hops": n_hops}
    assert names_in(tmp_path) == ["out.zarr"]


@pytest.mark.parametrize(
    ("method", "params", "names", "source"),
    [
        ("dusted", PAPER, ARRAYS, lambda folder: read_lazy(folder / "in.zarr")),
        ("dusted", {**PAPER, "likelihood": "nb", "batch_size": 100}, ARRAYS[:2], lambda folder: folder / "in.zarr"),
        ("stagate", SMALL, ARRAYS[:1], lambda folder: str(folder / "in.h5ad")),
        # It reads neither coordinates nor graph: spots stay in their order, and so do its batches.
        ("dca", {"hidden": (8, 4, 8), "n_epochs": 3}, ARRAYS[:2], lambda folder: read_lazy(folder / "in.zarr")),
    ],
    ids=["dusted", "dusted, batches, from a path", "stagate, from text", "dca"],
)
def test_from_disk_to_disk_is_the_result_in_memory(
    section, on_disk, tmp_path, patches, rest_is_kept, assert_same, monkeypatch, method, params, names, source
):
    result = st.tl.denoise(section, method, copy=True, library_key="library", **params)
    before, out = digest(on_disk), tmp_path / "out.zarr"
    data = source(on_disk)
    with monkeypatch.context() as patch:
        if isinstance(data, str | Path):
            # Who gives a path needs no dask.
            patch.setitem(sys.modules, "dask", None)
            out = type(data)(out)
        assert st.tl.denoise(data, method, out=out, library_key="library", **params) is None
    after = ad.read_zarr(out)
    assert_close(after, result, method, names)
    rest_is_kept(after, section, method)
    assert digest(on_disk) == before
    assert names_in(tmp_path) == ["out.zarr"]
    ours, theirs = dict(after.uns[method]), dict(result.uns[method])
    assert set(ours.pop("written")) == set(theirs.pop("written"))
    kept = ("method", "params", "layer", "graph_key", "library_key", "seed", "device", "scale", "genes", "versions")
    assert_same({name: ours[name] for name in kept}, {name: theirs[name] for name in kept})
    # As good as any other result, for whoever reads it.
    np.testing.assert_array_equal(st.get.denoised(after, method).X, after.layers[f"{method}_mean"])


def test_the_fast_schedule(section, on_disk, tmp_path, patches):
    # Held-out molecules are drawn spot by spot: the same ones in the same order of spots.
    order = opened(section).order
    result = st.tl.denoise(section[order].copy(), copy=True, schedule="fast", **FAST)
    after = stream(on_disk / "in.zarr", tmp_path / "out.zarr", schedule="fast", **FAST)
    assert_close(after[order], result)
    assert "validation_loss" in result.uns["dusted"]["history"]


def opened(section, method=None, **changed):
    """Open the front door, as for DUSTED."""
    keys = {"graph_key": "spatial", "library_key": None, "spatial_key": "spatial", "features_key": None, **changed}
    return open_section(section, inputs_of([method or DUSTED()]), layer=None, genes=None, **keys)


@pytest.mark.parametrize(("method", "out"), [("neighbor_mean", "out.zarr"), ("dusted", "out.h5ad")], ids=str)
def test_a_path_that_is_read_into_memory_and_has_no_graph(section, tmp_path, method, out):
    bare = section.copy()
    del bare.obsp
    bare.write_h5ad(tmp_path / "in.h5ad")
    params = PAPER if method == "dusted" else {}
    options = {"library_key": "library", "spatial_key": "other", **params}
    st.tl.denoise(tmp_path / "in.h5ad", method, out=tmp_path / out, **options)
    after = read(tmp_path / out)
    st.pp.spatial_graph(bare, library_key="library", spatial_key="other")
    if method != "dusted":
        del options["spatial_key"]
    st.tl.denoise(bare, method, **options)
    np.testing.assert_array_equal(after.layers[f"{method}_mean"], bare.layers[f"{method}_mean"])
    assert (after.obsp["spatial_connectivities"] != bare.obsp["spatial_connectivities"]).nnz == 0


def read(path):
    return (ad.read_zarr if path.suffix == ".zarr" else ad.read_h5ad)(path)


@pytest.mark.parametrize("kind", ["backed h5ad", "dask", "layer", "dense"])
def test_whatever_holds_the_counts(section, tmp_path, patches, network, whole, kind, rest_is_kept):
    import dask.array as da

    section = section.copy()
    del section.raw
    layer = None
    if kind == "layer":
        section.layers["raw_counts"], section.X = section.X, section.X * 0.5
        layer = "raw_counts"
    elif kind == "dense":
        section.X = section.X.toarray()
    path = tmp_path / ("in.zarr" if kind in ("layer", "dense") else "in.h5ad")
    (section.write_zarr if path.suffix == ".zarr" else section.write_h5ad)(path)
    if kind == "backed h5ad":
        data = ad.read_h5ad(path, backed="r")
    elif kind == "dask":
        data = section.copy()
        data.X = da.from_array(section.X.toarray(), chunks=(80, N_GENES))
    else:
        data = read_lazy(path)
    before = digest(path)
    after = stream(data, tmp_path / "out.zarr", network, layer=layer)
    assert_close(after, whole)
    assert digest(path) == before
    assert "dusted" not in data.uns
    assert after.uns["dusted"]["layer"] == (layer or "X")
    if kind != "dask":
        rest_is_kept(after, section)


def least_memory(section, **params):
    """Find the least memory that a plan accepts, in GB."""
    low, high, size, cpu = 0.0, 10.0, Size(*section.shape, section.X.nnz), torch.device("cpu")
    while high - low > 1e-8:
        middle = (low + high) / 2
        try:
            make_plan(DUSTED(**params), size, n_arrays=3, memory=middle, device=cpu, may_stream=True)
            high = middle
        except MemoryError:
            low = middle
    return high


def test_the_command_line_streams_when_memory_is_short(section, on_disk, tmp_path, run, caplog, rest_is_kept):
    caplog.clear()
    result = st.tl.denoise(section, copy=True, library_key="library", **PAPER)
    before = digest(on_disk)
    options = [part for name, value in PAPER.items() for part in ("--set", f"{name}={value}")]
    command = ["denoise", on_disk / "in.zarr", tmp_path / "out.zarr", *options, "--library-key", "library"]
    for memory, how in (
        (f"{least_memory(section, **PAPER):.9f} GB", r"\d\d spots at a time, counts and results on disk"),
        ("50 GB", "all spots at a time, counts on cpu"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="stdenoise"):
            done = run(*command, "--memory", memory)
        assert done.exit_code == 0, done.output
        (plan,) = [message for message in caplog.messages if message.startswith("plan")]
        assert re.match(f"plan: {how}", plan)
        after = ad.read_zarr(tmp_path / "out.zarr")
        assert_close(after, result)
        rest_is_kept(after, section)
        assert names_in(tmp_path) == ["out.zarr"]
        assert f"{N_SPOTS} spots x {N_GENES} genes, scale counts" in done.stdout
    assert digest(on_disk) == before


def test_a_graph_that_the_command_line_builds_is_written(section, tmp_path, run, patches, model, whole):
    bare = section.copy()
    del bare.obsp["spatial_connectivities"], bare.obsp["spatial_distances"]
    bare.write_zarr(tmp_path / "in.zarr")
    done = run("denoise", tmp_path / "in.zarr", tmp_path / "out.zarr", "--model", model, "--library-key", "library")
    assert done.exit_code == 0, done.output
    after = ad.read_zarr(tmp_path / "out.zarr")
    for name in ("spatial_connectivities", "spatial_distances"):
        assert (after.obsp[name] != section.obsp[name]).nnz == 0
    assert_close(after, whole)
    assert "neighbours on average" in done.stdout
    # It is no part of the result, which a later run may remove.
    arrays = {f"layers/dusted_{name}" for name in ARRAYS}
    assert set(after.uns["dusted"]["written"]) == {*arrays, "obsm/X_dusted", "uns/dusted"}


# What is written


@pytest.mark.parametrize("arrays", [[], ["dropout", "latent"]], ids=str)
def test_chosen_arrays_of_half_precision(section, on_disk, tmp_path, patches, network, whole, arrays):
    options = {"arrays": arrays, "dtype": "float16"}
    wanted = {"dusted_mean", *(f"dusted_{name}" for name in arrays if name != "latent")}
    streamed = stream(on_disk / "in.zarr", tmp_path / "out.zarr", network, **options)
    for half in (st.tl.denoise(section, network, copy=True, **options), streamed):
        assert {name for name in layers_of(half) if name.startswith("dusted")} == wanted
        written = {f"layers/{name}" for name in wanted} | {"uns/dusted"}
        assert set(half.uns["dusted"]["written"]) == written | ({"obsm/X_dusted"} if "latent" in arrays else set())
        for name in wanted:
            assert half.layers[name].dtype == np.float16
            np.testing.assert_allclose(half.layers[name], whole.layers[name], rtol=2e-3, atol=1e-6)
        assert ("X_dusted" in half.obsm) == ("latent" in arrays)
        if "latent" in arrays:
            # Not of the size of the data.
            assert half.obsm["X_dusted"].dtype == np.float32
            np.testing.assert_allclose(half.obsm["X_dusted"], whole.obsm["X_dusted"], rtol=2e-4, atol=1e-5)


def test_what_is_too_large_for_half_precision(section, on_disk, tmp_path, patches, caplog):
    # Hardly trained, from where the means are far off.
    params = {**SMALL, "n_epochs": 1, "schedule": "paper", "dtype": "float16"}
    half = [st.tl.denoise(section, copy=True, **params), stream(on_disk / "in.zarr", tmp_path / "out.zarr", **params)]
    assert [adata.layers["dusted_mean"].max() for adata in half] == [65504, 65504]
    # Once for each.
    assert len([message for message in caplog.messages if "dusted_mean has values above 65504" in message]) == 2


def test_a_model_with_genes_in_another_order_and_what_is_at_the_target(section, tmp_path, patches, network, whole):
    other, out = section[:, np.random.default_rng(1).permutation(N_GENES)].copy(), tmp_path / "out.zarr"
    other.write_zarr(tmp_path / "in.zarr")
    ad.AnnData(np.ones((3, 2))).write_zarr(out)
    # What a killed run has left.
    (tmp_path / ".out.zarr-scratch").mkdir()
    (tmp_path / ".out.zarr-scratch" / "counts.json").write_text("{}")
    assert_close(stream(tmp_path / "in.zarr", out, network)[:, section.var_names], whole)
    assert names_in(tmp_path) == ["in.zarr", "out.zarr"]


def test_an_earlier_result_is_replaced_as_a_whole_and_back_by_some_genes(
    section, tmp_path, patches, network, whole, rest_is_kept, assert_same
):
    source, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    genes, in_order = ["gene10", "gene2", "gene7"], ["gene2", "gene7", "gene10"]
    earlier = st.tl.denoise(section, genes=genes, copy=True, **PAPER)
    earlier.layers["dusted_kept"] = section.X.copy()
    st.tl.denoise(earlier, "gene_mean", key_added="other")
    earlier.write_zarr(source)
    after = stream(source, out, network)
    assert_close(after, whole)
    assert {name for name in after.obsm if "dusted" in name} == {"X_dusted"}
    assert "dusted_modelled" not in after.var
    again = stream(out, tmp_path / "again.zarr", genes=genes, dtype="float16", **PAPER)
    assert_close(again, earlier, rtol=2e-3)
    for name in ("dusted_mean", "dusted_dispersion", "dusted_dropout"):
        frame = again.obsm[name]
        assert (list(frame.columns), list(frame.index)) == (in_order, list(section.obs_names))
        assert set(frame.dtypes) == {np.dtype("float16")}
    assert list(again.var_names[again.var["dusted_modelled"]]) == in_order
    assert list(again.uns["dusted"]["genes"]) == list(st.get.denoised(again).var_names) == in_order
    for adata in (after, again):
        # What was not written by a run under this key is kept.
        assert_same(adata.layers["dusted_kept"], earlier.layers["dusted_kept"])
        rest_is_kept(adata, earlier)
    assert {name for name in layers_of(again) if name.startswith("dusted")} == {"dusted_kept"}


# Faults


@pytest.fixture
def failing(on_disk, tmp_path, patches, network):
    """Run where an earlier result is, assert that the run fails and that nothing has changed; return the error."""
    out = tmp_path / "out.zarr"
    ad.AnnData(np.ones((3, 2))).write_zarr(out)

    def fail(error, fragment, source=None, **params):
        source = source or on_disk / "in.zarr"
        names, before = {path.name for path in tmp_path.iterdir()}, digest(source) | digest(out)
        with pytest.raises(error, match=fragment) as caught:
            st.tl.denoise(
                read_lazy(source), out=out, **(params if "schedule" in params else {"method": network, **params})
            )
        assert {path.name for path in tmp_path.iterdir()} == names
        assert digest(source) | digest(out) == before
        return caught.value

    return fail


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*_, **__):
    raise KeyboardInterrupt


def half_copied(_, path):
    path.mkdir()
    (path / "zarr.json").write_text("{")
    full_disk()


def after_calls(function, n_calls, fault):
    """Let a function do its work this many times, and then fail."""
    done = 0

    def call(*args, **kwargs):
        nonlocal done
        done += 1
        return function(*args, **kwargs) if done <= n_calls else fault(*args, **kwargs)

    return call


FAULTS = {
    "before counts are sorted": (sections, "sort_counts", 0, interrupted),
    "too small for the rows": (rows, "allocate", 2, full_disk),
    "at the first rows": (rows, "_write_at", 0, full_disk),
    "at later rows": (rows, "_write_at", 3, full_disk),
    "in the prediction": (DUSTEDModule, "predict", 2, interrupted),
    "when the section is copied": (Source, "copy_to", 0, half_copied),
    "before arrays are written": (sink, "write_arrays", 0, interrupted),
    "before the record is written": (sink, "write_elements", 1, full_disk),
}


@pytest.mark.parametrize("when", FAULTS)
def test_a_full_disk_or_an_interrupt(failing, monkeypatch, when):
    owner, name, n_calls, fault = FAULTS[when]
    monkeypatch.setattr(owner, name, after_calls(getattr(owner, name), n_calls, fault))
    fragment = r"\d+\.\d\d GB are needed, and \d+\.\d\d GB are free" if name == "allocate" else None
    error = failing(KeyboardInterrupt if fault is interrupted else OSError, fragment)
    assert fault is interrupted or error.errno == errno.ENOSPC


def test_a_disk_that_is_full_when_the_zarr_is_written(failing, monkeypatch):
    from zarr.storage import LocalStore

    n_calls, write = 0, LocalStore.set

    async def count(self, key, value, *args, **kwargs):
        nonlocal n_calls
        if "dusted_mean" in key and ".json" not in key and ".z" not in key:
            n_calls += 1
            full_disk()
        return await write(self, key, value, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "set", count)
    assert failing(OSError, "free on the disk of").errno == errno.ENOSPC
    assert n_calls > 0


def test_counts_that_cannot_be_read_or_are_none(section, on_disk, tmp_path, failing, run, model):
    source = Path(shutil.copytree(on_disk / "in.zarr", tmp_path / "in.zarr"))
    chunk = max((path for path in (source / "X" / "data").rglob("[0-9]*")), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:200])
    failing(OSError, r"rows 0 to \d+ of adata\.X: .", source=source)
    done = run("denoise", source, tmp_path / "other.zarr", "--model", model)
    assert done.exit_code == 2
    assert re.match(r"Error: .*rows 0 to \d+ of X of '.*in\.zarr': .*(damaged|checksum)", done.stderr)
    assert not (tmp_path / "other.zarr").exists()
    other = section.copy()
    other.X = section.X * 0.3
    other.write_zarr(tmp_path / "fractions.zarr")
    failing(ValueError, "adata.X", source=tmp_path / "fractions.zarr")


def test_an_interrupt_during_training_and_on_from_there(on_disk, tmp_path, failing, monkeypatch):
    params = {**PAPER, "batch_size": 100}
    result = stream(on_disk / "in.zarr", tmp_path / "whole.zarr", **params)
    checkpoint = tmp_path / "run.pt"
    checkpoint.touch()
    loss = DUSTEDModule.loss
    with monkeypatch.context() as patch:
        patch.setattr(DUSTEDModule, "loss", after_calls(loss, 10, interrupted))
        failing(KeyboardInterrupt, None, checkpoint=st.Checkpoint(checkpoint, minutes=0.0), **params)
    # 3 epochs of 3 steps on 2 patches each; most of it is not done twice.
    monkeypatch.setattr(DUSTEDModule, "loss", after_calls(loss, 11, interrupted))
    saved = st.Checkpoint(checkpoint, minutes=0.0, resume=True)
    after = stream(on_disk / "in.zarr", tmp_path / "after.zarr", checkpoint=saved, **params)
    for name in ARRAYS:
        np.testing.assert_array_equal(after.layers[f"dusted_{name}"], result.layers[f"dusted_{name}"])


# Refusals


def test_what_is_refused_before_any_work(section, on_disk, tmp_path):
    source, out, idle = on_disk / "in.zarr", tmp_path / "out.zarr", Idle(**PAPER)
    (tmp_path / "file.zarr").write_text("no folder")
    before = digest(on_disk)
    lazy, backed = read_lazy(source), ad.read_h5ad(on_disk / "in.h5ad", backed="r")
    load, to_zarr = r"adata\.to_memory\(\)", r"out= and a path that ends with .zarr"
    for data, arguments, error, fragment in [
        (source, {}, ValueError, "in.zarr.*out="),
        (source, {"copy": True}, ValueError, "in.zarr.*out="),
        (source, {"out": out, "copy": True}, ValueError, "copy=True"),
        (source, {"out": source}, ValueError, "in.zarr.* are the same"),
        (source, {"out": out, "graph_key": "other"}, KeyError, "'other_connectivities'"),
        (source, {"out": out, "layer": "raw_counts"}, KeyError, "'raw_counts'"),
        (tmp_path / "missing.zarr", {"out": out}, FileNotFoundError, r"missing\.zarr"),
        (lazy, {}, ValueError, load),
        (backed, {}, ValueError, load),
        (lazy, {"out": tmp_path / "out.h5ad"}, ValueError, to_zarr),
        (backed, {"out": tmp_path / "out.h5ad"}, ValueError, to_zarr),
        (lazy, {"out": out, "method": "gene_mean"}, ValueError, f"not in memory.*{load}"),
        (section, {"out": tmp_path / "out.csv"}, ValueError, "'.csv'"),
        (section, {"out": tmp_path / "nowhere/out.zarr"}, FileNotFoundError, "nowhere"),
        (section, {"out": tmp_path / "file.zarr"}, FileExistsError, "a file of that name"),
        (section, {"out": out, "copy": True}, ValueError, "out='.*out.zarr' and copy=True"),
        (section, {"arrays": ["gate"]}, ValueError, "arrays='gate'"),
        (section, {"arrays": "latent"}, TypeError, "arrays .*not 'latent'"),
        (section, {"dtype": "float64"}, ValueError, "dtype='float64'"),
    ]:
        with pytest.raises(error, match=fragment):
            st.tl.denoise(data, **{"method": idle, **arguments})
    assert digest(on_disk) == before
    assert names_in(tmp_path) == ["file.zarr"]


def test_results_of_others_edges_between_libraries_and_processes_are_refused(section, tmp_path, patches, network):
    source, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    section = section.copy()
    section.layers["dusted_mean"] = section.X.copy()
    section.obs["striped"] = pd.Categorical(np.where(np.arange(N_SPOTS) % 2, "odd", "even"))
    section.write_zarr(source)
    for arguments, fragment in [
        ({"method": Idle(**PAPER)}, "layers/dusted_mean exists"),
        ({"method": network, "key_added": "mine", "library_key": "striped"}, r"\d+ of \d+ edges .*'striped'"),
        ({"method": Idle(**PAPER), "compute": st.Compute(devices=2)}, "devices=2 .*torchrun"),
    ]:
        with pytest.raises(ValueError, match=fragment):
            stream(source, out, **arguments)
        assert names_in(tmp_path) == ["in.zarr"]
    after = stream(source, out, network, key_added="mine")
    assert {"mine_mean", "dusted_mean"} <= set(after.layers)


# Files from memory


@pytest.mark.parametrize(("suffix", "method"), [(".h5ad", "dusted"), (".zarr", "alra")])
def test_out_leaves_the_section_as_it_is(section, tmp_path, rest_is_kept, unchanged, suffix, method):
    out, params = tmp_path / f"out{suffix}", PAPER if method == "dusted" else {}
    view = section[section.obs["library"] == "left"]
    with unchanged(view):
        assert st.tl.denoise(view, method, out=out, **params) is None
    after, left = read(out), view.copy()
    rest_is_kept(after, left, method)
    st.tl.denoise(left, method, **params)
    np.testing.assert_array_equal(after.layers[f"{method}_mean"], left.layers[f"{method}_mean"])
    assert names_in(tmp_path) == [out.name]


# Libraries


def test_libraries_do_not_leak_and_one_of_twice_the_depth_has_twice_the_means(
    section, on_disk, tmp_path, patches, network
):
    left = (section.obs["library"] == "left").to_numpy()
    other, deep = section.copy(), section.copy()
    counts = section.X.toarray()
    counts[~left] = np.random.default_rng(0).permutation(counts[~left])
    other.X = sparse.csr_matrix(counts)
    factors = np.where(left, 2, 1)[:, None]
    deep.X = section.X.multiply(factors).tocsr()
    results = [stream(on_disk / "in.zarr", tmp_path / "out.zarr", network, library_key="library")]
    for adata in (other, deep):
        adata.write_zarr(tmp_path / "in.zarr")
        results.append(stream(tmp_path / "in.zarr", tmp_path / "out.zarr", network, library_key="library"))
    for name in ("dusted_mean", "dusted_dispersion", "dusted_dropout"):
        one, mixed, twice = (adata.layers[name] for adata in results)
        np.testing.assert_array_equal(one[left], mixed[left])
        assert not np.allclose(one[~left], mixed[~left], rtol=1e-2)
        np.testing.assert_allclose(twice, (factors if name == "dusted_mean" else 1) * one, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(*(adata.obsm["X_dusted"][left] for adata in results[:2]))


def test_spots_are_sorted_by_library_and_place(section, monkeypatch):
    monkeypatch.setattr(sections, "_LEAF", 16)
    places = section.obsm["spatial"]
    libraries = section.obs["library"].cat.codes.to_numpy()
    order = opened(section, library_key="library").order
    assert sorted(order) == list(range(N_SPOTS))
    assert np.count_nonzero(np.diff(libraries[order])) == 1
    near = np.linalg.norm(np.diff(places[order], axis=0), axis=1)
    far = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert np.median(near) < 0.25 * np.median(far)
    # Without places, by the graph; without a graph, as they are.
    bare = section.copy()
    del bare.obsm["spatial"]
    by_graph = opened(bare).order
    assert sorted(by_graph) == list(range(N_SPOTS))
    assert np.median(np.linalg.norm(np.diff(places[by_graph], axis=0), axis=1)) < 0.5 * np.median(far)
    np.testing.assert_array_equal(opened(bare, DCA()).order, np.arange(N_SPOTS))
