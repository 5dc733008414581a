"""Reading and writing AnnData on disk, without ever leaving half a file."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stdenoise._validate import check_choice

if TYPE_CHECKING:
    from anndata import AnnData

_FORMATS = (".h5ad", ".zarr")


def read(path: Path) -> AnnData:
    """Read an `.h5ad` file or a `.zarr` folder into memory."""
    import anndata

    check_choice("file format", path.suffix, _FORMATS)
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}.")
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
    check_writable(path)
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}-") as folder:
        fresh = Path(folder) / path.name
        if path.suffix == ".h5ad":
            adata.write_h5ad(fresh, compression="gzip")
        else:
            adata.write_zarr(fresh)
            if path.is_dir():
                # A folder cannot be renamed over another one that has content.
                shutil.move(path, Path(folder) / "replaced")
        fresh.replace(path)
