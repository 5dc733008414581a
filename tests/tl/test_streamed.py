"""Denoising from disk to disk, and results that are written to a file."""

import errno
import hashlib
import logging
import re
import shutil
import subprocess
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
from stdenoise._io.section import open_section
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
def network(section, tmp_path_factory):
    """A trained network of the section."""
    path = tmp_path_factory.mktemp("network") / "network.pt"
    st.tl.train(section, **{**FAST, "n_epochs": 20}).save(path)
    return st.methods.load(path)


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


def options_of(params):
    return [part for name, value in params.items() for part in ("--set", f"{name}={value}")]


def stream(source, out, *arguments, **params):
    """Denoise from disk to disk, and return what was written."""
    lazy = read_lazy(source) if isinstance(source, Path) else source
    assert st.tl.denoise(lazy, *arguments, out=out, **params) is None
    return ad.read_zarr(out)


def digest(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


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
            for name in [name for name in holder if key in name]:
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


@pytest.mark.parametrize(
    ("method", "params", "names"),
    [
        ("dusted", PAPER, ARRAYS),
        ("dusted", {**PAPER, "likelihood": "nb", "batch_size": 100}, ARRAYS[:2]),
        ("stagate", SMALL, ARRAYS[:1]),
    ],
    ids=["dusted", "dusted, batches", "stagate"],
)
def test_from_disk_to_disk_is_the_result_in_memory(
    section, on_disk, tmp_path, patches, rest_is_kept, method, params, names
):
    whole = st.tl.denoise(section, method, copy=True, library_key="library", **params)
    before = digest(on_disk)
    after = stream(on_disk / "in.zarr", tmp_path / "out.zarr", method, library_key="library", **params)
    assert_close(after, whole, method, names)
    rest_is_kept(after, section, method)
    assert digest(on_disk) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]
    ours, theirs = after.uns[method], whole.uns[method]
    assert set(ours["written"]) == set(theirs["written"])
    for name in (
        "method",
        "params",
        "layer",
        "graph_key",
        "library_key",
        "seed",
        "device",
        "scale",
        "genes",
        "versions",
    ):
        assert ours[name] == theirs[name], name
    # As good as any other result, for whoever reads it.
    np.testing.assert_array_equal(st.get.denoised(after, method).X, after.layers[f"{method}_mean"])


def test_the_fast_schedule(section, on_disk, tmp_path, patches):
    # Held-out molecules are drawn spot by spot: the same ones in the same order of spots.
    order = opened(section).order
    whole = st.tl.denoise(section[order].copy(), copy=True, schedule="fast", **FAST)
    after = stream(on_disk / "in.zarr", tmp_path / "out.zarr", schedule="fast", **FAST)
    assert_close(after[order], whole)
    assert "validation_loss" in whole.uns["dusted"]["history"]


def opened(section, method=None, **changed):
    """Open the front door, as for DUSTED."""
    keys = {"graph_key": "spatial", "library_key": None, "spatial_key": "spatial", "features_key": None, **changed}
    return open_section(section, inputs_of([method or DUSTED()]), layer=None, genes=None, **keys)


def test_dca(section, on_disk, tmp_path, patches):
    # Without coordinates and graph, spots stay in their order, and so do its batches.
    params = {"hidden": (8, 4, 8), "n_epochs": 3}
    whole = st.tl.denoise(section, "dca", copy=True, **params)
    after = stream(read_lazy(on_disk / "in.zarr"), tmp_path / "out.zarr", "dca", **params)
    assert_close(after, whole, "dca", ("mean", "dispersion"))


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_path(section, on_disk, tmp_path, patches, rest_is_kept, kind, suffix):
    whole = st.tl.denoise(section, copy=True, library_key="library", **PAPER)
    before = digest(on_disk)
    source, out = kind(on_disk / f"in{suffix}"), kind(tmp_path / "out.zarr")
    assert st.tl.denoise(source, "dusted", library_key="library", out=out, **PAPER) is None
    after = ad.read_zarr(out)
    assert_close(after, whole)
    rest_is_kept(after, section)
    assert digest(on_disk) == before


