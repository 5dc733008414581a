"""Whole AnnData on disk, without ever leaving half a file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import zarr
from anndata import AnnData
from anndata.io import read_elem

from stdenoise._base.files import check_readable, explaining_full_disk, replacing
from stdenoise._base.paths import target_of

SMALL = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")


def read(path: Path) -> AnnData:
    """Read an `.h5ad` file or a `.zarr` folder into memory."""
    check_readable(path)
    try:
        return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)
    except Exception as error:
        # h5py, zarr and anndata raise many kinds, few of which name the file.
        raise OSError(f"cannot read {str(path)!r}: {error}") from error


@contextmanager
def elements_in(path: Path) -> Iterator[dict[str, Any]]:
    """`X`, `obs` and all else in a file or folder by name, without loading them."""
    if path.suffix == ".h5ad":
        import h5py

        with h5py.File(path, "r") as file:
            yield dict(file)
    else:
        # The list at the root would hide what is damaged below.
        yield dict(zarr.open_group(path, mode="r", use_consolidated=False).members())


def read_light(path: Path) -> AnnData:
    """Read all but `X`, layers and `raw` into memory."""
    try:
        with elements_in(path) as elements:
            return AnnData(**{name: read_elem(elements[name]) for name in SMALL if name in elements})
    except Exception as error:
        raise OSError(f"cannot read {str(path)!r}: {error}") from error


def write(adata: AnnData, path: Path) -> None:
    """Write under a temporary name beside the path, then rename; what was there is replaced only when all is written."""
    with replacing(path) as fresh, explaining_full_disk(target_of(path).parent, adata.__sizeof__() / 1e9):
        if path.suffix == ".h5ad":
            adata.write_h5ad(fresh, compression="gzip")
        else:
            adata.write_zarr(fresh)


def consolidate(group: zarr.Group) -> None:
    """List all groups and arrays of a zarr at its root, where readers look for what there is."""
    with warnings.catch_warnings():
        # zarr says of its format 3 that others may not read the list; anndata writes it all the same.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        zarr.consolidate_metadata(group.store)
