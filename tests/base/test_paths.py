"""No file is lost: every pair of paths that meet, and everything that is no output of ours, is refused before any work."""

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
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import stdenoise as st
from stdenoise import __main__ as cli
from stdenoise._base import paths as _paths
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
    st.pp.spatial_graph(adata)
    for name in ("in", "out", "box"):
        adata.write_zarr(folder / f"{name}.zarr")
        adata.write_h5ad(folder / f"{name}.h5ad")
    save_tensors(folder / "run.ckpt", "checkpoint", {"old": 1})
    save_tensors(folder / "old.model", "model", {"old": 1})
    # A run with it is refused before it is read.
    save_tensors(folder / "net.model", "model", {"old": 2})
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
    paths = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in paths
    }


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


# Every pair of roles

ROLES = ["IN", "OUT", "checkpoint", "save_model", "scratch"]
RELATIONS = ["equal", "relative", "symlink", "linked folder", "hard link", "parent", "child", "bind", "bind child"]


def exists(relation, *, is_folder):
    """Whether there is such a relation to a file or folder: files have hard links, and are bound in the folder around them."""
    return is_folder if relation.startswith("bind") else not is_folder if relation == "hard link" else True


def cases():
    """Formats of IN and OUT, a role, another one that is put where it meets the first, and how."""
    for suffix_in, suffix_out in itertools.product(FORMATS, FORMATS):
        for first, second in itertools.permutations(ROLES, 2):
            # The scratch folder is beside OUT, and only where OUT is a .zarr.
            has_scratch = suffix_out == ".zarr" and second not in ("scratch", "OUT")
            if second == "scratch" or (first == "scratch" and not has_scratch):
                continue
            # The format of IN is of no matter to others.
            if "IN" not in (first, second) and suffix_in == ".zarr":
                continue
            place = place_of(first, suffix_in, suffix_out)
            for relation in RELATIONS:
                if not exists(relation, is_folder=place.suffix == ".zarr" or first == "scratch"):
                    continue
                if relation == "parent" and first == "scratch":
                    continue
                # The ending tells that it is no AnnData.
                if second in ("IN", "OUT") and place.suffix not in FORMATS and relation not in ("parent", "child"):
                    continue
                yield suffix_in, suffix_out, first, second, relation


def place_of(role, suffix_in, suffix_out):
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
        (shutil.copytree if place.is_dir() else shutil.copyfile)(place, inside)
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


def command(places, method):
    options = [f"--{role.replace('_', '-')}={places[role]}" for role in ("checkpoint", "save_model") if role in places]
    network = FAST if method == "dusted" else []
    return ["denoise", places["IN"], places["OUT"], "--method", method, "--no-progress", *network, *options]


@pytest.mark.parametrize(("suffix_in", "suffix_out", "first", "second", "relation"), [*cases()])
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
    line = refused(home, *command(places, "dusted"))
    assert str(places[second]) in line
    assert str(places[first]) in line


@pytest.mark.parametrize(
    ("suffix", "relation"),
    [case for case in itertools.product(FORMATS, RELATIONS) if exists(case[1], is_folder=case[0] == ".zarr")],
)
def test_paths_that_meet_are_refused_for_methods_in_memory(home, bind, suffix, relation):
    source, target = Path(f"in{suffix}"), related(Path(f"in{suffix}"), relation, bind)
    if relation == "parent":
        source, target = target, Path("box.zarr")
    assert str(target) in refused(home, *command({"IN": source, "OUT": target}, "gene_mean"))


@pytest.mark.parametrize("relation", ["equal", "symlink", "hard link"])
@pytest.mark.parametrize("role", ["OUT", "checkpoint", "save_model"])
def test_a_model_that_is_applied_is_an_input(home, bind, role, relation):
    st.tl.train(ad.read_h5ad("in.h5ad"), **NETWORK, progress=False).save("net.model")
    meeting = related(Path("net.model"), relation, bind)
    if role == "OUT":
        # Of a link it is the name that has the ending.
        meeting = Path(meeting).rename("linked.h5ad") if relation != "equal" else meeting
        refused(home, "denoise", "in.h5ad", meeting, "--model", "net.model")
    else:
        refused(home, "denoise", "in.h5ad", "out.h5ad", "--model", "net.model", f"--{role.replace('_', '-')}", meeting)


