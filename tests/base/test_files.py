import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import anndata as ad
import pytest
from click.testing import CliRunner

import stdenoise as st
from stdenoise import __main__ as cli
from stdenoise._base import files
from stdenoise._base.files import replacing
from stdenoise._io import disk

FORMATS = [".h5ad", ".zarr"]


@pytest.fixture(scope="module")
def tissue():
    return st.datasets.tissue(n_spots=20, n_genes=5)


@pytest.fixture(params=[True, False], ids=["exchange", "renames"])
def exchange(request, monkeypatch):
    """Let folders change places at once, and on a system that cannot do that."""
    if not request.param:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux can exchange two folders")


def fill(folder, name):
    """Write what looks like the `.zarr` of an AnnData, with its name in it."""
    (folder / name).mkdir(parents=True)
    (folder / name / ".zgroup").write_text("{}")
    (folder / ".zgroup").write_text("{}")
    (folder / ".zattrs").write_text('{"encoding-type": "anndata"}')


def name_in(folder):
    (name,) = (entry.name for entry in folder.iterdir() if entry.name[0] != ".")
    return name


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.usefixtures("exchange")
def test_what_was_there_is_replaced_by_all_of_what_is_written(tissue, tmp_path, suffix, assert_same):
    path = tmp_path / f"a{suffix}"
    disk.write(tissue[:7].copy(), path)
    disk.write(tissue, path)
    back = disk.read(path)
    assert not back.isbacked
    for part in ("X", "obs", "layers", "obsm"):
        assert_same(getattr(tissue, part), getattr(back, part))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be replaced there")
def test_who_reads_the_old_file_is_not_disturbed(tissue, tmp_path):
    path = tmp_path / "a.h5ad"
    disk.write(tissue, path)
    old = path.read_bytes()
    with path.open("rb") as reader:
        disk.write(tissue[:7].copy(), path)
        assert reader.read() == old
    assert path.read_bytes() != old


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_write_changes_nothing(tissue, tmp_path, monkeypatch, suffix, there):
    path = tmp_path / f"a{suffix}"
    if there:
        disk.write(tissue, path)
    write, beside = getattr(ad.AnnData, f"write_{suffix[1:]}"), []

    def break_off(self, target, **arguments):
        write(self, target, **arguments)
        # On the same disk, so that it can be renamed.
        beside.append(Path(target).parent.parent == tmp_path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ad.AnnData, f"write_{suffix[1:]}", break_off)
        with pytest.raises(KeyboardInterrupt):
            disk.write(tissue[:7].copy(), path)
    assert beside == [True]
    assert [entry.name for entry in tmp_path.iterdir()] == ([path.name] if there else [])
    if there:
        assert disk.read(path).n_obs == 20


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_rename_changes_nothing(tmp_path, monkeypatch, error):
    path = tmp_path / "a.zarr"
    fill(path, "old")

    def fail(*_):
        raise error

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "replace", fail)
    for target in (path, tmp_path / "b.zarr"):
        with pytest.raises(error), files.replacing(target) as fresh:
            fill(fresh, "new")
    assert name_in(path) == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_read_or_written_is_named(tissue, tmp_path, monkeypatch):
    (tmp_path / "text.h5ad").write_text("text")
    (tmp_path / "empty.h5ad").touch()
    (tmp_path / "folder.h5ad").mkdir()
    (tmp_path / "file.zarr").write_text("")
    before = sorted(tmp_path.rglob("*"))
    refusals = [
        *((disk.read, name, ValueError, f"{Path(name).suffix!r} .*'.h5ad', '.zarr'") for name in ("a.csv", "a")),
        *((files.check_writable, name, ValueError, "'.h5ad', '.zarr'") for name in ("a.h5", "a", "a.h5ad.gz")),
        (lambda path: disk.write(tissue, path), "a.csv", ValueError, "'.csv'"),
        *((disk.read, f"none{suffix}", FileNotFoundError, f"none{suffix}") for suffix in FORMATS),
        *((disk.read, name, OSError, name) for name in ("text.h5ad", "empty.h5ad")),
        (files.check_writable, "nowhere/a.h5ad", FileNotFoundError, "there is no folder '.*nowhere'"),
        # A file where a folder should be, and the other way round.
        (files.check_writable, "file.zarr/a.h5ad", FileNotFoundError, "there is no folder '.*file.zarr'"),
        *((files.check_writable, name, OSError, name) for name in ("folder.h5ad", "file.zarr")),
    ]
    for function, name, error, message in refusals:
        with pytest.raises(error, match=message):
            function(tmp_path / name)
    # The superuser may write anywhere, so let the system say no.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="the folder '.*' is not writable"):
        files.check_writable(tmp_path / "a.h5ad")
    assert sorted(tmp_path.rglob("*")) == before


