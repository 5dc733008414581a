"""Counts on disk, in another order of spots and of some genes only, as tensors that are read where they are touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

import stdenoise.spatial.graph  # noqa: F401, takes the warning of torch that its CSR tensors are in beta
from stdenoise._base.files import allocate, explaining_full_disk

_RECORD = "counts.json"
_WINDOW = 2**23
"""Entries of a file that are mapped at a time while it is written."""
_MOST_32_BIT = np.iinfo(np.int32).max


@dataclass(frozen=True)
class SortedCounts:
    """Raw counts in the order that `sort_counts` was given.

    Parameters
    ----------
    counts
        CSR tensor on the CPU, float32, shape `(n_spots, n_genes)`; its parts are files mapped into memory.
    total
        Total count of each spot over all genes of the source, modelled or not, shape `(n_spots,)`.
    """

    counts: Tensor
    total: np.ndarray


def sort_counts(
    blocks: Callable[[], Iterator[tuple[int, sparse.csr_matrix]]],
    *,
    order: np.ndarray,
    positions: np.ndarray | None,
    n_genes: int,
    folder: Path,
    check: Callable[[np.ndarray], None],
) -> SortedCounts:
    """Copy counts to a folder, with the spots in a given order.

    Memory holds a few copies of a block, and a few numbers per spot. Stored zeros are dropped, repeated entries summed, columns
    sorted.

    Parameters
    ----------
    blocks
        Starts reading: first row and counts of all genes of blocks of rows, from the first row to the last. Called twice.
    order
        Row of the source for each row of the result, shape `(n_spots,)`.
    positions
        Columns to keep; `None` for all.
    n_genes
        Columns of the source.
    folder
        Exists; what it has of an earlier call is replaced.
    check
        Raises if the stored values of a block are no raw counts.

    Raises
    ------
    ValueError, OSError
        The blocks do not have as many rows as the order, or changed between the two readings; the disk is full.
    """
    (folder / _RECORD).unlink(missing_ok=True)
    n_rows, n_columns = len(order), n_genes if positions is None else len(positions)
    rank = np.empty(n_rows, dtype=np.int64)
    rank[order] = np.arange(n_rows)

    stored = np.zeros(n_rows, dtype=np.int64)
    total = np.zeros(n_rows)
    for rows, block in _ranked(blocks, rank):
        check(block.data)
        total[rows] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        stored[rows] = np.diff(_tidy(block, positions).indptr)

    crow = np.concatenate([[0], np.cumsum(stored)])
    n_entries = int(crow[-1])
    # MKL takes 32-bit indices as they are, and converts others at every product.
    index = "int32" if max(n_entries, n_rows, n_columns) < _MOST_32_BIT else "int64"
    record: dict[str, Any] = {"n_rows": n_rows, "n_columns": n_columns, "n_entries": n_entries, "index": index}
    n_bytes = {path: np.dtype(kind).itemsize * length for path, (kind, length) in _parts(folder, record).items()}
    try:
        with explaining_full_disk(folder, sum(n_bytes.values()) / 1e9):
            for path, size in n_bytes.items():
                allocate(path, size)
        # Over the reserved bytes: a file opened anew would give them up.
        np.memmap(folder / "crow", index, "r+")[:] = crow
        np.memmap(folder / "total", np.float64, "r+")[:] = total
        for rows, block in _ranked(blocks, rank):
            tidy = _tidy(block, positions)
            if not np.array_equal(np.diff(tidy.indptr), stored[rows]):
                raise OSError("the counts changed while they were read.")
            _scatter(tidy, rows, crow, folder, index)
        # Last, and as a whole: without it the folder is not complete.
        fresh = folder / f"{_RECORD}.new"
        fresh.write_text(json.dumps(record))
        fresh.replace(folder / _RECORD)
    except BaseException:
        for path in n_bytes:
            path.unlink(missing_ok=True)
        raise
    return open_sorted(folder)


def open_sorted(folder: Path) -> SortedCounts:
    """Open what `sort_counts` wrote, in this process or another one, without reading it.

    Raises
    ------
    OSError
        It is not there, or not complete.
    """
    try:
        record = json.loads((folder / _RECORD).read_text())
        parts = _parts(folder, record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OSError(f"there are no complete sorted counts in {str(folder)!r}: {error!r}.") from error
    arrays = {}
    for path, (kind, length) in parts.items():
        size = np.dtype(kind).itemsize * length
        if not path.exists() or path.stat().st_size != size:
            raise OSError(f"the sorted counts in {str(folder)!r} are damaged: {path.name!r} has not {size} bytes.")
        # Opened for writing since torch has no read-only tensors; nobody writes. An empty file cannot be mapped.
        arrays[path.name] = np.memmap(path, kind, "r+", shape=(length,)) if length else np.zeros(0, kind)
    # Nothing is checked, since that would read everything.
    crow, col, values = (torch.from_numpy(arrays[name]) for name in ("crow", "col", "values"))
    counts = torch.sparse_csr_tensor(
        crow,
        col,
        values,
        size=(record["n_rows"], record["n_columns"]),
        check_invariants=False,
    )
    return SortedCounts(counts, np.array(arrays["total"]))


def _parts(folder: Path, record: dict[str, Any]) -> dict[Path, tuple[str, int]]:
    """Type and length of each file."""
    n_rows, n_entries, index = int(record["n_rows"]), int(record["n_entries"]), str(record["index"])
    return {
        folder / "crow": (index, n_rows + 1),
        folder / "col": (index, n_entries),
        folder / "values": ("float32", n_entries),
        folder / "total": ("float64", n_rows),
    }


def _ranked(
    blocks: Callable[[], Iterator[tuple[int, sparse.csr_matrix]]], rank: np.ndarray
) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
    """Blocks with the place of each of their rows in the result."""
    n_seen = 0
    for first, block in blocks():
        if first != n_seen:
            raise ValueError(f"a block starts with row {first}, not {n_seen}.")
        n_seen += block.shape[0]
        if n_seen <= len(rank):
            yield rank[first:n_seen], block
    if n_seen != len(rank):
        raise ValueError(f"the order has {len(rank)} rows, but the counts have {n_seen}.")


def _tidy(block: sparse.csr_matrix, positions: np.ndarray | None) -> sparse.csr_matrix:
    """Copy the kept columns: float32, without stored zeros and repeated entries, sorted."""
    # Before entries are summed: small integers would overflow.
    tidy = block.astype(np.float32)
    tidy.sum_duplicates()
    if positions is not None:
        tidy = tidy[:, positions]
    tidy.eliminate_zeros()
    tidy.sort_indices()
    return tidy


def _scatter(block: sparse.csr_matrix, rows: np.ndarray, crow: np.ndarray, folder: Path, index: str) -> None:
    """Write the rows of a block where they belong, window by window, so that few pages are resident."""
    order = np.argsort(rows)
    block, rows = block[order], rows[order]
    starts, lengths = crow[rows], np.diff(block.indptr)
    cuts = np.flatnonzero(np.diff(starts // _WINDOW)) + 1
    for first, last in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        begin, end = block.indptr[first], block.indptr[last]
        if begin == end:
            continue
        low, high = int(starts[first]), int(starts[last - 1] + lengths[last - 1])
        shift = starts[first:last] - low - (block.indptr[first:last] - begin)
        places = np.repeat(shift, lengths[first:last]) + np.arange(end - begin)
        for name, kind, values in (("col", index, block.indices), ("values", "float32", block.data)):
            size = np.dtype(kind).itemsize
            window = np.memmap(folder / name, kind, "r+", offset=low * size, shape=(high - low,))
            window[places] = values[begin:end]
            del window