@pytest.mark.parametrize("method", ["dusted", "gene_mean"])
@pytest.mark.parametrize(("suffix_in", "suffix_out"), [*itertools.product(FORMATS, FORMATS)])
def test_paths_that_do_not_meet_are_written_and_replaced(home, suffix_in, suffix_out, method):
    files = {"checkpoint": "run.ckpt", "save_model": "old.model"} if method == "dusted" else {}
    before = contents(home)
    result = run(*command({"IN": f"in{suffix_in}", "OUT": f"out{suffix_out}", **files}, method))
    assert result.exit_code == 0, result.output
    after = contents(home)
    changed = {name.split("/")[0] for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == {f"out{suffix_out}", *files.values()}


# Python


@pytest.mark.parametrize("role", ["out", "checkpoint"])
@pytest.mark.parametrize(
    ("kind", "suffix", "relation"),
    [
        (*case, relation)
        for case in (("lazy", ".h5ad"), ("lazy", ".zarr"), ("backed", ".h5ad"))
        for relation in RELATIONS
        if exists(relation, is_folder=case[1] == ".zarr")
    ],
)
def test_an_adata_that_is_not_in_memory_knows_its_files(home, bind, kind, role, suffix, relation):
    if kind == "lazy":
        pytest.importorskip("dask.array")
        pytest.importorskip("xarray")
    source = Path(f"in{suffix}")
    meeting = related(source, relation, bind)
    if relation == "parent":
        source, meeting = meeting, Path("box.zarr")
    adata = ad.experimental.read_lazy(source) if kind == "lazy" else ad.read_h5ad(source, backed="r")
    paths = {"out": Path("out.zarr"), role: meeting}
    before = contents(home)
    with pytest.raises((ValueError, OSError)) as error:
        st.tl.denoise(adata, **NETWORK, **paths, progress=False)
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


def as_folder(path):
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def as_zarr_of_something_else(path):
    shutil.copytree("in.zarr/obsm", path)


def as_zarr_with_something_else(path):
    shutil.copytree("in.zarr", path)
    (path / "thesis.txt").write_text("years of work")


def as_hdf5_of_something_else(path):
    import h5py

    with h5py.File(path, "w") as file:
        file["thesis"] = np.arange(5)


def as_archive(path):
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, buffer)
    path.write_bytes(buffer.getvalue())


FOREIGN = {
    "text": lambda path: path.write_text("years of work"),
    "folder": as_folder,
    "zarr": as_zarr_of_something_else,
    "more": as_zarr_with_something_else,
    "hdf5": as_hdf5_of_something_else,
    "archive": as_archive,
    "checkpoint": lambda path: shutil.copyfile("run.ckpt", path),
    "model": lambda path: shutil.copyfile("old.model", path),
    "section": lambda path: shutil.copyfile("in.h5ad", path),
    "pipe": lambda path: os.mkfifo(path) if hasattr(os, "mkfifo") else pytest.skip("no pipes"),
}
OURS = {(".h5ad", "section"), ("checkpoint", "checkpoint"), ("save_model", "model")}


@pytest.mark.parametrize(
    ("role", "what"), sorted({*itertools.product([*FORMATS, "checkpoint", "save_model", "scratch"], FOREIGN)} - OURS)
)
def test_what_is_not_ours_is_not_replaced(home, role, what):
    target = {".h5ad": "new.h5ad", ".zarr": "new.zarr", "scratch": ".out.zarr-scratch"}.get(role, "new.file")
    FOREIGN[what](Path(target))
    places = {"IN": "in.h5ad", "OUT": target if role in FORMATS else "out.zarr"}
    if role in ("checkpoint", "save_model"):
        places[role] = target
    line = refused(home, *command(places, "dusted"))
    assert target in line
    assert line.startswith(("Error: cannot replace", "Error: cannot write"))


@pytest.mark.parametrize("what", ["empty folder", "old zarr", "other format of zarr", "empty file", "old h5ad"])
def test_what_is_ours_or_empty_is_replaced(home, what):
    import h5py

    target = Path("new.h5ad" if what.endswith(("file", "h5ad")) else "new.zarr")
    if what == "empty folder":
        target.mkdir()
    elif what == "empty file":
        target.touch()
    elif what == "other format of zarr":
        with ad.settings.override(zarr_write_format=3):
            ad.read_h5ad("in.h5ad").write_zarr(target)
    elif what == "old zarr":
        shutil.copytree("in.zarr", target)
        # As anndata wrote it before it named what it wrote.
        (target / ".zattrs").unlink()
    else:
        shutil.copyfile("in.h5ad", target)
        with h5py.File(target, "r+") as file:
            del file.attrs["encoding-type"]
    result = run("denoise", "in.h5ad", target, "--method", "gene_mean")
    assert result.exit_code == 0, result.output
    adata = (ad.read_zarr if target.suffix == ".zarr" else ad.read_h5ad)(target)
    assert "gene_mean_mean" in adata.layers


