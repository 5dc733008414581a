"""Counts that need not fit in memory: read by blocks of rows from a file or from an AnnData that was opened lazily."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from anndata.io import read_elem, write_elem
from scipy import sparse

from stdenoise._base.checks import lookup
from stdenoise._base.files import check_readable
from stdenoise._base.paths import stamps_of
from stdenoise._io.disk import SMALL, consolidate, elements_in, read, read_light
from stdenoise._io.matrix import check_pointers, native, read_numbers
from stdenoise._io.read import layers_of

_CHUNK = 2**20
"""Entries of a chunk of an array that is copied to zarr."""


@dataclass(frozen=True)
class _Csr:
    """A CSR matrix whose entries may be on disk."""

    data: Any
    indices: Any
    indptr: np.ndarray
    shape: tuple[int, int]
    incomplete: bool = False
    """Whether zarr has no file for some chunks, and thus gives zeros: they are lost, or were nothing but zeros."""


@dataclass(frozen=True)
class Source:
    """Raw counts where they are, and all else in memory.

    Parameters
    ----------
    light
        `obs`, `var`, `obsm`, `varm`, `obsp`, `varp` and `uns` of the data, in memory; without `X` and layers. It may share them with the
        data.
    where
        Name of the counts, for messages.
    data
        What was opened.
    layer
        Layer of the counts; `None` for `X`.
    opened
        What `light` had when it was opened, by place.
    stamps
        Size and time of its files then.
    """

    light: AnnData
    where: str
    data: Path | AnnData
    layer: str | None
    opened: Mapping[str, Any]
    stamps: Mapping[Path, tuple[int, int]]

    def row_blocks(self, entries: int = 2**24) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Read the counts of all genes from the first spot to the last.

        Parameters
        ----------
        entries
            About how many stored values a block may have. Arrays that are not sparse, and those of dask, count with all their
            entries. A row, or a chunk of dask, is never cut.

        Yields
        ------
        First row of a block, and its counts; not to be changed.

        Raises
        ------
        OSError
            A block cannot be read.
        """
        with _elements(self.data) as elements:
            matrix = _counts(elements, self.layer, self.where)
            for start, stop in _row_ranges(matrix, entries):
                try:
                    block = _read_rows(matrix, start, stop)
                except Exception as error:
                    # Each store and codec has its own kinds of errors, and none names the rows.
                    raise OSError(f"cannot read rows {start} to {stop - 1} of {self.where}: {error}") from error
                yield start, block

    @property
    def n_counts(self) -> int:
        """Stored values; of an array that is not sparse, all."""
        with _elements(self.data) as elements:
            matrix = _counts(elements, self.layer, self.where)
            return int(matrix.data.shape[0]) if isinstance(matrix, _Csr) else int(np.prod(matrix.shape))

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        with _elements(self.data) as elements:
            return sorted(elements.get("layers", {}))

    def load(self) -> AnnData:
        """Read all into memory, and what was added to `light`."""
        adata = read(self.data) if isinstance(self.data, Path) else self.data.to_memory()
        for place, value in self.added().items():
            holder, key = place.split("/", 1)
            getattr(adata, holder)[key] = value
        return adata

    def added(self) -> dict[str, Any]:
        """What was put into `light` since the data was opened, by place, such as `"obsp/spatial_distances"`."""
        return {place: value for place, value in _parts(self.light) if value is not self.opened.get(place)}

    def copy_to(self, path: Path) -> None:
        """Write all that the data has to a new `.zarr`, without loading `X` or layers.

        Parameters
        ----------
        path
            Does not exist.

        Raises
        ------
        OSError
            The disk is full, something cannot be read, or files have changed since they were opened.
        """
        self._copy_to(path)
        # At the end: what changed in between may have been copied.
        if changed := sorted(dict(self.stamps.items() ^ stamps_of(self.data).items())):
            raise OSError(f"{str(changed[0])!r} was changed while it was read: nothing is written.")

    def _copy_to(self, path: Path) -> None:
        if isinstance(self.data, Path) and self.data.suffix == ".zarr":
            _copy_folder(self.data, path)
            return
        group = zarr.open_group(path, mode="w-", zarr_format=anndata.settings.zarr_write_format)
        group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in SMALL:
            value = getattr(self.light, name)
            write_elem(group, name, value if name in ("obs", "var") else dict(value))
        with _elements(self.data) as elements:
            if "X" in elements:
                _copy_element(group, "X", elements["X"])
            _copy_elements(group, "layers", "dict", dict(elements.get("layers", {})))
            if "raw" in elements:
                _copy_elements(group, "raw", "raw", _raw_elements(elements["raw"]))
        consolidate(group)


