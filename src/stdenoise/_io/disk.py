"""Whole AnnData on disk, without ever leaving half a file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import anndata
import pandas as pd
import zarr
from anndata import AnnData
from anndata.io import read_elem, write_elem

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
        yield dict(sorted(zarr.open_group(path, mode="r", use_consolidated=False).members()))


def read_light(path: Path) -> AnnData:
    """Read all but `X`, layers and `raw` into memory."""
    try:
        with elements_in(path) as elements:
            return AnnData(**{name: read_elem(elements[name]) for name in SMALL if name in elements})
    except Exception as error:
        raise OSError(f"cannot read {str(path)!r}: {error}") from error


def writes_text() -> AbstractContextManager[None]:
    """Let anndata write columns of text with missing values, as pandas 3 has them: it reads them, too."""
    context: AbstractContextManager[None] = anndata.settings.override(allow_write_nullable_strings=True)
    return context


def check_can_be_written(adata: AnnData, path: Path) -> None:
    """Raise where tables or `uns` hold what cannot be written, before work whose result would be lost."""
    few = slice(0, 1)
    parts: dict[str, Any] = {"obs": adata.obs.iloc[few], "var": adata.var.iloc[few], "uns": dict(adata.uns)}
    parts |= {
        f"{holder}[{key!r}]": value.iloc[few]
        for holder in ("obsm", "varm")
        for key, value in getattr(adata, holder).items()
        if isinstance(value, pd.DataFrame)
    }
    with _nowhere(path.suffix) as group, writes_text():
        for number, (name, value) in enumerate(parts.items()):
            try:
                write_elem(group, str(number), value)
            except Exception as error:
                # Each has its own kind.
                reason = str(error).split("\n", 1)[0]
                raise ValueError(f"adata.{name} cannot be written to {str(path)!r}: {reason}") from error


@contextmanager
def _nowhere(suffix: str) -> Iterator[Any]:
    """A file in memory."""
    if suffix == ".h5ad":
        import h5py

        with h5py.File("trial", "w", driver="core", backing_store=False) as file:
            yield file
    else:
        yield zarr.open_group(zarr.storage.MemoryStore(), mode="w", zarr_format=anndata.settings.zarr_write_format)


def write(adata: AnnData, path: Path) -> None:
    """Write under a temporary name beside the path, then rename; what was there is replaced only when all is written."""
    with (
        replacing(path) as fresh,
        writes_text(),
        explaining_full_disk(target_of(path).parent, adata.__sizeof__() / 1e9),
    ):
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
