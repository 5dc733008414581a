"""Reading and writing AnnData on disk, without ever leaving half a file."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stdenoise._validate import check_choice

if TYPE_CHECKING:
    import zarr
    from anndata import AnnData

_FORMATS = (".h5ad", ".zarr")


def check_readable(path: Path) -> None:
    """Raise unless the path has a known format and exists."""
    check_choice("file format", path.suffix, _FORMATS)
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}.")


def read(path: Path) -> AnnData:
    """Read an `.h5ad` file or a `.zarr` folder into memory."""
    import anndata

    check_readable(path)
    try:
        return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
    except Exception as error:
        # h5py, zarr and anndata raise many kinds, few of which name the file.
        raise OSError(f"cannot read {str(path)!r}: {error}") from error


def check_writable(path: Path) -> None:
    """Raise unless the path has a known format and its folder can be written to."""
    check_choice("file format", path.suffix, _FORMATS)
    if path.exists() and path.is_dir() != (path.suffix == ".zarr"):
        raise FileExistsError(
            f"cannot write {str(path)!r}: a {'folder' if path.is_dir() else 'file'} of that name exists."
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {str(path)!r}: there is no folder {str(folder)!r}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {str(path)!r}: the folder {str(folder)!r} is not writable.")


def write(adata: AnnData, path: Path) -> None:
    """Write under a temporary name beside the path, then rename; what was there is replaced only when all is written."""
    with replacing(path) as fresh, explaining_full_disk(path.absolute().parent, adata.__sizeof__() / 1e9):
        if path.suffix == ".h5ad":
            adata.write_h5ad(fresh, compression="gzip")
        else:
            adata.write_zarr(fresh)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, in a temporary folder beside the target, and rename it over the target at the end.

    After an error or an interrupt the target is as it was, and nothing is left beside it.
    """
    check_writable(path)
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}-") as folder:
        fresh = Path(folder) / path.name
        yield fresh
        replaced = Path(folder) / "replaced"
        try:
            if path.is_dir():
                # A folder cannot be renamed over another one that has content.
                path.rename(replaced)
            fresh.replace(path)
        except BaseException:
            if replaced.exists() and not path.exists():
                replaced.rename(path)
            raise


def consolidate(group: zarr.Group) -> None:
    """List all groups and arrays of a zarr at its root, where readers look for what there is."""
    import zarr

    with warnings.catch_warnings():
        # zarr says of its format 3 that others may not read the list; anndata writes it all the same.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        zarr.consolidate_metadata(group.store)


def check_space(folder: Path, gb: float) -> None:
    """Raise unless there is that much free space on the disk of a folder, in GB."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gb:
        raise _full_disk(folder, gb, free)


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
