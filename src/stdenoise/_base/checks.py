"""Checks of user input. Every error names the offending value and the valid ones."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from stdenoise._base import keys as _keys

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stdenoise")

T = TypeVar("T")

ADVICE = {
    "graph": "Build the graph first: st.pp.spatial_graph(adata).",
    "coordinates": "Store the coordinates of the spots there, or name their key.",
    "features": "Compute them first: st.pp.image_features(adata).",
}
"""What to do about an input that is not there."""
_NAME_BYTES = 200
"""File systems take 255, and suffixes are added."""
_SEPARATORS = {"/", "\\", "\0"}
_RESERVED = (".", "..", ".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")
"""Where files have a meaning of their own, in folders or in zarr."""


def near_match(value: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" when a choice resembles the value, else nothing."""
    match = difflib.get_close_matches(value, [choice for choice in choices if isinstance(choice, str)], n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise unless the value is one of the choices."""
    if value not in choices:
        hint = near_match(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        raise ValueError(f"{name}={value!r} is not valid; choose from {list(choices)}.{hint}")


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    integer: bool = False,
) -> None:
    """Raise unless the value is a finite number in range."""
    kind = "an integer" if integer else "a number"
    wanted = kind + (f" >= {minimum}" if minimum is not None else "") + (f" > {above}" if above is not None else "")
    valid_type = isinstance(value, int | np.integer if integer else int | float | np.integer | np.floating)
    if not valid_type or isinstance(value, bool):
        raise TypeError(f"{name} must be {wanted}, not {value!r}.")
    if (
        not -math.inf < value < math.inf
        or (minimum is not None and value < minimum)
        or (above is not None and value <= above)
    ):
        raise ValueError(f"{name} must be {wanted}, not {value!r}.")


def check_name(argument: str, value: Any) -> None:
    """Raise unless the value can be a key of an AnnData in every format: it becomes the name of a file or folder there."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{argument} must be a name, not {value!r}.")
    if set(value) & _SEPARATORS or value in _RESERVED:
        raise ValueError(
            f"{argument}={value!r} is no name: it must not contain '/', a backslash or NUL, or be one of {list(_RESERVED)}."
        )
    if len(value.encode(errors="surrogatepass")) > _NAME_BYTES:
        raise ValueError(f"{argument}={value!r} is too long for a name: more than {_NAME_BYTES} bytes.")


def lookup(mapping: Mapping[str, T], key: str, *, where: str, advice: str = "") -> T:
    """Return `mapping[key]`, or raise a `KeyError` that lists what is there."""
    if not isinstance(key, str):
        raise TypeError(f"a key of {where} must be a string, not {key!r}.")
    if key not in mapping:
        available = ", ".join(map(repr, mapping)) or "nothing"
        advice = f" {advice}" if advice else ""
        raise KeyError(f"{key!r} is not in {where}, which has {available}.{near_match(key, mapping)}{advice}")
    return mapping[key]


def refuse_key(name: str, key: str, mapping: Mapping[str, Any], place: str, *, where: str, why: str) -> NoReturn:
    """Raise for a key that nothing reads: a `KeyError` where it names nothing, else a `TypeError`."""
    lookup(mapping, place, where=where)
    raise TypeError(f"{name}={key!r} has no effect {why}.")


def check_anndata(adata: Any, *, in_memory: bool = True) -> None:
    """Raise unless the object is an AnnData with spots and genes, in memory if asked for."""
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    if in_memory and adata.isbacked:
        raise ValueError(f"adata is backed by {str(adata.filename)!r}; load it first: adata = adata.to_memory().")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata is empty: {adata.n_obs} spots x {adata.n_vars} genes.")


