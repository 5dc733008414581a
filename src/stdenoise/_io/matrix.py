"""Numbers of an AnnData, wherever they come from: understood or refused, and of types that every library knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse


def read_numbers(values: Any, where: str) -> Any:
    """Return a numpy array or a scipy sparse matrix that is safe to compute with.

    Parameters
    ----------
    values
        A numpy array, a scipy sparse matrix or a DataFrame; not changed.
    where
        How it is called, for messages.

    Returns
    -------
    An array, or a sparse matrix of the same format, which may share memory with `values`. Half and extended precision become single and
    double, bytes come in the order of the machine, and integers are 64 bits wide where entries may repeat, so that their sums do not
    overflow. A missing value of a DataFrame is NaN.

    Raises
    ------
    TypeError
        It is something else, or holds something else than real numbers.
    ValueError
        The pattern of a sparse matrix is damaged. Libraries do not look, and would read and write outside of it.
    """
    if isinstance(values, pd.DataFrame):
        if bad := [kind for kind in values.dtypes if not pd.api.types.is_numeric_dtype(kind)]:
            raise TypeError(f"{where} must hold real numbers, not {bad[0]}.")
        values = values.to_numpy(dtype=np.result_type(*map(_numpy_type, values.dtypes)), na_value=np.nan)
    is_sparse = sparse.issparse(values)
    if not is_sparse and not isinstance(values, np.ndarray):
        raise TypeError(
            f"{where} must be a numpy array or a scipy sparse matrix, not {type(values).__name__}. "
            "What was opened lazily is loaded with adata = adata.to_memory()."
        )
    if values.dtype.kind not in "iufb":
        raise TypeError(f"{where} must hold real numbers, not {values.dtype}.")
    if not is_sparse:
        return native(values)
    if values.format not in ("csr", "csc"):
        return values.astype(_wide(values.dtype)).tocsr()
    data, indices, indptr = native(values.data), values.indices, values.indptr
    check_pattern(indptr, indices, len(data), values.shape if values.format == "csr" else values.shape[::-1], where)
    if data.dtype.kind in "iub" and not values.has_canonical_format:
        data = data.astype(_wide(data.dtype))
    if data is values.data:
        return values
    return type(values)((data, indices, indptr), shape=values.shape)


def native(values: np.ndarray) -> np.ndarray:
    """Convert to the byte order of the machine, and to single or double precision, where it is something else."""
    kind = values.dtype
    if kind.kind == "f":
        return values.astype(np.float32 if kind.itemsize <= 4 else np.float64, copy=False)
    return values.astype(kind.newbyteorder("="), copy=False)


def check_pattern(indptr: np.ndarray, indices: np.ndarray, n_entries: int, shape: tuple[int, int], where: str) -> None:
    """Raise where the rows or columns of a CSR matrix are not those of its shape."""
    n_rows, n_columns = shape
    check_pointers(indptr, n_entries, n_rows, where)
    if len(indices) != n_entries:
        raise ValueError(f"{where} is damaged: it has {n_entries} values, and {len(indices)} columns of them.")
    if n_entries and not 0 <= indices.min() <= indices.max() < n_columns:
        raise ValueError(f"{where} is damaged: columns of its entries are not all between 0 and {n_columns - 1}.")


def check_pointers(indptr: np.ndarray, n_entries: int, n_rows: int, where: str) -> None:
    """Raise where row pointers do not go from the first entry to the last."""
    if (
        len(indptr) != n_rows + 1
        or indptr[0] != 0
        or indptr[-1] != n_entries
        or (np.diff(indptr.astype(np.int64, copy=False)) < 0).any()
    ):
        raise ValueError(f"{where} is damaged: its row pointers do not go from 0 to {n_entries}, its entries.")


def _wide(kind: np.dtype) -> np.dtype:
    if kind.kind in "iub":
        return np.dtype(np.int64)
    return np.dtype(np.float32 if kind.itemsize <= 4 else np.float64)


def _numpy_type(kind: Any) -> np.dtype:
    """Type of numpy for a column: nullable ones need room for NaN."""
    return kind if isinstance(kind, np.dtype) else np.dtype(np.float64)
