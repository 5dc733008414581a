"""What may be written where: paths that must not meet, and what may be replaced."""

from __future__ import annotations

import json
import logging
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

logger = logging.getLogger("stdenoise")

ANNDATA, CHECKPOINT, MODEL, SCRATCH, FIGURE = "AnnData", "checkpoint", "model", "scratch folder", "figure"
"""What we write, and thus may replace."""
_EMPTY_FILE, _EMPTY_FOLDER = "empty file", "empty folder"
_ZARR_FILES = (".zgroup", ".zarray", "zarr.json")
_SCRATCH_FILES = ("counts.json", "counts.json.new", "crow", "col", "values", "total")
"""What sorting counts writes; results are collected in files that end with `.rows`."""


def check_paths(
    inputs: Iterable[tuple[str, Path | None]], outputs: Iterable[tuple[str, Path | None, str | None]]
) -> None:
    """Raise where writing could destroy a file; called before any work.

    No output may be, contain or lie inside another path, by whatever links or mounts it is reached, and what is there already must be
    what we write. An AnnData that is written as `.zarr` brings its scratch folder along.

    Parameters
    ----------
    inputs
        Role, as the user knows it, and path. Two inputs may be the same.
    outputs
        Role, path, and what is going to be written; `None` where nothing that is there is replaced as a whole.

    Raises
    ------
    ValueError
        Two paths meet, or a symbolic link leads to itself.
    FileExistsError
        Something else is there.
    """
    places = [(role, path, _identities(path)) for role, path in inputs if path is not None]
    written = [(role, path, kind) for role, path, kind in outputs if path is not None]
    for role, path, kind in list(written):
        if kind == ANNDATA and path.suffix == ".zarr":
            written.append((f"the scratch folder of {role}", scratch_of(path), SCRATCH))
    for role, path, _ in written:
        mine = _identities(path)
        for other, place, its in places:
            if mine[0] == its[0]:
                raise ValueError(
                    f"{other} {str(place)!r} and {role} {str(path)!r} are the same; choose another path for {role}."
                )
            if mine[0] in its or its[0] in mine:
                where = "lies inside" if its[0] in mine else "contains"
                raise ValueError(
                    f"{role} {str(path)!r} {where} {other} {str(place)!r}; choose another path for {role}."
                )
        places.append((role, path, mine))
    for _, path, kind in written:
        if kind is not None:
            check_replaceable(path, kind)


def check_replaceable(path: Path, kind: str) -> None:
    """Raise unless nothing is at a path, nothing in it, or what we write."""
    place = target_of(path)
    if not place.exists():
        return
    empty = {SCRATCH: [_EMPTY_FOLDER], ANNDATA: [_EMPTY_FOLDER, _EMPTY_FILE]}.get(kind, [_EMPTY_FILE])
    found = kind_of(place)
    if found not in (kind, *empty):
        article = "an" if found[0] in "Ae" else "a"
        raise FileExistsError(
            f"cannot replace {str(path)!r}: it is {article} {found}, and no {kind} or a damaged one. "
            "Choose another path, or remove it first."
        )
    if _is_mount_point(place):
        raise FileExistsError(f"cannot replace {str(path)!r}: it is a mount point. Choose a path inside it.")


def target_of(path: Path) -> Path:
    """Where a path leads: absolute, and all symbolic links followed, even to a place where nothing is yet."""
    try:
        target = path.resolve()
        leads_on = target.is_symlink()
    except RuntimeError:  # How Python up to 3.12 reports it.
        leads_on = True
    if leads_on:
        raise ValueError(f"{str(path)!r} is a symbolic link that leads to itself.")
    return target


def scratch_of(out: Path) -> Path:
    """Folder for scratch of a run that writes to a `.zarr`: beside it, so that it is on the same disk."""
    target = target_of(out)
    return target.with_name(f".{target.name}-scratch")