def open_source(data: Path | AnnData, layer: str | None) -> Source:
    """Open counts without loading them.

    Parameters
    ----------
    data
        A `.zarr` folder or `.h5ad` file, or an AnnData: in memory, backed, with dask arrays, or from
        `anndata.experimental.read_lazy`.
    layer
        Layer of the counts; `None` for `X`.

    Raises
    ------
    ValueError
        There is no `X`, or the counts are stored by columns, so that rows cannot be read on their own.
    TypeError, KeyError, OSError
        It is something else; there is no such layer; the file is not there or cannot be read.
    """
    where = "X" if layer is None else f"layers[{layer!r}]"
    if isinstance(data, Path):
        check_readable(data)
    stamps = stamps_of(data) if isinstance(data, Path | AnnData) else {}
    if isinstance(data, Path):
        where = f"{where} of {str(data)!r}"
        light = read_light(data)
    elif isinstance(data, AnnData):
        where = f"adata.{where}"
        if data.isbacked and data.is_view:
            raise ValueError("adata is a view of a backed AnnData; load it first: adata = adata.to_memory().")
        tables = {name: getattr(data, name) for name in ("obs", "var")}
        light = AnnData(**tables, **{name: dict(getattr(data, name)) for name in SMALL[2:]}).to_memory()
    else:
        raise TypeError(f"data must be a path or an AnnData, not {type(data).__name__}.")
    if 0 in light.shape:
        raise ValueError(f"there is nothing in {where}: {light.n_obs} spots x {light.n_vars} genes.")
    with _elements(data) as elements:
        shape = _counts(elements, layer, where).shape
    if shape != light.shape:
        raise OSError(f"{where} is damaged: it has shape {shape}, not {light.shape}.")
    return Source(light, where, data, layer, dict(_parts(light)), stamps)


def _parts(light: AnnData) -> Iterator[tuple[str, Any]]:
    """What surrounds the counts, by place."""
    for name in ("obsm", "varm", "obsp", "varp", "uns"):
        for key, value in getattr(light, name).items():
            yield f"{name}/{key}", value


@contextmanager
def _elements(data: Path | AnnData) -> Iterator[dict[str, Any]]:
    """`X`, `layers`, `raw` and all else by name, without loading them."""
    if not isinstance(data, Path):
        elements = {name: getattr(data, name) for name in ("X", "raw", *SMALL)} | {"layers": layers_of(data)}
        yield {name: value for name, value in elements.items() if value is not None}
    else:
        with elements_in(data) as elements:
            yield elements


def _counts(elements: Mapping[str, Any], layer: str | None, where: str) -> Any:
    """Find the counts: a `_Csr`, an array of dask, or an array in memory or in a file."""
    layers = dict(sorted(dict(elements.get("layers", {})).items()))  # zarr lists them in any order
    if layer is None and "X" not in elements:
        raise ValueError(f"there is no {where}; pass layer=, one of {list(layers)}.")
    matrix = elements["X"] if layer is None else lookup(layers, layer, where=where.replace(f"[{layer!r}]", ""))
    matrix = _group_of(matrix)
    kind = _encoding(matrix) or getattr(getattr(matrix, "_meta", matrix), "format", "array")
    if sparse.issparse(matrix):
        matrix = sparse.csr_matrix(read_numbers(matrix, where))
        return _Csr(matrix.data, matrix.indices, matrix.indptr, matrix.shape)
    if kind.startswith("csc"):
        raise ValueError(
            f"{where} is stored by columns (CSC), so that spots cannot be read block by block. "
            "Store it by rows: adata.X = adata.X.tocsr(), and write it again."
        )
    if kind == "csr_matrix":
        data, indices, (n_rows, n_columns) = matrix["data"], matrix["indices"], map(int, matrix.attrs["shape"])
        incomplete = any(
            getattr(part, "nchunks_initialized", 0) < getattr(part, "nchunks", 0) for part in (data, indices)
        )
        pointers = matrix["indptr"]
        if pointers.shape[0] != n_rows + 1:  # Before they are read: a damaged length may be any.
            raise ValueError(f"{where} is damaged: it has {pointers.shape[0]} row pointers for {n_rows} rows.")
        indptr = pointers[:]
        check_pointers(indptr, int(data.shape[0]), n_rows, where)
        return _Csr(data, indices, indptr, (n_rows, n_columns), incomplete)
    if len(getattr(matrix, "shape", ())) != 2:
        raise TypeError(f"{where} must be a matrix, not {type(matrix).__name__}.")
    return matrix