# Kills


@pytest.mark.usefixtures("exchange")
def test_only_what_we_write_is_replaced_even_if_it_came_during_the_work(tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.raises(FileExistsError, match="a.zarr'. it is a folder"), files.replacing(path) as fresh:
        fresh.mkdir()
        path.mkdir()
        (path / "thesis.txt").write_text("years of work")
    assert (path / "thesis.txt").read_text() == "years of work"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.fixture
def killed(tmp_path):
    """Replace `a.zarr`, which has `old` in it, by one with `new` in a process that kills itself; give the path."""
    if not hasattr(os, "fork"):
        pytest.skip("only POSIX systems fork")

    def run(patch):
        path = tmp_path / "a.zarr"
        fill(path, "old")
        if (process := os.fork()) == 0:
            try:
                patch(path, lambda: os.kill(os.getpid(), signal.SIGKILL))
                with files.replacing(path) as fresh:
                    fill(fresh, "new")
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
        return path

    return run


def between_two_renames(path, die):
    replace = Path.replace
    files._exchange = lambda *_: False
    Path.replace = lambda self, target: die() if target == path else replace(self, target)


def after_the_exchange(_, die):
    exchange = files._exchange
    files._exchange = lambda *paths: (exchange(*paths), die())


def test_what_a_kill_between_two_renames_left_aside_is_put_back(killed, caplog):
    path = killed(between_two_renames)
    assert not path.exists()
    files.check_writable(path)
    assert name_in(path) == "old"
    assert "put back" in caplog.text
    assert str(path) in caplog.text
    # A second start finds nothing to repair.
    caplog.clear()
    files.check_writable(path)
    assert name_in(path) == "old"
    assert not caplog.text


def test_the_command_line_puts_it_back_before_it_reads(killed):
    path = killed(between_two_renames)
    result = CliRunner().invoke(cli.main, ["denoise", str(path.with_name("none.h5ad")), str(path)])
    assert result.exit_code == 2
    assert name_in(path) == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can exchange two folders")
def test_a_kill_after_the_exchange_leaves_the_new(killed):
    assert name_in(killed(after_the_exchange)) == "new"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can exchange two folders")
def test_a_folder_is_there_at_every_moment_while_it_is_replaced(tmp_path):
    path, done, missed = tmp_path / "a.zarr", threading.Event(), []

    def look():
        while not done.is_set():
            if not (path / ".zgroup").exists():
                missed.append(True)

    fill(path, "obs")
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(150):
            with files.replacing(path) as fresh:
                fill(fresh, "obs")
    finally:
        done.set()
        reader.join()
    assert not missed


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
@pytest.mark.parametrize("name", ["out.h5ad", "run.ckpt"])
def test_what_a_killed_run_has_left_is_swept_and_a_living_one_left_alone(tmp_path, name):
    kind = "AnnData" if name.endswith("h5ad") else "checkpoint"
    code = (
        "import sys, time; from pathlib import Path; from stdenoise._base.files import replacing\n"
        f"with replacing(Path({str(tmp_path / name)!r}), {kind!r}) as fresh:\n"
        "    fresh.write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    killed, living = (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    try:
        assert killed.stdout.readline() == living.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 2
        killed.kill()
        killed.wait()
        with replacing(tmp_path / name, None) as fresh:
            fresh.write_text("whole")
        assert (tmp_path / name).read_text() == "whole"
        # The new file, and what the living run writes.
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        for process in (killed, living):
            process.kill()
            process.wait()
    with replacing(tmp_path / name, None) as fresh:
        fresh.write_text("again")
    assert [path.name for path in tmp_path.iterdir()] == [name]