@pytest.mark.parametrize(("method", "out"), [("neighbor_mean", "out.zarr"), ("dusted", "out.h5ad")], ids=str)
def test_a_path_that_is_read_into_memory_and_has_no_graph(section, tmp_path, method, out):
    bare = section.copy()
    del bare.obsp
    bare.write_h5ad(tmp_path / "in.h5ad")
    params = PAPER if method == "dusted" else {}
    options = {"library_key": "library", "spatial_key": "other", **params}
    st.tl.denoise(tmp_path / "in.h5ad", method, out=tmp_path / out, **options)
    after = (ad.read_zarr if out.endswith("zarr") else ad.read_h5ad)(tmp_path / out)
    st.pp.spatial_graph(bare, library_key="library", spatial_key="other")
    if method != "dusted":
        del options["spatial_key"]
    st.tl.denoise(bare, method, **options)
    np.testing.assert_array_equal(after.layers[f"{method}_mean"], bare.layers[f"{method}_mean"])
    assert (after.obsp["spatial_connectivities"] != bare.obsp["spatial_connectivities"]).nnz == 0


def test_a_path_that_is_refused(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(DUSTED, "train", lambda *_: pytest.fail("work was done"))
    source, out = on_disk / "in.zarr", tmp_path / "out.zarr"
    before = digest(on_disk)
    for arguments, error, message in [
        ({}, ValueError, "in.zarr.*out="),
        ({"copy": True}, ValueError, "in.zarr.*out="),
        ({"out": out, "copy": True}, ValueError, "copy=True"),
        ({"out": source}, ValueError, "in.zarr.* are the same"),
        ({"out": out, "graph_key": "other"}, KeyError, "'other_connectivities'"),
        ({"out": out, "layer": "raw_counts"}, KeyError, "'raw_counts'"),
    ]:
        with pytest.raises(error, match=message):
            st.tl.denoise(source, **arguments, **PAPER)
    with pytest.raises(FileNotFoundError, match=r"missing\.zarr"):
        st.tl.denoise(tmp_path / "missing.zarr", out=out, **PAPER)
    assert digest(on_disk) == before
    assert not list(tmp_path.iterdir())


def test_a_path_needs_no_dask(on_disk, tmp_path):
    script = f"""
import sys
sys.modules["dask"] = None
import stdenoise as st
from stdenoise.tl._plan import Plan
from stdenoise.tl import _open_run
import torch
_open_run.make_plan = lambda *_, **__: Plan(70, True, torch.device("cpu"), {{}}, 1.0)
st.tl.denoise({str(on_disk / "in.zarr")!r}, out={str(tmp_path / "out.zarr")!r}, progress=False, **{PAPER!r})
assert not [name for name in sys.modules if name.startswith("dask.")]
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dusted_mean" in ad.read_zarr(tmp_path / "out.zarr").layers


@pytest.mark.parametrize(
    "kind", ["backed h5ad", pytest.param("lazy h5ad", marks=pytest.mark.slow), "dask", "layer", "dense"]
)
def test_whatever_holds_the_counts(section, tmp_path, patches, kind, rest_is_kept):
    import dask.array as da

    section = section.copy()
    del section.raw
    layer = None
    if kind == "layer":
        section.layers["raw_counts"], section.X = section.X, section.X * 0.5
        layer = "raw_counts"
    elif kind == "dense":
        section.X = section.X.toarray()
    whole = st.tl.denoise(section, copy=True, layer=layer, **PAPER)
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
    after = stream(data, tmp_path / "out.zarr", layer=layer, **PAPER)
    assert_close(after, whole)
    assert digest(path) == before
    assert "dusted" not in data.uns
    assert after.uns["dusted"]["layer"] == (layer or "X")
    if kind != "dask":
        rest_is_kept(after, section)


def least_memory(section, **params):
    """Find the least memory that a plan accepts, in GB."""
    low, high = 0.0, 10.0
    size = Size(*section.shape, section.X.nnz)
    while high - low > 1e-8:
        middle = (low + high) / 2
        try:
            make_plan(DUSTED(**params), size, n_arrays=3, memory=middle, device=torch.device("cpu"), may_stream=True)
        except MemoryError:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_the_command_line_streams_when_memory_is_short(section, on_disk, tmp_path, run, suffix, caplog, rest_is_kept):
    memory = f"{least_memory(section, **PAPER):.9f} GB"
    caplog.clear()
    whole = st.tl.denoise(section, copy=True, library_key="library", **PAPER)
    before = digest(on_disk)
    command = [
        "denoise",
        on_disk / f"in{suffix}",
        tmp_path / "out.zarr",
        *options_of(PAPER),
        "--library-key",
        "library",
    ]
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        done = run(*command, "--memory", memory)
    assert done.exit_code == 0, done.output
    (plan,) = [message for message in caplog.messages if message.startswith("plan")]
    assert re.match(r"plan: \d\d spots at a time, counts and results on disk", plan)
    after = ad.read_zarr(tmp_path / "out.zarr")
    assert_close(after, whole)
    rest_is_kept(after, section)
    assert digest(on_disk) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]
    assert f"{N_SPOTS} spots x {N_GENES} genes, scale counts" in done.stdout
    if suffix == ".h5ad":
        return
    # With ample memory, the same.
    done = run(*command, "--memory", "50 GB")
    assert done.exit_code == 0, done.output
    assert_close(ad.read_zarr(tmp_path / "out.zarr"), whole)


def test_a_graph_that_the_command_line_builds_is_written(section, tmp_path, run, patches):
    bare = section.copy()
    del bare.obsp["spatial_connectivities"], bare.obsp["spatial_distances"]
    bare.write_zarr(tmp_path / "in.zarr")
    done = run("denoise", tmp_path / "in.zarr", tmp_path / "out.zarr", *options_of(PAPER), "--library-key", "library")
    assert done.exit_code == 0, done.output
    after = ad.read_zarr(tmp_path / "out.zarr")
    for name in ("spatial_connectivities", "spatial_distances"):
        assert (after.obsp[name] != section.obsp[name]).nnz == 0
    assert_close(after, st.tl.denoise(section, copy=True, library_key="library", **PAPER))
    assert "neighbours on average" in done.stdout
    # It is no part of the result, which a later run may remove.
    assert {place.split("/")[1] for place in after.uns["dusted"]["written"]} == {
        *(f"dusted_{name}" for name in ARRAYS),
        "X_dusted",
        "dusted",
    }


# What is written


@pytest.mark.parametrize("arrays", [[], ["dropout", "latent"]], ids=str)
def test_chosen_arrays(section, on_disk, tmp_path, patches, network, arrays):
    wanted = {"dusted_mean", *(f"dusted_{name}" for name in arrays if name != "latent")}
    streamed = stream(on_disk / "in.zarr", tmp_path / "out.zarr", network, arrays=arrays)
    memory = st.tl.denoise(section, network, arrays=arrays, copy=True)
    for adata in (streamed, memory):
        assert {name for name in adata.layers if name.startswith("dusted")} == wanted
        assert ("X_dusted" in adata.obsm) == ("latent" in arrays)
        expected = {f"layers/{name}" for name in wanted} | {"uns/dusted"}
        assert set(adata.uns["dusted"]["written"]) == expected | ({"obsm/X_dusted"} if "latent" in arrays else set())


def test_half_precision(section, on_disk, tmp_path, patches, network):
    single = st.tl.denoise(section, network, copy=True)
    streamed = stream(on_disk / "in.zarr", tmp_path / "out.zarr", network, dtype="float16")
    for half in (st.tl.denoise(section, network, dtype="float16", copy=True), streamed):
        for name in ("dusted_mean", "dusted_dispersion", "dusted_dropout"):
            assert half.layers[name].dtype == np.float16
            np.testing.assert_allclose(half.layers[name], single.layers[name], rtol=2e-3, atol=1e-6)
        # Not of the size of the data.
        assert half.obsm["X_dusted"].dtype == np.float32
        np.testing.assert_allclose(half.obsm["X_dusted"], single.obsm["X_dusted"], rtol=2e-4, atol=1e-5)


def test_what_is_too_large_for_half_precision(section, on_disk, tmp_path, patches, caplog):
    # Hardly trained, from where the means are far off.
    params = {**SMALL, "n_epochs": 1, "schedule": "paper", "dtype": "float16"}
    half = [st.tl.denoise(section, copy=True, **params), stream(on_disk / "in.zarr", tmp_path / "out.zarr", **params)]
    assert [adata.layers["dusted_mean"].max() for adata in half] == [65504, 65504]
    message = "dusted_mean has values above 65504, the largest float16: they are stored as that"
    # Once for each.
    assert caplog.messages.count(message) == 2


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float16"])
def test_some_genes(section, on_disk, tmp_path, patches, rest_is_kept, dtype):
    genes = ["gene10", "gene2", "gene7"]
    whole = st.tl.denoise(section, genes=genes, copy=True, **PAPER)
    after = stream(on_disk / "in.zarr", tmp_path / "out.zarr", genes=genes, dtype=dtype, **PAPER)
    assert_close(after, whole, rtol=2e-3 if dtype == "float16" else 2e-4)
    for name in ("dusted_mean", "dusted_dispersion", "dusted_dropout"):
        frame = after.obsm[name]
        assert list(frame.columns) == ["gene2", "gene7", "gene10"]
        assert list(frame.index) == list(section.obs_names)
        assert set(frame.dtypes) == {np.dtype(dtype)}
    assert list(after.var_names[after.var["dusted_modelled"]]) == ["gene2", "gene7", "gene10"]
    assert list(after.uns["dusted"]["genes"]) == ["gene2", "gene7", "gene10"]
    assert list(st.get.denoised(after).var_names) == ["gene2", "gene7", "gene10"]
    rest_is_kept(after, section)


def test_a_model_with_genes_in_another_order(section, tmp_path, patches, network):
    other = section[:, np.random.default_rng(1).permutation(N_GENES)].copy()
    other.write_zarr(tmp_path / "in.zarr")
    after = stream(tmp_path / "in.zarr", tmp_path / "out.zarr", network)
    whole = st.tl.denoise(section, network, copy=True)
    assert_close(after[:, section.var_names], whole)


def test_an_earlier_result_is_replaced_as_a_whole(section, tmp_path, patches, network, freeze, assert_same):
    source, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    earlier = st.tl.denoise(section, genes=["gene1", "gene5"], copy=True, **PAPER)
    earlier.layers["dusted_kept"] = section.X.copy()
    st.tl.denoise(earlier, "gene_mean", key_added="other")
    earlier.write_zarr(source)
    after = stream(source, out, network)
    whole = st.tl.denoise(section, network, copy=True)
    assert_close(after, whole)
    assert {name for name in after.obsm if "dusted" in name} == {"X_dusted"}
    assert "dusted_modelled" not in after.var
    assert_same(after.uns["other"], earlier.uns["other"])
    assert freeze(after.layers["other_mean"]) == freeze(earlier.layers["other_mean"])
    # It was not written by a run under this key.
    assert_same(after.layers["dusted_kept"], earlier.layers["dusted_kept"])
    # And back, over the file that is there.
    again = stream(out, tmp_path / "again.zarr", genes=["gene1", "gene5"], **PAPER)
    assert_close(again, earlier)
    assert {name for name in again.layers if name.startswith("dusted")} == {"dusted_kept"}


def test_what_others_wrote_under_the_key_is_not_replaced(section, tmp_path, patches):
    section = section.copy()
    section.layers["dusted_mean"] = section.X.copy()
    section.write_zarr(tmp_path / "in.zarr")
    with pytest.raises(ValueError, match="layers/dusted_mean exists and was not written by stdenoise"):
        stream(tmp_path / "in.zarr", tmp_path / "out.zarr", **PAPER)
    assert [path.name for path in tmp_path.iterdir()] == ["in.zarr"]
    after = stream(tmp_path / "in.zarr", tmp_path / "out.zarr", key_added="mine", **PAPER)
    assert {"mine_mean", "dusted_mean"} <= set(after.layers)


def test_what_is_at_the_target_is_replaced(on_disk, tmp_path, patches, network):
    out = tmp_path / "out.zarr"
    ad.AnnData(np.ones((3, 2))).write_zarr(out)
    # What a killed run has left.
    (tmp_path / ".out.zarr-scratch").mkdir()
    (tmp_path / ".out.zarr-scratch" / "counts.json").write_text("{}")
    assert stream(on_disk / "in.zarr", out, network).shape == (N_SPOTS, N_GENES)
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


# Faults


@pytest.fixture
def failing(on_disk, tmp_path, patches, network):
    """Run where an earlier result is, assert that the run fails and that nothing has changed; return the error."""
    out = tmp_path / "out.zarr"
    ad.AnnData(np.ones((3, 2))).write_zarr(out)

    def fail(error, message, source=None, **params):
        source = source or on_disk / "in.zarr"
        names, before = {path.name for path in tmp_path.iterdir()}, digest(source) | digest(out)
        with pytest.raises(error, match=message) as caught:
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


def after_calls(function, n_calls, fault):
    """Let a function do its work this many times, and then fail."""
    done = 0

    def call(*args, **kwargs):
        nonlocal done
        done += 1
        return function(*args, **kwargs) if done <= n_calls else fault()

    return call


def test_a_block_that_cannot_be_read(on_disk, tmp_path, failing, monkeypatch, run):
    source = Path(shutil.copytree(on_disk / "in.zarr", tmp_path / "in.zarr"))
    (chunk,) = [path for path in (source / "X" / "data").rglob("*") if path.is_file() and path.stat().st_size > 500]
    chunk.write_bytes(chunk.read_bytes()[:200])
    monkeypatch.setattr(DUSTED, "train", lambda *_: pytest.fail("it was trained"))
    failing(OSError, r"cannot read rows 0 to \d+ of adata\.X: .", source=source)
    done = run("denoise", source, tmp_path / "other.zarr", *options_of(PAPER))
    assert done.exit_code == 2
    assert re.match(r"Error: cannot read rows 0 to \d+ of X of '.*in\.zarr': .*damaged", done.stderr)
    assert not (tmp_path / "other.zarr").exists()


def test_counts_that_are_none(section, tmp_path, failing):
    other = section.copy()
    other.X = section.X * 0.3
    other.write_zarr(tmp_path / "in.zarr")
    failing(ValueError, "adata.X", source=tmp_path / "in.zarr")


@pytest.mark.parametrize("n_calls", [0, 3])
def test_a_disk_that_is_full_when_rows_are_written(failing, monkeypatch, n_calls):
    monkeypatch.setattr(rows, "_write_at", after_calls(rows._write_at, n_calls, full_disk))
    error = failing(OSError, None)
    assert error.errno == errno.ENOSPC


def test_a_disk_that_is_too_small_for_the_rows(failing, monkeypatch):
    monkeypatch.setattr(rows, "allocate", after_calls(rows.allocate, 2, full_disk))
    error = failing(OSError, r"\d+\.\d\d GB are needed, and \d+\.\d\d GB are free on the disk of")
    assert error.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("sort_counts", interrupted),
        ("create_arrays", full_disk),
        ("write_arrays", interrupted),
        ("write_elements", full_disk),
    ],
)
def test_a_fault_between_the_parts(failing, monkeypatch, what, fault):
    calls = {"write_elements": 1}.get(what, 0)
    module = sections if what == "sort_counts" else sink
    monkeypatch.setattr(module, what, after_calls(getattr(module, what), calls, fault))
    failing(BaseException, None)


@pytest.mark.parametrize("params", [{}, {**PAPER, "genes": ["gene1", "gene4"]}], ids=["all genes", "some"])
def test_a_disk_that_is_full_when_the_zarr_is_written(failing, monkeypatch, params):
    from zarr.storage import LocalStore

    n_calls = 0
    whole = LocalStore.set

    async def count(self, key, value, *args, **kwargs):
        nonlocal n_calls
        if "dusted_mean" in key and ".json" not in key and ".z" not in key:
            n_calls += 1
            full_disk()
        return await whole(self, key, value, *args, **kwargs)

    monkeypatch.setattr(LocalStore, "set", count)
    error = failing(OSError, "No space left" if params else "free on the disk of", **params)
    assert error.errno == errno.ENOSPC
    assert n_calls > 0


def test_a_disk_that_is_full_when_the_section_is_copied(failing, monkeypatch):
    from stdenoise._io.source import Source

    def half(self, path):
        path.mkdir()
        (path / "zarr.json").write_text("{")
        full_disk()

    monkeypatch.setattr(Source, "copy_to", half)
    failing(OSError, "No space left")


def test_an_interrupt_during_prediction(failing, monkeypatch):
    monkeypatch.setattr(DUSTEDModule, "predict", after_calls(DUSTEDModule.predict, 2, interrupted))
    failing(KeyboardInterrupt, None)


def test_an_interrupt_during_training_and_on_from_there(on_disk, tmp_path, failing, monkeypatch):
    params = {**PAPER, "batch_size": 100}
    saved = st.Checkpoint(tmp_path / "whole.pt", minutes=0.0, resume=True)
    whole = stream(on_disk / "in.zarr", tmp_path / "whole.zarr", checkpoint=saved, **params)
    checkpoint = tmp_path / "run.pt"
    checkpoint.touch()
    loss = DUSTEDModule.loss
    with monkeypatch.context() as patch:
        patch.setattr(DUSTEDModule, "loss", after_calls(loss, 10, interrupted))
        failing(KeyboardInterrupt, None, checkpoint=st.Checkpoint(checkpoint, minutes=0.0), **params)
    n_losses = 0

    def count(*args):
        nonlocal n_losses
        n_losses += 1
        return loss(*args)

    monkeypatch.setattr(DUSTEDModule, "loss", count)
    saved = st.Checkpoint(checkpoint, minutes=0.0, resume=True)
    after = stream(on_disk / "in.zarr", tmp_path / "after.zarr", checkpoint=saved, **params)
    for name in ARRAYS:
        np.testing.assert_array_equal(after.layers[f"dusted_{name}"], whole.layers[f"dusted_{name}"])
    # 3 epochs of 3 steps on 2 patches each; most of it was not done twice.
    assert 0 < n_losses < 12


# Refusals


@pytest.mark.parametrize("out", [None, "out.h5ad"])
def test_what_is_on_disk_needs_a_zarr_to_go_to(on_disk, tmp_path, out):
    out = None if out is None else tmp_path / out
    for lazy in (read_lazy(on_disk / "in.zarr"), ad.read_h5ad(on_disk / "in.h5ad", backed="r")):
        with pytest.raises(ValueError, match=r"adata\.to_memory\(\)") as caught:
            st.tl.denoise(lazy, out=out, **PAPER)
        if out is not None:
            assert "out= and a path that ends with .zarr" in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["gene_mean", "alra"])
def test_other_methods_need_the_section_in_memory(on_disk, tmp_path, method):
    with pytest.raises(ValueError, match=r"adata is not in memory; load it first: adata = adata\.to_memory\(\)"):
        st.tl.denoise(read_lazy(on_disk / "in.zarr"), method, out=tmp_path / "out.zarr")
    assert not any(tmp_path.iterdir())


def test_a_target_is_checked_before_any_work(section, tmp_path, monkeypatch):
    monkeypatch.setattr(DUSTED, "train", lambda *_: pytest.fail("work was done"))
    (tmp_path / "file.zarr").write_text("no folder")
    for out, error, message in [
        ("out.csv", ValueError, "file format='.csv' is not valid"),
        ("nowhere/out.zarr", FileNotFoundError, "there is no folder"),
        ("file.zarr", FileExistsError, "a file of that name exists"),
    ]:
        with pytest.raises(error, match=message):
            st.tl.denoise(section, out=tmp_path / out, **PAPER)
    with pytest.raises(ValueError, match="out='.*out.zarr' and copy=True exclude each other"):
        st.tl.denoise(section, out=tmp_path / "out.zarr", copy=True, **PAPER)
    with pytest.raises(ValueError, match="arrays='gate' is not valid"):
        st.tl.denoise(section, arrays=["gate"], **PAPER)
    with pytest.raises(TypeError, match="arrays must be a list of names, not 'latent'"):
        st.tl.denoise(section, arrays="latent", **PAPER)
    with pytest.raises(ValueError, match="dtype='float64' is not valid"):
        st.tl.denoise(section, dtype="float64", **PAPER)


# Files from memory


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize(("method", "params"), [("dusted", PAPER), ("alra", {})])
def test_out_leaves_the_section_as_it_is(section, tmp_path, rest_is_kept, unchanged, suffix, method, params):
    section = section.copy()
    out = tmp_path / f"out{suffix}"
    with unchanged(section):
        assert st.tl.denoise(section, method, out=out, **params) is None
    after = ad.read_h5ad(out) if suffix == ".h5ad" else ad.read_zarr(out)
    copy = st.tl.denoise(section, method, copy=True, **params)
    np.testing.assert_array_equal(after.layers[f"{method}_mean"], copy.layers[f"{method}_mean"])
    rest_is_kept(after, section, method)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_view_can_be_written(section, tmp_path):
    view = section[section.obs["library"] == "left"]
    st.tl.denoise(view, out=tmp_path / "out.zarr", **PAPER)
    assert view.is_view
    whole = st.tl.denoise(view.copy(), copy=True, **PAPER)
    assert_close(ad.read_zarr(tmp_path / "out.zarr"), whole)


# Libraries


def test_libraries_do_not_leak(section, tmp_path, patches, network):
    left = (section.obs["library"] == "left").to_numpy()
    other = section.copy()
    counts = section.X.toarray()
    counts[~left] = np.random.default_rng(0).permutation(counts[~left])
    other.X = sparse.csr_matrix(counts)
    results = []
    for name, adata in (("one", section), ("other", other)):
        adata.write_zarr(tmp_path / f"{name}.zarr")
        out = tmp_path / f"{name}_out.zarr"
        results.append(stream(tmp_path / f"{name}.zarr", out, network, library_key="library"))
    for name in ("dusted_mean", "dusted_dispersion", "dusted_dropout"):
        one, two = (adata.layers[name] for adata in results)
        np.testing.assert_array_equal(one[left], two[left])
        assert not np.allclose(one[~left], two[~left], rtol=1e-2)
    np.testing.assert_array_equal(*(adata.obsm["X_dusted"][left] for adata in results))


def test_an_edge_between_libraries_is_refused(section, tmp_path, patches):
    other = section.copy()
    other.obs["library"] = pd.Categorical(np.where(np.arange(N_SPOTS) % 2, "odd", "even"))
    other.write_zarr(tmp_path / "in.zarr")
    with pytest.raises(ValueError, match=r"\d+ of \d+ edges join spots of different 'library'"):
        stream(tmp_path / "in.zarr", tmp_path / "out.zarr", library_key="library", **PAPER)
    assert [path.name for path in tmp_path.iterdir()] == ["in.zarr"]


def test_a_library_of_twice_the_depth_has_twice_the_means(section, tmp_path, patches, network):
    left = (section.obs["library"] == "left").to_numpy()
    deep = section.copy()
    factors = np.where(left, 2, 1)[:, None]
    deep.X = section.X.multiply(factors).tocsr()
    results = []
    for name, adata in (("one", section), ("deep", deep)):
        adata.write_zarr(tmp_path / f"{name}.zarr")
        out = tmp_path / f"{name}_out.zarr"
        results.append(stream(tmp_path / f"{name}.zarr", out, network, library_key="library"))
    one, twice = (adata.layers["dusted_mean"] for adata in results)
    np.testing.assert_allclose(twice, factors * one, rtol=1e-4)
    for name in ("dusted_dispersion", "dusted_dropout"):
        one, twice = (adata.layers[name] for adata in results)
        np.testing.assert_allclose(twice, one, rtol=1e-4, atol=1e-7)


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


def test_the_scratch_folder_is_beside_the_target(on_disk, tmp_path, patches, monkeypatch, network):
    seen = {}
    close = sink.Rows.close

    def look(self, report):
        seen["folder"] = self._folder
        seen["names"] = sorted(path.name for path in self._folder.iterdir() if path.suffix != ".rows")
        return close(self, report)

    monkeypatch.setattr(sink.Rows, "close", look)
    stream(on_disk / "in.zarr", tmp_path / "out.zarr", network)
    assert seen["folder"] == tmp_path / ".out.zarr-scratch"
    assert {"col", "counts.json", "crow", "total", "values"} <= set(seen["names"])


def test_processes_that_this_one_would_start_are_refused(hexagonal, tmp_path, monkeypatch):
    hexagonal.write_zarr(tmp_path / "in.zarr")
    lazy = ad.experimental.read_lazy(tmp_path / "in.zarr")
    with pytest.raises(ValueError, match="devices=2 does not go with counts that stay on disk; start .* with torchrun"):
        st.tl.denoise(lazy, compute=st.Compute(devices=2), out=tmp_path / "out.zarr", **SMALL)
    assert not (tmp_path / "out.zarr").exists()
