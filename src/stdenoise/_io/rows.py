"""Results that do not fit in memory: rows are collected in flat files, and then written to a `.zarr` chunk by chunk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem, write_elem

from stdenoise._base.files import allocate, explaining_full_disk
from stdenoise._io.disk import consolidate

logger = logging.getLogger("stdenoise")

CLIPPED = "%s has values above 65504, the largest float16: they are stored as that"
ROUNDED = "rounded"
"""Of a dtype: float32 with 9 significant bits, within 0.2 %. Denoised values have no zeros to compress; fewer bits do."""
_DROPPED_BITS = 15
FILE_DTYPE = ROUNDED
"""Of a file whose dtype nobody chose."""
_CHUNK_BYTES, _BLOCK_BYTES = 2**21, 2**25
_COLUMN_ROWS, _COLUMNS = 2**17, 512
"""Rows of a chunk of a column of a table, and columns that are in memory at a time."""


class RowStore:
    """Arrays in flat files, to which several processes may write rows in any order.

    Parameters
    ----------
    folder
        Exists.
    widths
        Number of columns of each array, by name.
    n_rows
        Rows of all arrays.
    dtype
        `numpy.float32`, `numpy.float16` or `ROUNDED`, of all arrays or by name. What is too large for float16 is stored as the largest
        number that it has.
    create
        Make the files, of zeros, and reserve their place on the disk; else open those that are there.

    Raises
    ------
    OSError
        The disk is full; a file to be opened is not there or of another size.
    """

    def __init__(self, folder: Path, widths: Mapping[str, int], n_rows: int, dtype: Any, *, create: bool) -> None:
        self.folder, self.widths, self.n_rows = folder, dict(widths), n_rows
        self._kinds = {name: dtype[name] if isinstance(dtype, Mapping) else dtype for name in widths}
        self.dtypes = {name: np.dtype("float32" if kind == ROUNDED else kind) for name, kind in self._kinds.items()}
        self._warned = False
        sizes = {self._path(name): n_rows * width * self.dtypes[name].itemsize for name, width in widths.items()}
        self.gb = sum(sizes.values()) / 1e9
        with explaining_full_disk(folder, self.gb):
            for path, size in sizes.items():
                if create:
                    allocate(path, size)
                elif not path.exists() or path.stat().st_size != size:
                    raise OSError(f"{str(path)!r} is not there, or has not {size} bytes.")

    def _path(self, name: str) -> Path:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is no name of a file.")
        return self.folder / f"{name}.rows"

    def write(self, rows: np.ndarray, name: str, values: np.ndarray) -> None:
        """Write rows of an array.

        Parameters
        ----------
        rows
            Their numbers, in any order.
        name
            Name of the array.
        values
            Shape `(len(rows), width)`.

        Raises
        ------
        ValueError
            The values have another shape.
        """
        width = self.widths[name]
        if values.shape != (len(rows), width):
            raise ValueError(f"{name!r} takes values of shape {(len(rows), width)}, not {values.shape}.")
        if len(rows) == 0:
            return
        values = self._convert(values, name)
        if (np.diff(rows) <= 0).any():
            order = np.argsort(rows)
            rows, values = rows[order], values[order]
        data = np.ascontiguousarray(values).data.cast("B")
        size = width * self.dtypes[name].itemsize
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        starts = [0, *cuts.tolist()]
        file = os.open(self._path(name), os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            for row, start, stop in zip(rows[starts].tolist(), starts, [*starts[1:], len(rows)], strict=True):
                _write_at(file, data[start * size : stop * size], row * size)
        finally:
            os.close(file)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read consecutive rows of an array, shape `(stop - start, width)`."""
        width = self.widths[name]
        offset = start * width * self.dtypes[name].itemsize
        count = (stop - start) * width
        return np.fromfile(self._path(name), self.dtypes[name], count=count, offset=offset).reshape(-1, width)

    def _convert(self, values: np.ndarray, name: str) -> np.ndarray:
        values, clipped = narrowed(values, self._kinds[name])
        if clipped and not self._warned:
            logger.warning(CLIPPED, name)
            self._warned = True
        return values


def narrowed(values: np.ndarray, dtype: Any) -> tuple[np.ndarray, bool]:
    """Convert values, and say whether some were too large for float16: these become the largest number that it has."""
    if dtype == ROUNDED:
        # To the nearest number whose last bits are zero, ties to even; a carry runs into the exponent, as it should.
        bits = np.array(values, dtype=np.float32, order="C").view(np.uint32)
        bits += np.uint32((1 << (_DROPPED_BITS - 1)) - 1) + ((bits >> np.uint32(_DROPPED_BITS)) & np.uint32(1))
        bits &= np.uint32(2**32 - (1 << _DROPPED_BITS))
        return bits.view(np.float32), False
    if np.dtype(dtype) != np.float16:
        return values.astype(dtype, copy=False), False
    largest = np.finfo(np.float16).max
    return np.clip(values, -largest, largest).astype(np.float16), bool((np.abs(values) > largest).any())


