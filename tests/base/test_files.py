import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from click.testing import CliRunner

import stdenoise as st
from stdenoise import __main__ as cli
from stdenoise._base import files
from stdenoise._io import disk


@pytest.fixture
def tissue():
    return st.datasets.tissue(n_spots=20, n_genes=5)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_round_trip(tissue, tmp_path, suffix, assert_same):
    disk.write(tissue, tmp_path / f"a{suffix}")
    back = disk.read(tmp_path / f"a{suffix}")
    assert not back.isbacked
    for part in ("X", "obs", "layers", "obsm"):
        assert_same(getattr(tissue, part), getattr(back, part))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.usefixtures("exchange")
def test_what_was_there_is_replaced(tissue, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    disk.write(tissue, path)
    disk.write(tissue[:7].copy(), path)
    assert disk.read(path).n_obs == 7
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


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("there", [True, False])
def test_an_interrupted_write_changes_nothing(tissue, tmp_path, monkeypatch, suffix, error, there):
    path = tmp_path / f"a{suffix}"
    if there:
        disk.write(tissue, path)
    write = getattr(ad.AnnData, f"write_{suffix[1:]}")

    def break_off(self, target, **arguments):
        write(self, target, **arguments)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ad.AnnData, f"write_{suffix[1:]}", break_off)
        with pytest.raises(error):
            disk.write(tissue[:7].copy(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ([path.name] if there else [])
    if there:
        assert disk.read(path).n_obs == 20


@pytest.fixture(params=[True, False], ids=["exchange", "renames"])
def exchange(request, monkeypatch):
    """Let folders change places at once, and on a system that cannot do that."""
    if not request.param:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux can exchange two folders")
    return request.param


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_failed_rename_changes_nothing(tissue, tmp_path, monkeypatch, suffix, error):
    path = tmp_path / f"a{suffix}"
    disk.write(tissue, path)

    replace = Path.replace

    def fail(self, target):
        # zarr renames each of its files, too.
        if target == path:
            raise error
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        patch.setattr(files, "_exchange", lambda *_: False)
        with pytest.raises(error):
            disk.write(tissue[:7].copy(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert disk.read(path).n_obs == 20


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_not_finished_is_removed(tmp_path, error):
    with pytest.raises(error), files.replacing(tmp_path / "a.zarr") as fresh:
        assert fresh.parent.parent == tmp_path
        fresh.mkdir()
        (fresh / "part").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["a.csv", "a.h5", "a", "a.h5ad.gz"])
def test_unknown_formats(tissue, tmp_path, path):
    message = r"is not valid; choose from \['.h5ad', '.zarr'\]"
    with pytest.raises(ValueError, match=message):
        disk.read(tmp_path / path)
    with pytest.raises(ValueError, match=message):
        files.check_writable(tmp_path / path)
    with pytest.raises(ValueError, match=message):
        disk.write(tissue, tmp_path / path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_missing_files_are_named(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=f"there is no '.*none{suffix}'"):
        disk.read(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("write_broken", [lambda path: path.write_text("text"), lambda path: path.write_bytes(b"")])
def test_a_broken_file_is_named(tmp_path, write_broken):
    path = tmp_path / "broken.h5ad"
    write_broken(path)
    with pytest.raises((OSError, ValueError), match="broken.h5ad"):
        disk.read(path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder '.*nowhere'"):
        files.check_writable(tmp_path / "nowhere" / "a.h5ad")


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="there is no folder '.*file'"):
        files.check_writable(tmp_path / "file" / "a.h5ad")


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    # The superuser may write anywhere, so let the system say no.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="the folder '.*' is not writable"):
        files.check_writable(tmp_path / "a.h5ad")


def test_a_target_of_the_other_kind_is_found_before_writing(tmp_path):
    (tmp_path / "folder.h5ad").mkdir()
    (tmp_path / "file.zarr").write_text("")
    for name in ("folder.h5ad", "file.zarr"):
        with pytest.raises((OSError, ValueError), match=name):
            files.check_writable(tmp_path / name)


def test_paths_relative_to_the_working_folder(tissue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.check_writable(Path("a.h5ad"))
    disk.write(tissue, Path("a.h5ad"))
    np.testing.assert_array_equal(disk.read(Path("a.h5ad")).X.toarray(), tissue.X.toarray())


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
def killed(tissue, tmp_path):
    """Replace `a.zarr`, which has 20 spots, by one of 7 in a process that kills itself; give the path."""

    def run(patch):
        path = tmp_path / "a.zarr"
        disk.write(tissue, path)
        script = (
            "import os, signal, stdenoise as st\n"
            "from pathlib import Path\n"
            "from stdenoise._base import files\nfrom stdenoise._io import disk\n"
            f"path = Path({str(path)!r})\n"
            "die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
            "exchange, replace = files._exchange, Path.replace\n"
            f"{patch}\n"
            "disk.write(st.datasets.tissue(n_spots=7, n_genes=5), path)\n"
        )
        process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        return path

    return run


BETWEEN = (
    "files._exchange = lambda *_: False\n"
    "Path.replace = lambda self, target: die() if target == path else replace(self, target)"
)
BEFORE = "files._exchange = lambda *paths: die()"
AFTER = "files._exchange = lambda *paths: (exchange(*paths), die())"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_what_a_kill_between_two_renames_left_aside_is_put_back(killed, tmp_path, caplog):
    path = killed(BETWEEN)
    assert not path.exists()
    files.check_writable(path)
    assert disk.read(path).n_obs == 20
    assert "put back" in caplog.text
    assert str(path) in caplog.text
    # A second start finds nothing to repair.
    caplog.clear()
    files.check_writable(path)
    assert disk.read(path).n_obs == 20
    assert not caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_the_command_line_puts_it_back_before_it_reads(killed):
    path = killed(BETWEEN)
    result = CliRunner().invoke(cli.main, ["denoise", str(path.with_name("none.h5ad")), str(path)])
    assert result.exit_code == 2
    assert disk.read(path).n_obs == 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can exchange two folders")
@pytest.mark.parametrize(("patch", "n_obs"), [(BEFORE, 20), (AFTER, 7)])
def test_a_kill_around_the_exchange_leaves_the_old_or_the_new(killed, patch, n_obs):
    assert disk.read(killed(patch)).n_obs == n_obs


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can exchange two folders")
def test_a_folder_is_there_at_every_moment_while_it_is_replaced(tmp_path):
    path, done, missed = tmp_path / "a.zarr", threading.Event(), []

    def look():
        while not done.is_set():
            if not (path / ".zgroup").exists():
                missed.append(True)

    def fill(folder):
        (folder / "obs").mkdir(parents=True)
        (folder / "obs" / ".zgroup").write_text("{}")
        (folder / ".zgroup").write_text("{}")
        (folder / ".zattrs").write_text('{"encoding-type": "anndata"}')

    fill(path)
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(300):
            with files.replacing(path) as fresh:
                fill(fresh)
    finally:
        done.set()
        reader.join()
    assert not missed