def read_libraries(adata: AnnData, library_key: str) -> tuple[list[str], np.ndarray]:
    """Read which library each spot belongs to: the names of those that have spots, and a position in them per spot."""
    import pandas as pd

    column = lookup(adata.obs, library_key, where="adata.obs")
    # A column that was opened lazily is no Series.
    series = column if isinstance(column, pd.Series) else pd.Series(np.asarray(column))
    column = series.astype("category").cat.remove_unused_categories()
    codes = column.cat.codes.to_numpy()
    if (codes < 0).any():
        raise ValueError(f"adata.obs[{library_key!r}] has {(codes < 0).sum()} missing values.")
    return [str(name) for name in column.cat.categories], codes


def output_of(adata: AnnData, *, copy: bool) -> AnnData:
    """Return the AnnData to write to: a copy, or the one given, which stops being a view."""
    if copy:
        return adata.copy()
    if adata.is_view:
        # What anndata does at the first write, without its warning: writing is what the caller asked for.
        adata._init_as_actual(adata.copy())
    return adata


def check_unique_genes(adata: AnnData) -> None:
    """Raise when a gene name occurs twice."""
    names = adata.var_names
    if not names.is_unique:
        repeated = list(dict.fromkeys(names[names.duplicated()]))
        raise ValueError(
            f"{len(repeated)} gene names occur more than once, such as {repeated[:3]}; "
            "call adata.var_names_make_unique() first."
        )


def check_counts(values: np.ndarray, *, where: str, allow_fractions: bool) -> None:
    """Raise unless values are raw counts: finite, non-negative and whole.

    Parameters
    ----------
    values
        The stored values (zeros may be missing).
    where
        Name of the matrix, for the message.
    allow_fractions
        Accept fractional values; the user's override.
    """
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise TypeError(f"{where} must hold numbers, not {values.dtype}.")
    if values.size == 0:
        return
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)]
        raise ValueError(f"{where} has {bad.size} NaN or infinite values; raw counts are finite.")
    if values.min() < 0:
        raise ValueError(f"{where} has negative values (smallest {values.min():g}); raw counts are >= 0.")
    if allow_fractions:
        return
    fraction = values != np.rint(values)
    if fraction.any():
        advice = (
            "Pass the layer with raw counts (layer=...); "
            "st.tl.denoise takes the values as they are with check_counts=False."
        )
        example = f"{fraction.sum()} of {values.size} non-zero values are fractional, such as {values[fraction][0]:g}"
        # No count of a spot reaches e^16 (9 million), while few raw maxima stay below 16.
        if values.max() < 16:
            raise ValueError(f"{where} looks log-transformed, not raw counts: {example}, and none exceeds 16. {advice}")
        raise ValueError(f"{where} does not hold raw counts: {example}. {advice}")


def find_spatial_key(adata: AnnData, spatial_key: str) -> str:
    """Return the key, or `"X_spatial"` where `"spatial"` is asked for and only the other is there."""
    if spatial_key == _keys.SPATIAL and spatial_key not in adata.obsm and _keys.SPATIAL_FALLBACK in adata.obsm:
        logger.info("no obsm['spatial']: reading coordinates from obsm['X_spatial']")
        return _keys.SPATIAL_FALLBACK
    return spatial_key


def read_coordinates(adata: AnnData, spatial_key: str) -> np.ndarray:
    """Read the coordinates, shape `(n_spots, 2)` or `(n_spots, 3)`, or raise."""
    spatial_key = find_spatial_key(adata, spatial_key)
    values = lookup(adata.obsm, spatial_key, where="adata.obsm", advice=ADVICE["coordinates"])
    coordinates = np.asarray(values, dtype=np.float64)
    if coordinates.ndim != 2 or coordinates.shape[1] not in (2, 3):
        raise ValueError(f"adata.obsm[{spatial_key!r}] must have 2 or 3 columns, but has shape {coordinates.shape}.")
    bad = int((~np.isfinite(coordinates).all(axis=1)).sum())
    if bad:
        raise ValueError(f"adata.obsm[{spatial_key!r}] has NaN or infinite coordinates in {bad} spots.")
    return coordinates