def test_scratch_of_a_killed_run_is_removed(home):
    scratch = Path(".out.zarr-scratch")
    scratch.mkdir()
    for name in ("counts.json", "crow", "dusted_mean.rows"):
        (scratch / name).write_text("old")
    with mock.patch("stdenoise.tl._open_run.make_plan", lambda *_, **__: plan_on_disk()):
        result = run(*command({"IN": "in.zarr", "OUT": "out.zarr"}, "dusted"))
    assert result.exit_code == 0, result.output
    assert not scratch.exists()


def plan_on_disk():
    from stdenoise.tl._plan import Plan

    return Plan(40, True, torch.device("cpu"), {}, 1.0)


def test_scratch_is_left_where_something_else_came_into_it(home, caplog):
    scratch = Path(".out.zarr-scratch")
    scratch.mkdir()
    (scratch / "crow").write_text("old")
    (scratch / "thesis.txt").write_text("years of work")
    _paths.remove_scratch(scratch)
    assert [path.name for path in scratch.iterdir()] == ["thesis.txt"]
    assert str(scratch) in caplog.text


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_mount_point_is_refused_before_any_work(home, bind, suffix):
    target = Path(f"new{suffix}")
    if suffix == ".zarr":
        target.mkdir()
        shutil.copytree("out.zarr", "on another disk")
        bind(Path("on another disk"), target)
    else:
        target.touch()
        bind(Path("out.h5ad"), target)
    assert "is a mount point" in refused(home, "denoise", "in.h5ad", target, "--method", "gene_mean")


# Links


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("method", ["dusted", "gene_mean"])
def test_of_a_link_what_it_leads_to_is_written(home, method, there, suffix):
    real, link = Path("disk", f"real{suffix}"), Path(f"link{suffix}")
    real.parent.mkdir()
    if there:
        (shutil.copytree if suffix == ".zarr" else shutil.copyfile)(f"out{suffix}", real)
    link.symlink_to(real)
    with (
        mock.patch("stdenoise.tl._open_run.make_plan", lambda *_, **__: plan_on_disk())
        if suffix == ".zarr"
        else mock.MagicMock()
    ):
        result = run(*command({"IN": f"in{suffix}", "OUT": link}, method))
    assert result.exit_code == 0, result.output
    assert link.is_symlink()
    assert [path.name for path in real.parent.iterdir()] == [real.name]
    adata = (ad.read_zarr if suffix == ".zarr" else ad.read_h5ad)(real)
    assert f"{method}_mean" in adata.layers


@pytest.mark.parametrize("role", ["checkpoint", "save_model"])
@pytest.mark.parametrize("there", [True, False])
def test_of_a_link_to_a_checkpoint_or_model_too(home, role, there):
    Path("disk").mkdir()
    real, link = Path("disk/real"), Path("link")
    if there:
        shutil.copyfile("run.ckpt" if role == "checkpoint" else "old.model", real)
    link.symlink_to(real)
    result = run(*command({"IN": "in.h5ad", "OUT": "out.h5ad", role: link}, "dusted"))
    assert result.exit_code == 0, result.output
    assert link.is_symlink()
    assert _paths.kind_of(real) == ("checkpoint" if role == "checkpoint" else "model")
    assert real.stat().st_size > 2000
    assert [path.name for path in real.parent.iterdir()] == ["real"]


@pytest.mark.parametrize("role", ["OUT", "checkpoint", "save_model"])
def test_a_link_that_leads_nowhere(home, role):
    for name, target in (("loop.h5ad", "pool.h5ad"), ("pool.h5ad", "loop.h5ad"), ("gone.h5ad", "nowhere/real.h5ad")):
        Path(name).symlink_to(target)
    places = {"IN": "in.h5ad", "OUT": "out.h5ad"}
    line = refused(home, *command({**places, role: "loop.h5ad"}, "dusted"))
    assert "'loop.h5ad' is a symbolic link that leads to itself" in line
    if role == "OUT":
        assert "there is no folder" in refused(home, *command({**places, role: "gone.h5ad"}, "dusted"))