def create_arrays(
    store: RowStore, path: Path, targets: Mapping[str, str], *, columns: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Make the arrays of a result in an AnnData on disk, for `write_arrays` to fill; what has their names is replaced.

    Parameters
    ----------
    store
        Has the arrays.
    path
        `.zarr` of an AnnData.
    targets
        Where each array of the store goes, such as `"layers/dusted_mean"`.
    columns
        Names of the columns of those that are to be data frames, by the name in the store.

    Raises
    ------
    ValueError
        A name of a column cannot be stored.
    """
    group: Any = zarr.open_group(path, mode="r+", use_consolidated=False)
    named = columns or {}
    for names in named.values():
        check_columns(names)
    for name, target in targets.items():
        parent, key = _parent(group, target)
        if key in parent:
            del parent[key]
        if name in named:
            _create_frame(group, parent, key, store.n_rows, store.dtypes[name], list(named[name]))
        else:
            width = store.widths[name]
            height = max(1, min(store.n_rows, _CHUNK_BYTES // (width * store.dtypes[name].itemsize)))
            _create_array(parent, key, (store.n_rows, width), (height, width), store.dtypes[name])


def write_arrays(store: RowStore, path: Path, targets: Mapping[str, str], *, share: tuple[int, int] = (0, 1)) -> None:
    """Fill the arrays that `create_arrays` made, or a share of them.

    Parameters
    ----------
    store, path, targets
        As for `create_arrays`.
    share
        Number of this process, and how many there are; each writes chunks of its own.

    Raises
    ------
    OSError
        The disk is full.
    """
    group: Any = zarr.open_group(path, mode="r+", use_consolidated=False)
    rank, world = share
    # Compressed, it takes less.
    with explaining_full_disk(path.parent, store.gb):
        for name, target in targets.items():
            element = group[target]
            if isinstance(element, zarr.Array):
                height = element.chunks[0]
                height *= max(1, _BLOCK_BYTES // (height * store.widths[name] * store.dtypes[name].itemsize))
                for start in range(rank * height, store.n_rows, world * height):
                    stop = min(start + height, store.n_rows)
                    element[start:stop] = store.read(name, start, stop)
            else:
                for start in range(rank * _COLUMN_ROWS, store.n_rows, world * _COLUMN_ROWS):
                    _write_columns(store, name, element, start)


def write_elements(path: Path, fields: Mapping[str, Any], *, remove: Iterable[str] = ()) -> None:
    """Write small parts of an AnnData on disk, and make all that was written to it visible.

    Parameters
    ----------
    path
        `.zarr` of an AnnData.
    fields
        Values by their place, such as `"uns/dusted"` or `"var/dusted_modelled"`.
    remove
        Places to be emptied first, where there is something.
    """
    group: Any = zarr.open_group(path, mode="r+", use_consolidated=False)
    for place in remove:
        parent, key = _parent(group, place)
        if place.startswith(("obs/", "var/")):
            write_elem(group, parent.basename, read_elem(parent).drop(columns=key, errors="ignore"))
        elif key in parent:
            del parent[key]
    for place, value in fields.items():
        parent, key = _parent(group, place)
        if place.startswith(("obs/", "var/")):
            write_elem(group, parent.basename, read_elem(parent).assign(**{key: value}))
        else:
            write_elem(parent, key, value)
    consolidate(group)


def _write_at(file: int, data: memoryview, offset: int) -> None:
    while data:
        if hasattr(os, "pwrite"):
            n_written = os.pwrite(file, data, offset)
        else:  # Windows
            os.lseek(file, offset, os.SEEK_SET)
            n_written = os.write(file, data)
        data, offset = data[n_written:], offset + n_written


def _parent(group: Any, place: str) -> tuple[Any, str]:
    """Group of `layers`, `obsm`, …, made where it is missing, and the key in it."""
    attribute, key = place.split("/", 1)
    if attribute not in group:
        group.create_group(attribute).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    return group[attribute], key


def _create_array(parent: Any, key: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype) -> None:
    attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
    # Compressed as zarr does by default for the format of this store.
    parent.create_array(key, shape=shape, chunks=chunks, dtype=dtype, attributes=attributes)


def check_columns(columns: Iterable[str]) -> None:
    """Raise where the name of a gene cannot be that of a column on disk."""
    bad = [name for name in columns if "/" in name or name == "_index"]
    if bad:
        raise ValueError(f"{len(bad)} names of genes cannot be those of columns on disk: {bad[:5]}; rename them.")


def _create_frame(root: Any, parent: Any, key: str, n_rows: int, dtype: np.dtype, columns: list[str]) -> None:
    """Write a table that has rows, and room for its columns."""
    index_key = root["obs"].attrs["_index"]
    index = pd.Index(read_elem(root["obs"][index_key]), name=None if index_key == "_index" else index_key)
    write_elem(parent, key, pd.DataFrame(index=index))
    group = parent[key]
    for name in columns:
        _create_array(group, name, (n_rows,), (min(n_rows, _COLUMN_ROWS),), dtype)
    group.attrs["column-order"] = columns


def _write_columns(store: RowStore, name: str, group: Any, start: int) -> None:
    """Write one chunk of each column, some columns at a time."""
    stop = min(start + _COLUMN_ROWS, store.n_rows)
    width, dtype = store.widths[name], store.dtypes[name]
    height = max(1, _BLOCK_BYTES // (width * dtype.itemsize))
    columns = group.attrs["column-order"]
    for left in range(0, width, _COLUMNS):
        block = np.empty((min(_COLUMNS, width - left), stop - start), dtype)
        for row in range(start, stop, height):
            last = min(row + height, stop)
            block[:, row - start : last - start] = store.read(name, row, last)[:, left : left + _COLUMNS].T
        for column, values in zip(columns[left : left + _COLUMNS], block, strict=True):
            group[column][start:stop] = values
