"""Files of a benchmark: each is written under a temporary name and renamed, so that there is never half a file."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stdenoise._base.files import replacing

DATASETS = "datasets"
UNITS = "units"
FAILED = "failed"
PLAN = "plan.json"
REPORT = ("report.md", "results.csv", "results.parquet", "figures")


_NO_SPACE = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)}


class DiskFull(OSError):
    """There is no space left; every finished unit is kept."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as a whole, or leave what was there.

    Raises
    ------
    DiskFull
        There is no space left.
    """
    try:
        with replacing(path, None) as fresh:
            fresh.write_bytes(data)
    except OSError as error:
        raise disk_full(path) from error if is_disk_full(error) else error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk or the quota is used up; HDF5 says so in its message alone."""
    return isinstance(error, OSError) and (error.errno in _NO_SPACE or "No space left on device" in str(error))


def disk_full(path: Path) -> DiskFull:
    """Make the error that tells what to do."""
    return DiskFull(
        errno.ENOSPC,
        "no space left on the disk. Finished units are kept: free some space and run the same again",
        str(path),
    )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file; NaN is not JSON, so numbers that are not finite must have been replaced."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON file; `None` where there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def make_folders(folder: Path) -> None:
    """Make the folders of a benchmark."""
    for name in (DATASETS, UNITS, FAILED):
        (folder / name).mkdir(parents=True, exist_ok=True)


def files_by_hash(folder: Path, room: str) -> dict[str, Path]:
    """Map the hash at the end of a file's name to the file, so that a renamed label finds its results."""
    return {path.stem.rsplit("-", 1)[-1]: path for path in sorted((folder / room).glob("*.*")) if path.name[0] != "."}