# Keys

BAD_NAMES = ["a/b", "../../evil", "/abs", ".", "..", "a\0b", "a\\b", ".zattrs", "zarr.json", "é" * 101, ""]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
@pytest.mark.parametrize("option", ["--key-added", "--graph-key"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_keys_are_names(home, tmp_path, suffix, option, name):
    before = contents(tmp_path)
    refused(home, *command({"IN": "in.h5ad", "OUT": f"new{suffix}"}, "dusted"), option, name)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
@pytest.mark.parametrize(
    "function",
    [
        lambda adata, key: st.tl.denoise(adata, "gene_mean", key_added=key),
        lambda adata, key: st.tl.cluster(adata, 2, n_components=2, key_added=key),
        lambda adata, key: st.pp.spatial_graph(adata, key_added=key),
        lambda adata, key: st.pp.image_features(adata, image=np.ones((9000, 9000)), diameter=55, key_added=key),
    ],
    ids=["denoise", "cluster", "spatial_graph", "image_features"],
)
def test_keys_are_names_in_python(hexagonal, unchanged, function, name):
    with unchanged(hexagonal), pytest.raises((ValueError, TypeError), match="key_added"):
        function(hexagonal, name)


@pytest.mark.parametrize("name", ["run.1", " ", "é" * 100, "...", "a:b", "-"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_other_names_are_good(home, suffix, name):
    result = run("denoise", "in.h5ad", f"new{suffix}", "--method", "gene_mean", f"--key-added={name}")
    assert result.exit_code == 0, result.output
    adata = (ad.read_zarr if suffix == ".zarr" else ad.read_h5ad)(f"new{suffix}")
    assert f"{name}_mean" in adata.layers
    assert adata.uns[name]["method"] == "gene_mean"


# The other commands


@pytest.mark.parametrize("what", ["text", "folder", "hdf5", "archive"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_simulate_replaces_only_what_is_ours(home, suffix, what):
    FOREIGN[what](Path(f"new{suffix}"))
    assert f"new{suffix}" in refused(home, "simulate", f"new{suffix}", "--n-spots", 60, "--n-genes", 8)


@pytest.mark.parametrize(
    ("name", "what"),
    sorted(
        {*itertools.product(["demo.h5ad", "demo.png"], ["text", "section", "link", "each other"])}
        - {("demo.h5ad", "section")}
    ),
)
def test_demo_replaces_only_what_is_ours(home, name, what):
    Path("demo").mkdir()
    path = Path("demo", name)
    if what == "link":
        path.symlink_to(home / "thesis.txt")
    elif what == "each other":
        path.symlink_to("demo.png" if name == "demo.h5ad" else "demo.h5ad")
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
        (shutil.copytree if path.endswith(".zarr") else shutil.copyfile)(Path(path).name, path)
    Path("config.toml").write_text(CONFIG.format(path=path))
    before = contents(home)
    result = run("benchmark", "config.toml", "--folder", folder, "--no-progress")
    assert result.exit_code == 2
    assert "data set 'mine'" in result.stderr
    assert contents(home) == before


@pytest.mark.parametrize("name", ["report.md", "plan.json", "results.csv", "figures/mine.png"])
def test_a_benchmark_is_not_written_over_other_files(home, name):
    Path("bench", name).parent.mkdir(parents=True)
    Path("bench", name).write_text("{}")
    Path("config.toml").write_text(CONFIG.format(path="in.h5ad"))
    line = refused(home, "benchmark", "config.toml", "--folder", "bench", "--no-progress")
    assert name.split("/", 1)[0] in line


def test_a_config_beside_the_results_is_kept(home):
    Path("bench").mkdir()
    Path("bench/config.toml").write_text(CONFIG.format(path="../in.h5ad"))
    for _ in range(2):
        table = st.benchmark.run("bench/config.toml", folder="bench", n_jobs=0)
        assert len(table)
        st.benchmark.report("bench", figures=False)


@pytest.mark.parametrize("what", ["text", "section", "archive", "model"])
def test_saving_tensors_replaces_only_its_kind(home, what):
    FOREIGN[what](Path("new"))
    before = contents(home)
    with pytest.raises(FileExistsError, match="'new'"):
        save_tensors(Path("new"), "checkpoint", {"new": 1})
    assert contents(home) == before
