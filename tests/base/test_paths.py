"""No file is lost: paths that meet, and everything that is no output of ours, are refused before any work."""

import hashlib
import io
import itertools
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import anndata as ad
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import stdenoise as st
from stdenoise import __main__ as cli
from stdenoise._base import paths as _paths
from stdenoise.tl._plan import Plan
from stdenoise.train.checkpoint import save_tensors

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")

FORMATS = [".h5ad", ".zarr"]
NETWORK = {"n_epochs": 1, "n_hidden": 8, "n_latent": 3}
FAST = [part for name, value in NETWORK.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Each kind of file that a run reads or writes, and some that it must not touch."""
    folder = tmp_path_factory.mktemp("template")
    adata = st.datasets.tissue(n_spots=60, n_genes=8)
    for name in ("in", "out", "box"):
        adata.write_zarr(folder / f"{name}.zarr")
        adata.write_h5ad(folder / f"{name}.h5ad")
    save_tensors(folder / "run.ckpt", "checkpoint", {"old": 1})
    save_tensors(folder / "old.model", "model", {"old": 1})
    (folder / "thesis.txt").write_text("years of work")
    return folder


@pytest.fixture
def home(template, tmp_path, monkeypatch):
    """A copy of the template, as the working folder."""
    folder = tmp_path / "home"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


def contents(folder):
    """Checksum of every file, and where every link leads."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def copy(source, target):
    (shutil.copytree if Path(source).is_dir() else shutil.copyfile)(source, target)


def read(path):
    return (ad.read_zarr if Path(path).suffix == ".zarr" else ad.read_h5ad)(path)


def run(*arguments):
    with mock.patch.object(logging.root, "handlers", []):
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def refused(home, *arguments):
    """Run a command that must end with code 2, one line, and every file as before; return the line."""
    before = contents(home)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert contents(home) == before
    return line


def command(places, method):
    options = [f"--{role.replace('_', '-')}={places[role]}" for role in ("checkpoint", "save_model") if role in places]
    network = FAST if method == "dusted" else []
    return ["denoise", places["IN"], places["OUT"], "--method", method, "--no-progress", *network, *options]


def from_disk_to_disk():
    """Let the network work from disk to disk, beside whose target is a scratch folder."""
    plan = Plan(40, True, torch.device("cpu"), {}, 1.0)
    return mock.patch("stdenoise.tl._open_run.make_plan", lambda *_, **__: plan)


# Paths that meet

RELATIONS = ["equal", "relative", "symlink", "linked folder", "hard link", "parent", "child", "bind", "bind child"]


def place_of(role, suffix_in=".h5ad", suffix_out=".zarr"):
    """Where the role is, if nothing is wrong."""
    names = {"checkpoint": "run.ckpt", "save_model": "old.model", "scratch": f".out{suffix_out}-scratch"}
    return Path({"IN": f"in{suffix_in}", "OUT": f"out{suffix_out}", **names}[role])


def related(place, relation, bind):
    """Another path that meets a place in the way that is asked for."""
    suffix = place.suffix
    if relation == "equal":
        return place.absolute()
    if relation == "relative":
        Path("sub").mkdir()
        return Path("sub", "..", place)
    if relation == "symlink":
        link = Path(f"link{suffix}")
        link.symlink_to(place.absolute(), target_is_directory=place.is_dir())
        return link
    if relation == "linked folder":
        Path("elsewhere").symlink_to(Path.cwd(), target_is_directory=True)
        return Path("elsewhere", place)
    if relation == "hard link":
        os.link(place, f"other{suffix}")
        return Path(f"other{suffix}")
    if relation == "child":
        return place / f"inner{suffix}"
    if relation == "parent":
        # A folder that could be replaced, were not the other one in it.
        inside = Path("box.zarr", f"inner{suffix}")
        copy(place, inside)
        return inside
    Path(f"bound{suffix}").mkdir()
    bind(place, Path(f"bound{suffix}"))
    return Path(f"bound{suffix}") / (f"inner{suffix}" if relation == "bind child" else "")


@pytest.fixture
def bind(tmp_path):
    """Make a folder appear at a second place."""
    bound = []

    def mount(source, target):
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only the superuser of Linux can bind folders")
        if subprocess.run(["mount", "--bind", source, target], capture_output=True).returncode:
            pytest.skip("this system does not let folders be bound")
        bound.append(target.absolute())

    yield mount
    for target in bound:
        subprocess.run(["umount", target], check=True)


def meetings():
    """Two roles of which the second is put where it meets the first, and how."""
    # However OUT is reached from IN; files have hard links, and are bound in the folder around them.
    for suffix, relation in itertools.product(FORMATS, RELATIONS):
        if suffix == ".zarr" and relation != "hard link" or suffix == ".h5ad" and "bind" not in relation:
            yield suffix, suffix, "IN", "OUT", relation
    # Whichever two meet, and in whichever order they are looked at.
    for pair in itertools.combinations(["IN", "OUT", "checkpoint", "save_model"], 2):
        if pair != ("IN", "OUT"):
            yield ".h5ad", ".h5ad", *pair, "symlink"
            yield ".zarr", ".zarr", *pair, "child"
    yield from ((".h5ad", ".zarr", role, "OUT", "parent") for role in ("IN", "checkpoint", "save_model"))
    yield ".h5ad", ".zarr", "OUT", "IN", "child"
    # The scratch folder is beside an OUT that is a .zarr.
    yield ".zarr", ".zarr", "scratch", "IN", "child"
    for role, relation in (("checkpoint", "child"), ("save_model", "equal"), ("checkpoint", "bind child")):
        yield ".h5ad", ".zarr", "scratch", role, relation


@pytest.mark.parametrize(("suffix_in", "suffix_out", "first", "second", "relation"), [*meetings()])
def test_paths_that_meet_are_refused(home, bind, suffix_in, suffix_out, first, second, relation):
    places = {role: place_of(role, suffix_in, suffix_out) for role in {"IN", "OUT", first, second}}
    if first == "scratch":
        places[first].mkdir()
    meeting = related(places[first], relation, bind)
    if relation == "parent":
        places[first], meeting = meeting, Path("box.zarr")
    if relation.endswith("child") and second in ("IN", "OUT"):
        meeting = meeting.with_suffix(suffix_in if second == "IN" else suffix_out)
    places[second] = meeting
    # Methods in memory have no other files.
    method = "gene_mean" if set(places) == {"IN", "OUT"} and suffix_out == ".h5ad" else "dusted"
    line = refused(home, *command(places, method))
    assert str(places[second]) in line
    assert str(places[first]) in line
    assert ("are the same" in line) == (relation not in ("parent", "child", "bind child"))


def test_a_model_that_is_applied_is_an_input(home):
    st.tl.train(ad.read_h5ad("in.h5ad"), "dca", hidden=(4,), n_epochs=1, progress=False).save("net.model")
    # Of a link it is the name that has the ending.
    os.link("net.model", "hard.h5ad")
    Path("soft.h5ad").symlink_to("net.model")
    for out in ("hard.h5ad", "soft.h5ad"):
        line = refused(home, "denoise", "in.h5ad", out, "--model", "net.model")
        assert out in line
        assert "'net.model'" in line
    for option in ("--checkpoint", "--save-model"):
        refused(home, "denoise", "in.h5ad", "out.h5ad", "--model", "net.model", option, "net.model")


@pytest.mark.parametrize(
    ("suffix_in", "suffix_out", "method"),
    [(".zarr", ".h5ad", "dusted"), (".h5ad", ".zarr", "dusted"), (".zarr", ".zarr", "gene_mean")],
)
def test_paths_that_do_not_meet_are_written_and_replaced(home, suffix_in, suffix_out, method):
    files = {"checkpoint": "run.ckpt", "save_model": "old.model"} if method == "dusted" else {}
    before = contents(home)
    result = run(*command({"IN": f"in{suffix_in}", "OUT": f"out{suffix_out}", **files}, method))
    assert result.exit_code == 0, result.output
    after = contents(home)
    changed = {name.split("/")[0] for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == {f"out{suffix_out}", *files.values()}


# Python


@pytest.mark.parametrize(
    ("role", "relation"), [("out", "equal"), ("out", "parent"), ("out", "child"), ("checkpoint", "symlink")]
)
@pytest.mark.parametrize(("kind", "suffix"), [("lazy", ".h5ad"), ("lazy", ".zarr"), ("backed", ".h5ad")])
def test_an_adata_that_is_not_in_memory_knows_its_files(home, kind, suffix, role, relation):
    if kind == "lazy":
        pytest.importorskip("dask.array")
        pytest.importorskip("xarray")
    source = Path(f"in{suffix}")
    meeting = related(source, relation, None)
    if relation == "parent":
        source, meeting = meeting, Path("box.zarr")
    adata = ad.experimental.read_lazy(source) if kind == "lazy" else ad.read_h5ad(source, backed="r")
    before = contents(home)
    with pytest.raises((ValueError, OSError)) as error:
        st.tl.denoise(adata, **NETWORK, **{"out": Path("out.zarr"), role: meeting}, progress=False)
    assert meeting.name in str(error.value)
    assert contents(home) == before
    if kind == "backed":
        adata.file.close()


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_files_of_an_adata(home, suffix):
    da = pytest.importorskip("dask.array")
    pytest.importorskip("xarray")
    path = Path(f"in{suffix}").absolute()
    lazy = ad.experimental.read_lazy(path)
    assert _paths.files_of(lazy) == _paths.files_of(lazy[:10]) == [path]
    memory = ad.read_h5ad("in.h5ad")
    assert _paths.files_of(memory) == []
    # A part of it is enough, changed or not.
    for part in (lazy.X, lazy.layers["true_mean"] + 1, lazy.layers["true_mean"].map_blocks(lambda block: block * 2)):
        mixed = memory.copy()
        mixed.layers["lazy"] = part
        assert _paths.files_of(mixed) == [path]
    memory.layers["lazy"] = da.from_array(memory.layers["true_mean"], chunks=(7, 8))
    assert _paths.files_of(memory) == []
    if suffix == ".zarr":
        memory.layers["lazy"] = da.from_zarr(str(path / "layers" / "true_mean"))
        assert _paths.files_of(memory) == [path / "layers" / "true_mean"]


# What may be replaced


def with_thesis(path, *, like=None):
    path.mkdir() if like is None else copy(like, path)
    (path / "thesis.txt").write_text("years of work")


def as_hdf5_of_something_else(path):
    with h5py.File(path, "w") as file:
        file["thesis"] = np.arange(5)


def as_archive(path):
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, buffer)
    path.write_bytes(buffer.getvalue())


FOREIGN = {
    "text": lambda path: path.write_text("years of work"),
    "folder": with_thesis,
    "zarr": lambda path: copy("in.zarr/obsm", path),
    "more": lambda path: with_thesis(path, like="in.zarr"),
    "hdf5": as_hdf5_of_something_else,
    "archive": as_archive,
    "checkpoint": lambda path: copy("run.ckpt", path),
    "model": lambda path: copy("old.model", path),
    "section": lambda path: copy("in.h5ad", path),
    "pipe": lambda path: os.mkfifo(path) if hasattr(os, "mkfifo") else path.write_text("no pipes"),
}
NOT_REPLACED = {
    "new.h5ad": ["text", "folder", "hdf5", "archive", "model", "pipe"],
    "new.zarr": ["folder", "zarr", "more", "text", "section"],
    "checkpoint": ["text", "archive", "model", "section", "folder"],
    "save_model": ["hdf5", "checkpoint", "zarr", "pipe"],
    "scratch": ["text", "folder", "more", "checkpoint"],
}


@pytest.mark.parametrize("role", NOT_REPLACED)
def test_what_is_not_ours_is_not_replaced(home, role):
    target = Path({"checkpoint": "new", "save_model": "new", "scratch": ".out.zarr-scratch"}.get(role, role))
    places = {"IN": "in.h5ad", "OUT": "out.zarr", **({"OUT": role} if role.startswith("new") else {})}
    if role in ("checkpoint", "save_model"):
        places[role] = target
    for what in NOT_REPLACED[role]:
        FOREIGN[what](target)
        line = refused(home, *command(places, "dusted"))
        assert str(target) in line
        assert line.startswith(("Error: cannot replace", "Error: cannot write")), what
        shutil.rmtree(target) if target.is_dir() else target.unlink()


def test_what_is_ours_or_empty_is_replaced(home):
    Path("empty.zarr").mkdir()
    Path("empty.h5ad").touch()
    with ad.settings.override(zarr_write_format=3):
        read("in.h5ad").write_zarr("format 3.zarr")
    # As anndata wrote them before it named what it wrote.
    with ad.settings.override(zarr_write_format=2):
        read("in.h5ad").write_zarr("old.zarr")
    Path("old.zarr/.zattrs").unlink()
    copy("in.h5ad", "old.h5ad")
    with h5py.File("old.h5ad", "r+") as file:
        del file.attrs["encoding-type"]
    for target in ("empty.zarr", "empty.h5ad", "format 3.zarr", "old.zarr", "old.h5ad"):
        result = run("denoise", "in.h5ad", target, "--method", "gene_mean")
        assert result.exit_code == 0, result.output
        assert "gene_mean_mean" in read(target).layers


def test_scratch_of_a_killed_run_is_removed(home):
    scratch = Path(".out.zarr-scratch")
    scratch.mkdir()
    for name in ("counts.json", "crow", "dusted_mean.rows"):
        (scratch / name).write_text("old")
    with from_disk_to_disk():
        result = run(*command({"IN": "in.zarr", "OUT": "out.zarr"}, "dusted"))
    assert result.exit_code == 0, result.output
    assert not scratch.exists()


def test_scratch_is_left_where_something_else_came_into_it(home, caplog):
    scratch = Path(".out.zarr-scratch")
    with_thesis(scratch)
    (scratch / "crow").write_text("old")
    _paths.remove_scratch(scratch)
    assert [path.name for path in scratch.iterdir()] == ["thesis.txt"]
    assert str(scratch) in caplog.text


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_mount_point_is_refused_before_any_work(home, bind, suffix):
    target = Path(f"new{suffix}")
    target.mkdir() if suffix == ".zarr" else target.touch()
    copy(f"out{suffix}", "on another disk")
    bind(Path("on another disk"), target)
    assert "is a mount point" in refused(home, "denoise", "in.h5ad", target, "--method", "gene_mean")


# Links


@pytest.mark.parametrize(
    ("suffix", "there", "method"), [(".h5ad", True, "gene_mean"), (".zarr", False, "dusted"), (".zarr", True, "dusted")]
)
def test_of_a_link_what_it_leads_to_is_written(home, suffix, there, method):
    real, link = Path("disk", f"real{suffix}"), Path(f"link{suffix}")
    real.parent.mkdir()
    if there:
        copy(f"out{suffix}", real)
    link.symlink_to(real)
    with from_disk_to_disk():
        result = run(*command({"IN": f"in{suffix}", "OUT": link}, method))
    assert result.exit_code == 0, result.output
    assert link.is_symlink()
    assert [path.name for path in real.parent.iterdir()] == [real.name]
    assert f"{method}_mean" in read(real).layers


@pytest.mark.parametrize("there", [True, False])
def test_of_a_link_to_a_checkpoint_or_model_too(home, there):
    Path("disk").mkdir()
    links = {"checkpoint": Path("to.ckpt"), "save_model": Path("to.model")}
    for link, old in zip(links.values(), ("run.ckpt", "old.model"), strict=True):
        link.symlink_to(Path("disk") / link)
        if there:
            copy(old, link.resolve())
    result = run(*command({"IN": "in.h5ad", "OUT": "out.h5ad", **links}, "dusted"))
    assert result.exit_code == 0, result.output
    for link, kind in zip(links.values(), ("checkpoint", "model"), strict=True):
        assert link.is_symlink()
        assert _paths.kind_of(link.resolve()) == kind
        assert link.resolve().stat().st_size > 2000
    assert sorted(path.name for path in Path("disk").iterdir()) == ["to.ckpt", "to.model"]


def test_a_link_that_leads_nowhere(home):
    for name, target in (("loop.h5ad", "pool.h5ad"), ("pool.h5ad", "loop.h5ad"), ("gone.h5ad", "nowhere/real.h5ad")):
        Path(name).symlink_to(target)
    places = {"IN": "in.h5ad", "OUT": "out.h5ad"}
    for role in ("OUT", "checkpoint", "save_model"):
        line = refused(home, *command({**places, role: "loop.h5ad"}, "dusted"))
        assert "'loop.h5ad' is a symbolic link that leads to itself" in line
    assert "there is no folder" in refused(home, *command({**places, "OUT": "gone.h5ad"}, "dusted"))


# Keys

BAD_NAMES = ["../../evil", "/abs", ".", "..", "a\0b", "a\\b", ".zattrs", "zarr.json", "é" * 101, ""]


def test_keys_are_names(home, hexagonal, tmp_path, unchanged):
    with unchanged(hexagonal):
        for name in BAD_NAMES:
            with pytest.raises((ValueError, TypeError), match="key_added"):
                st.tl.denoise(hexagonal, "gene_mean", key_added=name)
        for function in (
            lambda: st.tl.cluster(hexagonal, 2, n_components=2, key_added="a/b"),
            lambda: st.pp.spatial_graph(hexagonal, key_added="a/b"),
            lambda: st.pp.image_features(hexagonal, image=np.ones((900, 900)), diameter=55, key_added="a/b"),
        ):
            with pytest.raises(ValueError, match="key_added='a/b'"):
                function()
    before = contents(tmp_path)
    for suffix, option in itertools.product(FORMATS, ("--key-added", "--graph-key")):
        refused(home, *command({"IN": "in.h5ad", "OUT": f"new{suffix}"}, "dusted"), option, "../../evil")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("suffix", FORMATS)
def test_other_names_are_good(home, suffix):
    names = ["run.1", "é" * 100, "...", "a:b"]
    adata = ad.read_h5ad("in.h5ad")
    for name in names:
        st.tl.denoise(adata, "gene_mean", key_added=name)
    getattr(adata, f"write_{suffix[1:]}")(f"new{suffix}")
    back = read(f"new{suffix}")
    for name in names:
        assert f"{name}_mean" in back.layers
        assert back.uns[name]["method"] == "gene_mean"


# The other commands


def test_simulate_replaces_only_what_is_ours(home):
    for name, what in (("new.h5ad", "hdf5"), ("text.h5ad", "text"), ("new.zarr", "folder")):
        FOREIGN[what](Path(name))
        assert name in refused(home, "simulate", name, "--n-spots", 60, "--n-genes", 8)


@pytest.mark.parametrize(
    ("name", "what"),
    [("demo.h5ad", "text"), ("demo.h5ad", "link"), ("demo.png", "section"), ("demo.png", "each other")],
)
def test_demo_replaces_only_what_is_ours(home, name, what):
    Path("demo").mkdir()
    path = Path("demo", name)
    if what in ("link", "each other"):
        path.symlink_to(home / "thesis.txt" if what == "link" else "demo.h5ad")
    else:
        FOREIGN[what](path)
    with mock.patch.object(st.datasets, "tissue", lambda *_: pytest.fail("work was done")):
        refused(home, "demo", "--folder", "demo")


CONFIG = """
[[datasets]]
name = "mine"
path = "{path}"
[[methods]]
name = "gene_mean"
[[metrics]]
name = "held_out"
"""


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("in.zarr", "in.zarr"),
        ("in.zarr", "in.zarr/results"),
        ("bench/datasets/in.zarr", "bench"),
        ("bench/units/in.h5ad", "bench"),
        ("bench/figures/in.h5ad", "bench"),
    ],
)
def test_a_benchmark_is_not_written_over_its_data(home, path, folder):
    if not Path(path).exists():
        Path(path).parent.mkdir(parents=True)
        copy(Path(path).name, path)
    Path("config.toml").write_text(CONFIG.format(path=path))
    line = refused(home, "benchmark", "config.toml", "--folder", folder, "--no-progress")
    assert "data set 'mine'" in line


def test_a_benchmark_is_not_written_over_other_files(home):
    Path("config.toml").write_text(CONFIG.format(path="in.h5ad"))
    for name in ("report.md", "plan.json", "results.csv", "figures/mine.png"):
        Path("bench", name).parent.mkdir(parents=True)
        Path("bench", name).write_text("{}")
        assert name.split("/")[0] in refused(home, "benchmark", "config.toml", "--folder", "bench", "--no-progress")
        shutil.rmtree("bench")


def test_a_config_beside_the_results_is_kept(home):
    Path("bench").mkdir()
    Path("bench/config.toml").write_text(CONFIG.format(path="../in.h5ad"))
    for _ in range(2):
        assert len(st.benchmark.run("bench/config.toml", folder="bench", n_jobs=0))
        st.benchmark.report("bench", figures=False)


def test_saving_tensors_replaces_only_its_kind(home):
    for what in ("text", "section", "archive", "model"):
        FOREIGN[what](Path("new"))
        before = contents(home)
        with pytest.raises(FileExistsError, match="'new'"):
            save_tensors(Path("new"), "checkpoint", {"new": 1})
        assert contents(home) == before
