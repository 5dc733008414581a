"""Files and folders that are replaced as a whole, or not at all."""

from __future__ import annotations

import ctypes
import errno
import glob
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stdenoise._base.checks import check_choice
from stdenoise._base.device import speaks_for_all
from stdenoise._base.paths import ANNDATA, check_replaceable, target_of

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("stdenoise")

_FORMATS = (".h5ad", ".zarr")
_LOCK = ".lock"
_SWAP, _IN_WORKING_FOLDER = 2, -100
"""`RENAME_EXCHANGE` and `AT_FDCWD` of Linux."""


def check_readable(path: Path) -> None:
    """Raise unless the path has a known format, or is the folder of a table in a SpatialData store, and exists."""
    if not (is_table(path) and path.suffix not in _FORMATS):
        check_choice("file format", path.suffix, _FORMATS)
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}.")
    tables = [
        str(table) for folder in ("tables", "table") for table in sorted((path / folder).glob("*")) if is_table(table)
    ]
    if tables and not is_table(path):
        raise ValueError(f"{str(path)!r} is a SpatialData store; name one of its tables: {tables}.")


def is_table(path: Path) -> bool:
    """Whether a folder is the zarr of an AnnData, by what it has."""
    return path.is_dir() and (path / "obs").is_dir() and (path / "var").is_dir()


def check_writable(path: Path) -> None:
    """Raise unless the path has a known format, its folder can be written to, and what is there may be replaced.

    A folder that a killed run has left aside is put back first.
    """
    check_choice("file format", path.suffix, _FORMATS)
    target = target_of(path)
    _put_back(target)
    if path.exists() and path.is_dir() != (path.suffix == ".zarr"):
        raise FileExistsError(
            f"cannot write {str(path)!r}: a {'folder' if path.is_dir() else 'file'} of that name exists."
        )
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {str(path)!r}: there is no folder {str(folder)!r}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {str(path)!r}: the folder {str(folder)!r} is not writable.")
    check_replaceable(path, ANNDATA)


@contextmanager
def replacing(path: Path, kind: str | None = ANNDATA) -> Iterator[Path]:
    """Give a path to write to, in a temporary folder beside the target, and put it in the place of the target at the end.

    After an error or an interrupt the target is as it was, and nothing is left beside it. Of a symbolic link, what it leads to is
    replaced, and the link stays.

    Parameters
    ----------
    path
        The target.
    kind
        What is written: only the same is replaced; `None` where anything may be.
    """
    if kind == ANNDATA:
        check_writable(path)
    elif kind is not None:
        check_replaceable(path, kind)
    path = target_of(path)
    _sweep(path)
    # Beside the target, since a rename must not cross file systems.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder, _held(Path(folder)):
        fresh = Path(folder) / path.name
        yield fresh
        if fresh.is_file():
            with fresh.open("rb") as file:
                # A renamed file whose content never reached the disk would be half a file after a power cut.
                os.fsync(file.fileno())
        if kind is not None:
            # Much can come there in the hours of a training.
            check_replaceable(path, kind)
        if path.is_dir() and _exchange(fresh, path):
            return
        replaced = Path(folder) / "replaced"
        try:
            if path.is_dir():
                # A folder cannot be renamed over another one that has content. Killed here, the next run puts it back.
                path.rename(replaced)
            fresh.replace(path)
        except BaseException:
            if replaced.exists() and not path.exists():
                replaced.rename(path)
            raise


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a lock on a temporary folder, which goes with the process however it ends."""
    if sys.platform == "win32":
        yield
        return
    with (folder / f"{_LOCK}.new").open("w") as file:
        with suppress(OSError):  # Not every file system has locks.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Named once it is held, so that none is ever seen free whose process lives.
            Path(file.name).rename(folder / _LOCK)
        yield


def _sweep(target: Path) -> None:
    """Remove temporary folders of runs that were killed while they wrote the target; those of living ones are held."""
    for lock in target.parent.glob(f".{glob.escape(target.name)}-*/{_LOCK}"):
        if sys.platform == "win32" or ((lock.parent / "replaced").exists() and not target.exists()):
            continue
        with suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
            logger.info("removed %r, which a run that was killed has left", str(lock.parent))


def _exchange(left: Path, right: Path) -> bool:
    """Let two paths change places in one step, where the system and the disk can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not on Linux
        return False
    places = [_IN_WORKING_FOLDER, os.fsencode(left), _IN_WORKING_FOLDER, os.fsencode(right)]
    return bool(rename(*places, _SWAP) == 0)


def _put_back(target: Path) -> None:
    """Put a folder back that a run had moved aside when it was killed between two renames; see `replacing`."""
    if os.path.lexists(target) or not speaks_for_all():
        return
    left = target.parent.glob(f".{glob.escape(target.name)}-*/replaced")
    for replaced in sorted(left, key=lambda path: path.stat().st_mtime)[-1:]:
        replaced.rename(target)
        logger.warning("put back %r, which a run that was killed had moved to %r", str(target), str(replaced))


@contextmanager
def explaining_full_disk(folder: Path, gb: float) -> Iterator[None]:
    """Say where the disk is full, and how much is needed there in all, when it is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _full_disk(folder, gb, shutil.disk_usage(folder).free / 1e9) from error


def _full_disk(folder: Path, gb: float, free: float) -> OSError:
    message = f"{gb:.2f} GB are needed, and {free:.2f} GB are free on the disk of"
    return OSError(errno.ENOSPC, message, str(folder))


def allocate(path: Path, n_bytes: int) -> None:
    """Make a file of zeros and reserve its place on the disk, so that a full disk shows now and not at a later write."""
    try:
        with path.open("wb") as file:
            if n_bytes and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
                return
            zeros = bytes(min(n_bytes, 2**24))
            for start in range(0, n_bytes, 2**24):
                file.write(zeros[: n_bytes - start])
    except BaseException:
        path.unlink(missing_ok=True)
        raise
