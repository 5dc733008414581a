"""Reading expression for evaluation: any matrix of an AnnData, its genes and its scale."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, lookup, near_match
from stdenoise._io.matrix import read_numbers
from stdenoise._io.read import layers_of, read_dense, read_highly_variable
from stdenoise.spatial.normalize import Matrix, lognorm

if TYPE_CHECKING:
    from anndata import AnnData


logger = logging.getLogger("stdenoise")

_LOOKED_AT = 2**20
"""Values that tell whether all are whole numbers."""


@dataclass(frozen=True)
class Expression:
    """Values of some genes.

    Parameters
    ----------
    values
        Dense or CSR, shape `(n_spots, n_genes)`; may share memory with the AnnData, so it is never changed.
    genes
        Names of the columns.
    where
        How the matrix is called, for messages.
    find_scale
        Finds `scale`; called where the scale matters.
    """

    values: Matrix
    genes: pd.Index
    where: str
    find_scale: Callable[[], str]

    @cached_property
    def scale(self) -> str:
        """`"counts"` (raw or expected counts) or `"log1p"` (`log1p` of counts per 10 000)."""
        return self.find_scale()

    def lognorm(self) -> Matrix:
        """`log1p` of counts scaled to 10 000 per spot; values on that scale already are returned as they are."""
        return self.values if self.scale == "log1p" else lognorm(self.values)

    def on_scale(self, scale: str) -> Matrix:
        """Return the values as stored (`"stored"`) or as `log1p` of counts per 10 000 (`"log1p"`)."""
        check_choice("scale", scale, ["log1p", "stored"])
        return self.lognorm() if scale == "log1p" else self.values


def read_expression(
    adata: AnnData,
    layer: str | None = None,
    *,
    genes: Sequence[str] | str | None = None,
    scale: str = "auto",
) -> Expression:
    """Read a matrix of expression.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    layer
        `None` for `X`, a name in `layers`, a DataFrame in `obsm` (a denoised gene subset), or the key of a denoised
        result, which stands for its mean.
    genes
        All genes of the matrix, `"highly_variable"`, or names; the columns come in this order.
    scale
        `"counts"`, `"log1p"`, or `"auto"`: what stdenoise stored about the layer, or the user in `uns["scales"]`, and counts for others.

    Raises
    ------
    KeyError
        There is no such layer or gene.
    TypeError, ValueError
        The values are not finite numbers, or the scale is not valid.
    """
    check_choice("scale", scale, ["auto", "counts", "log1p"])
    values, names, where, name = _find(adata, layer)
    values = read_numbers(values, where)
    data = values.data if sparse.issparse(values) else values
    if not np.isfinite(data).all():
        raise ValueError(f"{where} has {(~np.isfinite(data)).sum()} NaN or infinite values.")
    if genes is not None:
        positions = _positions(adata, names, genes, where)
        values, names = values[:, positions], names[positions]
    if sparse.issparse(values):
        values = sparse.csr_matrix(values)
        if not values.has_canonical_format:
            values = values.copy()
            values.sum_duplicates()

    def find_scale() -> str:
        return scale if scale != "auto" else _stored_scale(adata, name) or _assumed_scale(adata, name, data, where)

    return Expression(values, names, where, find_scale)


def _find(adata: AnnData, layer: str | None) -> tuple[Any, pd.Index, str, str]:
    """Values, names of the columns, how they are called, and their name: `"X"`, or that of a layer or DataFrame."""
    if layer is None:
        if adata.X is None:
            raise ValueError(f"adata.X is None; name a layer, one of {list(layers_of(adata))}.")
        return adata.X, adata.var_names, "adata.X", "X"
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a name or None, not {layer!r}.")
    frames = [name for name, value in adata.obsm.items() if isinstance(value, pd.DataFrame)]
    record = adata.uns.get(layer)
    if layer not in adata.layers and layer not in frames and isinstance(record, Mapping) and "written" in record:
        layer = _keys.ResultKeys(layer).mean
    if layer in adata.layers:
        return adata.layers[layer], adata.var_names, f"adata.layers[{layer!r}]", layer
    if layer in frames:
        frame = adata.obsm[layer]
        return frame, frame.columns, f"adata.obsm[{layer!r}]", layer
    available = [*layers_of(adata), *frames]
    raise KeyError(
        f"{layer!r} is neither a layer nor a denoised result; there are {available or 'none'}, and None stands for X."
        f"{near_match(layer, available)}"
    )


def _stored_scale(adata: AnnData, name: str) -> str | None:
    """Return the scale that the user or a denoised result has recorded; `None` where nothing is known."""
    said = adata.uns.get(_keys.SCALES, {})
    if isinstance(said, Mapping) and name in said:
        check_choice(f"adata.uns[{_keys.SCALES!r}][{name!r}]", str(said[name]), ["counts", "log1p"])
        return str(said[name])
    for key, record in adata.uns.items():
        if not (isinstance(record, Mapping) and "written" in record):
            continue
        if name == record.get("place", _keys.ResultKeys(str(key)).mean):
            # Of values that scanpy has logged since then, nothing is known.
            return None if name == "X" and "log1p" in adata.uns else str(record.get("scale", "counts"))
    return None


def _assumed_scale(adata: AnnData, name: str, data: np.ndarray, where: str) -> str:
    """Return `"counts"`, and say so where the values do not look like it; raise for a result that has lost its record."""
    some = data.reshape(-1)[:_LOOKED_AT]
    if some.dtype.kind != "f" or (some == np.rint(some)).all():
        return "counts"
    advice = f"Say it: adata.uns[{_keys.SCALES!r}] = {{{name!r}: 'counts'}}, or 'log1p'."
    key = name.removesuffix("_mean")
    if name not in (key, _keys.TRUE_MEAN):
        raise ValueError(
            f"nothing says on which scale {where} is: it looks like a result of stdenoise, but adata.uns[{key!r}], its record, is "
            f"not there, as after ad.concat without uns_merge='first'. {advice}"
        )
    if name != _keys.TRUE_MEAN:
        logged = " scanpy's log1p was run on this AnnData." if name == "X" and "log1p" in adata.uns else ""
        logger.warning(
            "%s has fractional values, such as %g, and is taken for counts.%s %s",
            where,
            some[some != np.rint(some)][0],
            logged,
            advice,
        )
    return "counts"


def _positions(adata: AnnData, names: pd.Index, genes: Sequence[str] | str, where: str) -> np.ndarray:
    if isinstance(genes, str):
        if genes != _keys.HIGHLY_VARIABLE:
            raise ValueError(f"genes={genes!r} is not valid; choose None, 'highly_variable' or a list of gene names.")
        chosen = adata.var_names[read_highly_variable(adata)]
        positions = np.flatnonzero(names.isin(chosen))
    else:
        wanted = list(genes)
        positions = names.get_indexer(pd.Index(wanted))
        if (positions < 0).any():
            unknown = [gene for gene, position in zip(wanted, positions, strict=True) if position < 0]
            raise KeyError(
                f"{len(unknown)} of {len(wanted)} genes are not in {where}: {unknown[:5]}.{near_match(str(unknown[0]), names)}"
            )
    if len(positions) == 0:
        raise ValueError(f"genes={genes!r} selects no gene of {where}.")
    return np.asarray(positions)


def read_values(
    adata: AnnData, *, layer: str | None, genes: Sequence[str] | str | None, use_rep: str | None, scale: str
) -> tuple[Matrix, str | None]:
    """Read what is clustered: expression, or a matrix of `obsm` as it is, which comes with its name."""
    if use_rep is None:
        return read_expression(adata, layer, genes=genes).on_scale(scale), None
    given = [name for name, value in (("layer", layer), ("genes", genes)) if value is not None]
    if given:
        raise ValueError(f"{' and '.join(given)} do not apply with use_rep={use_rep!r}, which is clustered as it is.")
    where = f"adata.obsm[{use_rep!r}]"
    values = lookup(adata.obsm, use_rep, where="adata.obsm")
    points = read_dense(values, where).astype(np.float64)
    if points.ndim != 2:
        raise TypeError(f"{where} must be a matrix, not of shape {points.shape}.")
    bad = int((~np.isfinite(points).all(axis=1)).sum())
    if bad:
        raise ValueError(f"{where} has NaN or infinite values in {bad} of {len(points)} spots.")
    return points, where