def remove_scratch(folder: Path) -> None:
    """Remove a scratch folder, but nothing in it that is not of a run."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _is_scratch(path):
                path.unlink()
        folder.rmdir()
    if folder.exists():
        logger.warning("%r is left, since it could not be removed or holds other files", str(folder))


def kind_of(path: Path) -> str:
    """Name what is at a path, by as little of it as tells."""
    if path.is_dir():
        entries = list(path.iterdir())
        if not entries:
            return _EMPTY_FOLDER
        if all(map(_is_scratch, entries)):
            return SCRATCH
        return ANNDATA if _is_anndata_folder(path, entries) else "folder"
    if not path.is_file():
        return "device or pipe"
    if path.stat().st_size == 0:
        return _EMPTY_FILE
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"\x89PNG") and b"Matplotlib" in head:
        return FIGURE
    return (_kind_of_tensors(path) or "file") if zipfile.is_zipfile(path) else _kind_of_hdf5(path)


def files_of(data: Any) -> list[Path]:
    """Files and folders that an AnnData reads from, backed or lazy; of a path, the path itself.

    Arrays of dask, zarr and anndata keep their stores in places that change from version to version. All that can travel to another
    process says what it is made of when it is pickled, so that is what is asked, without copying arrays.
    """
    if isinstance(data, Path):
        return [data]
    finder = _Finder(SimpleNamespace(write=len))
    if data.filename is not None:
        finder.paths.add(Path(data.filename))
    for name in ("X", "raw", "layers", "obs", "var", "obsm", "varm", "obsp", "varp", "uns"):
        # A backed matrix of an AnnData is opened anew from its filename, which is known already.
        element: Any = None if data.isbacked and name in ("X", "raw") else getattr(data, name)
        with suppress(Exception):  # What cannot be pickled has told what came before.
            finder.dump(dict(element) if name in ("layers", "obsm", "varm", "obsp", "varp") else element)
    return sorted(path for path in finder.paths if path.exists())


def stamps_of(data: Any) -> dict[Path, tuple[int, int]]:
    """Size and time of change of the files that it is read from."""
    found = {}
    for place in files_of(data):
        for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
            if path.is_file():
                status = path.stat()
                found[path] = status.st_size, status.st_mtime_ns
    return found


class _Finder(pickle.Pickler):
    """Meets all that an object is made of, and keeps the paths among it."""

    def __init__(self, sink: Any) -> None:
        super().__init__(sink, protocol=5)
        self.paths: set[Path] = set()

    def persistent_id(self, value: Any) -> str | None:
        """Note a path; return something for what need not be looked into."""
        if isinstance(value, Path):
            self.paths.add(value)
        elif type(value).__module__.startswith("h5py."):
            with suppress(Exception):  # It may be closed, or no part of a file.
                self.paths.add(Path(value.file.filename))
        elif type(value).__name__ == "FsspecStore":  # How zarr opens a path that was given as text, or as file://.
            self.paths.add(Path(value.path))
        elif not isinstance(value, np.ndarray | ModuleType | type) and not type(value).__module__.startswith(
            ("pandas.", "scipy.")
        ):
            return None
        return ""

    def reducer_override(self, value: Any) -> Any:
        """Look into what a function has caught from around it, and past what cannot be pickled."""
        if isinstance(value, FunctionType):
            return tuple, ([cell.cell_contents for cell in value.__closure__ or ()],)
        try:
            return value.__reduce_ex__(5)
        except Exception:  # noqa: BLE001, each type has its own
            return tuple, ()


def _identities(path: Path) -> list[tuple[Any, ...]]:
    """Identity of what is at a path, and of the folders around it, innermost first.

    Device and number of the file are the same by whatever name, hard link or mount it is reached. What does not exist is
    called by its name in the folder that does.
    """
    target = target_of(path)
    found = []
    for place in (target, *target.parents):
        there = next(parent for parent in (place, *place.parents) if parent.exists())
        status = there.stat()
        found.append((status.st_dev, status.st_ino, *place.relative_to(there).parts))
    return found


def _is_scratch(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and (path.name in _SCRATCH_FILES or path.suffix == ".rows")


def _is_anndata_folder(path: Path, entries: Iterable[Path]) -> bool:
    """Whether a folder is the zarr of an AnnData, and nothing else is in it."""
    attributes: dict[str, Any] = {}
    for name, key in ((".zattrs", None), ("zarr.json", "attributes")):
        with suppress(OSError, ValueError, AttributeError):
            record = json.loads((path / name).read_bytes())
            attributes |= record if key is None else record.get(key, {})
    inner = [entry for entry in entries if entry.name[0] != "." and entry.name != "zarr.json"]
    if not any((path / name).is_file() for name in _ZARR_FILES):
        return False
    if any(not any((entry / name).is_file() for name in _ZARR_FILES) for entry in inner):
        return False
    # Old versions of anndata did not say what they had written.
    return attributes.get("encoding-type") == "anndata" or {"obs", "var"} <= {entry.name for entry in inner}


def _kind_of_hdf5(path: Path) -> str:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            encoding = file.attrs.get("encoding-type")
            return ANNDATA if encoding == "anndata" or {"obs", "var"} <= set(file) else "file"
    except OSError:
        return "file"


def _kind_of_tensors(path: Path) -> str | None:
    """What `train.checkpoint.save_tensors` has called a file: its second word, which is read without executing anything."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(name) as file:
                words = (word for code, word, _ in pickletools.genops(file) if "UNICODE" in code.name)
                header, kind = islice(words, 2)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError):
        return None
    return str(kind) if header == "stdenoise" else None


def _is_mount_point(path: Path) -> bool:
    if os.path.ismount(path):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:  # not on Linux
        return False
    # A folder or file that is bound from the same disk looks like any other. Spaces and the like are written as octal numbers.
    places = (re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines)
    return str(path) in places