def _group_of(matrix: Any) -> Any:
    """The group in the file, of a sparse matrix of a backed AnnData; all else as it is."""
    return matrix.group if isinstance(matrix, CSCDataset | CSRDataset) else matrix


def _encoding(element: Any) -> str:
    """What a group or array in a file holds; "" for what is in memory."""
    return str(getattr(element, "attrs", {}).get("encoding-type", ""))


def _row_ranges(matrix: Any, entries: int) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of blocks that do not cut chunks where they can hold one."""
    n_rows, n_columns = matrix.shape
    ends: Callable[[int], Any]
    if isinstance(matrix, _Csr):
        ends = lambda start: np.searchsorted(matrix.indptr, matrix.indptr[start] + entries, side="right") - 1
    elif hasattr(matrix, "dask"):
        edges = np.cumsum([0, *matrix.chunks[0]])
        ends = lambda start: edges[edges <= max(start + entries // n_columns, edges[edges > start][0])][-1]
    else:
        height = max(1, entries // n_columns)
        # Memory and some arrays of HDF5 have no chunks.
        chunk = (getattr(matrix, "chunks", None) or (1,))[0]
        height = height // chunk * chunk or height
        ends = lambda start: start + height
    start = 0
    while start < n_rows:
        stop = min(n_rows, max(start + 1, int(ends(start))))
        yield start, stop
        start = stop


def _read_rows(matrix: Any, start: int, stop: int) -> sparse.csr_matrix:
    if not isinstance(matrix, _Csr):
        _check_lengths(matrix, start, stop)
        rows = matrix[start:stop]
        if hasattr(rows, "dask"):
            rows = rows.compute()
        return sparse.csr_matrix(native(rows) if isinstance(rows, np.ndarray) else rows)
    n_columns = matrix.shape[1]
    begin, end = int(matrix.indptr[start]), int(matrix.indptr[stop])
    for part in (matrix.data, matrix.indices):
        _check_lengths(part, begin, end)
    data, indices, indptr = matrix.data[begin:end], matrix.indices[begin:end], matrix.indptr[start : stop + 1] - begin
    if len(data) != end - begin or len(indices) != end - begin or (np.diff(indptr) < 0).any():
        raise ValueError(f"it should have {end - begin} entries, and has {len(data)}.")
    if end > begin and not 0 <= indices.min() <= indices.max() < n_columns:
        raise ValueError(f"the columns of its entries are not all between 0 and {n_columns - 1}.")
    if matrix.incomplete:
        in_row = np.repeat(np.arange(stop - start), np.diff(indptr))
        if not data.all() or (np.bincount(in_row[indices == 0], minlength=1) > 1).any():
            raise ValueError("chunks of the file are missing.")
    return sparse.csr_matrix((native(data), indices, indptr), shape=(stop - start, n_columns))


def _copy_folder(source: Path, target: Path) -> None:
    for folder, _, names in os.walk(source):
        copy = target / Path(folder).relative_to(source)
        copy.mkdir()
        for name in names:
            # Not its permissions: the copy of a read-only file is to be written to.
            shutil.copyfile(Path(folder) / name, copy / name)


def _check_lengths(array: Any, start: int, stop: int) -> None:
    """Raise where a chunk of a zarr array on disk is not as long as it says.

    Blosc, with which anndata compresses, does not look where its input ends: of a truncated chunk it makes arbitrary values.
    """
    if not hasattr(array, "compressors") or array.shards or "blosc" not in repr(array.compressors).lower():
        return
    folder = Path(getattr(array.store, "root", "")) / array.path
    others = [range(-(-length // size)) for length, size in zip(array.shape[1:], array.chunks[1:], strict=True)]
    for index in product(range(start // array.chunks[0], -(-stop // array.chunks[0])), *others):
        file = folder / array.metadata.encode_chunk_key(index)
        if not file.exists():  # It may be all zeros, or in a store that is no folder.
            continue
        with file.open("rb") as stream:
            header = stream.read(16)
        # The last of its four-byte numbers is the length.
        if len(header) < 16 or int.from_bytes(header[12:], "little") != file.stat().st_size:
            raise ValueError(f"{str(file)!r} is damaged.")


def _raw_elements(raw: Any) -> dict[str, Any]:
    """Parts of `raw`, of an AnnData or in a file."""
    if _encoding(raw):
        return {name: read_elem(value) if name != "X" else value for name, value in dict(raw).items()}
    small = AnnData(var=raw.var, varm=dict(raw.varm)).to_memory()
    return {"X": raw.X, "var": small.var, "varm": dict(small.varm)}


def _copy_elements(parent: Any, name: str, kind: str, elements: Mapping[str, Any]) -> None:
    group = parent.create_group(name)
    group.attrs.update({"encoding-type": kind, "encoding-version": "0.1.0"})
    for key, value in elements.items():
        _copy_element(group, key, value)


def _copy_element(parent: Any, name: str, value: Any) -> None:
    """Write part of an AnnData to a zarr group; matrices of a file are copied piece by piece."""
    value = _group_of(value)
    kind = _encoding(value)
    if kind in ("csr_matrix", "csc_matrix"):
        group = _sparse_group(parent, name, kind, value.attrs["shape"])
        for part in ("data", "indices", "indptr"):
            _copy_array(group, part, value[part])
    elif kind == "array":
        _copy_array(parent, name, value)
        parent[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    elif hasattr(value, "dask") and getattr(value._meta, "format", "") == "csr":
        _copy_rows(_sparse_group(parent, name, "csr_matrix", value.shape), value)
    else:
        write_elem(parent, name, read_elem(value) if kind else value)


def _sparse_group(parent: Any, name: str, kind: str, shape: Sequence[int]) -> Any:
    group = parent.create_group(name)
    lengths = [int(length) for length in shape]
    group.attrs.update({"encoding-type": kind, "encoding-version": "0.1.0", "shape": lengths})
    return group


def _copy_rows(group: Any, matrix: Any) -> None:
    """Write an array of dask with CSR blocks; anndata does it a block at a time, which takes several times as long."""
    indptr = np.zeros(matrix.shape[0] + 1, dtype=np.int64)
    for start, stop in _row_ranges(matrix, 16 * _CHUNK):
        block = _read_rows(matrix, start, stop)
        indptr[start + 1 : stop + 1] = indptr[start] + block.indptr[1:]
        for name, values in (("data", block.data), ("indices", block.indices)):
            if start == 0:
                group.create_array(name, shape=(0,), dtype=values.dtype, chunks=(_CHUNK,))
            group[name].append(values)
    # Old releases of scipy want it of the type of the indices.
    _copy_array(group, "indptr", indptr.astype(np.int32) if indptr[-1] <= np.iinfo(np.int32).max else indptr)


def _copy_array(group: Any, name: str, array: Any) -> None:
    """Copy an array of a file to zarr, a few chunks at a time."""
    height = max(1, min(len(array), _CHUNK // max(1, int(np.prod(array.shape[1:])))))
    chunks = (height, *(max(1, length) for length in array.shape[1:]))
    copy = group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=chunks)
    for start in range(0, len(array), 16 * height):
        copy[start : start + 16 * height] = array[start : start + 16 * height]
