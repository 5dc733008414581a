"""The back door between tensors and AnnData: results and their records, written and read again.

`write_denoised` takes the `Block` of a method. Nothing else writes results into an AnnData.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stdenoise._base import keys as _keys
from stdenoise._base.checks import lookup
from stdenoise._base.keys import ResultKeys
from stdenoise._io.rows import CLIPPED, narrowed
from stdenoise.spatial.results import ARRAYS, Array, Block, row_blocks

logger = logging.getLogger("stdenoise")


def check_key_is_free(adata: AnnData, key: str, layers: Collection[str] | None = None) -> None:
    """Raise when a result under this key would overwrite something that stdenoise did not write.

    Parameters
    ----------
    adata
        Section.
    key
        Prefix of the results.
    layers
        Names of its layers, where it has been opened without them.
    """
    names = ResultKeys(key)
    owned = set(owned_places(adata, key))
    targets = [f"uns/{names.uns}", f"obsm/{names.latent}", f"obsp/{names.attention}", f"var/{names.modelled}"]
    for field_name in (names.mean, names.dispersion, names.dropout):
        targets += [f"layers/{field_name}", f"obsm/{field_name}"]
    there = {f"layers/{name}" for name in layers or ()}
    taken = [t for t in targets if t not in owned and (t in there or _holder(adata, t)[1] in _holder(adata, t)[0])]
    if taken:
        raise ValueError(
            f"{', '.join(taken)} exists, and no record in adata.uns[{names.uns!r}] says that stdenoise wrote it (ad.concat drops the record "
            "without uns_merge='first'); choose another name with key_added=, or remove it."
        )


@dataclass(frozen=True)
class Places:
    """Where a result goes in an AnnData, and in which order its columns come; decided once for every way of writing.

    Parameters
    ----------
    key
        Prefix of the results.
    var_names
        Names of all genes of the section.
    positions
        Modelled columns, in the order of the result; `None` for all, in the order of the section.
    is_choice
        Whether they are a choice of genes, which is kept in `obsm`, rather than all genes in some order.
    """

    key: str
    var_names: pd.Index
    positions: np.ndarray | None = None
    is_choice: bool = False

    @cached_property
    def names(self) -> ResultKeys:
        """Names of the arrays."""
        return ResultKeys(self.key)

    @property
    def columns(self) -> Any:
        """Columns of the result in the order of the section."""
        return slice(None) if self.positions is None else np.argsort(self.positions)

    @property
    def genes(self) -> pd.Index | None:
        """Names of the genes of a choice."""
        return self.var_names[np.sort(self.positions)] if self.is_choice and self.positions is not None else None

    def place(self, array: str) -> str:
        """Place of an array of the result, such as `"layers/dusted_mean"`."""
        if array == "latent":
            return f"obsm/{self.names.latent}"
        return f"{'obsm' if self.is_choice else 'layers'}/{getattr(self.names, array)}"

    def ordered(self, array: str, values: np.ndarray) -> np.ndarray:
        """Values of an array with the columns in the order of the section."""
        return values if array == "latent" else values[:, self.columns]

    def fields(
        self,
        arrays: Mapping[str, Any],
        provenance: Mapping[str, Any],
        scale: str,
        history: Mapping[str, Sequence[float]],
    ) -> dict[str, Any]:
        """All that is written by place: these, which genes were modelled, and the record."""
        fields = dict(arrays)
        if self.is_choice:
            modelled = np.zeros(len(self.var_names), dtype=bool)
            modelled[self.positions] = True
            fields[f"var/{self.names.modelled}"] = modelled
        record = f"uns/{self.names.uns}"
        genes = self.genes
        fields[record] = {
            **provenance,
            "scale": scale,
            "genes": "all" if genes is None else genes.to_numpy(dtype=object),
            "history": {name: np.asarray(values) for name, values in history.items()},
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("stdenoise", "torch", "anndata")},
            },
            "written": [*fields, record],
        }
        return fields


def write_denoised(
    adata: AnnData, result: Block, places: Places, provenance: Mapping[str, Any], *, dtype: str = "float32"
) -> None:
    """Store a result, its provenance and its history in an AnnData.

    Everything is converted before anything is stored, so that a failure leaves the AnnData as it was. What an earlier run
    under the same key wrote is replaced as a whole.

    Parameters
    ----------
    adata
        Is changed.
    result
        Values of the modelled genes.
    places
        Where they go.
    provenance
        Method, parameters and the like.
    dtype
        Type of the arrays that have the size of the data, or `ROUNDED`.
    """
    arrays: dict[str, Any] = {}
    for name in ARRAYS:
        array: Array | None = getattr(result, name)
        if array is None:
            continue
        if name != "latent" and array.shape != result.mean.shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}, the mean {tuple(result.mean.shape)}.")
        values: Any = None
        for rows, block in row_blocks(array):
            part, clipped = places.ordered(name, block.cpu().numpy()), False
            check_sound(part, getattr(places.names, name), result.scale)
            if name != "latent":
                part, clipped = narrowed(part, dtype)
            if clipped:
                logger.warning(CLIPPED, getattr(places.names, name))
            if len(part) == len(array):
                values = part
                break
            if values is None:
                values = np.empty(array.shape, part.dtype)
            values[rows] = part
        if places.is_choice and name != "latent":
            values = pd.DataFrame(values, index=adata.obs_names, columns=places.genes)
        arrays[places.place(name)] = values
    if result.attention is not None:
        crow, col, weights = (part.cpu().numpy() for part in result.attention)
        attention = sparse.csr_matrix((weights, col, crow), shape=(adata.n_obs,) * 2)
        arrays[f"obsp/{places.names.attention}"] = attention
    fields = places.fields(arrays, provenance, result.scale, result.history)
    logger.info(
        "storing %d arrays of %d x %d", sum(name.startswith(("layers", "obsm")) for name in fields), *result.mean.shape
    )

    stale = [place for place in owned_places(adata, places.key) if place not in fields]
    before = {place: _get(adata, place) for place in [*stale, *fields]}
    try:
        for place in before:
            _put(adata, place, fields.get(place))
    except BaseException:
        for place, value in before.items():
            _put(adata, place, value)
        raise
    logger.info("wrote %s", ", ".join(fields))


def check_sound(values: np.ndarray, name: str, scale: str) -> None:
    """Raise where a result is none: not finite, or a negative mean of counts."""
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise FloatingPointError(f"{name} has {bad} NaN or infinite values of {values.size}: nothing is written.")
    if scale == "counts" and name.endswith("_mean") and (values < 0).any():
        raise FloatingPointError(f"{name} has negative values, such as {values.min():g}: nothing is written.")


def stored_provenance(adata: AnnData, key: str) -> Mapping[str, Any]:
    """Return what `write_denoised` stored in `uns` under this key, or raise a `KeyError` that lists the results there are."""
    results = {k: v for k, v in adata.uns.items() if isinstance(v, Mapping) and "written" in v}
    advice = "Run st.tl.denoise(adata) first."
    if (mean := ResultKeys(str(key)).mean) in (*adata.layers, *adata.obsm):
        advice = f"{mean!r} is there without its record in adata.uns, as after ad.concat: pass uns_merge='first'."
    return lookup(results, key, where="the denoised results of adata", advice=advice)


def read_denoised(adata: AnnData, key: str) -> AnnData:
    """Return a stored result as an AnnData of the modelled genes; nothing in it is shared with the original."""
    provenance = stored_provenance(adata, key)
    names = ResultKeys(key)
    var = adata.var
    if not isinstance(provenance["genes"], str):
        genes = pd.Index(provenance["genes"])
        # The mark survives a choice of genes; ad.concat drops it.
        var = var[var[names.modelled]] if names.modelled in var else var[var.index.isin(genes)]
        unknown = list(var.index.difference(genes)) or ([] if len(var) else list(adata.var_names))
        if unknown:
            raise KeyError(
                f"{key!r} has no genes {unknown[:3]}: when it was made, its {len(genes)} genes were called {list(genes[:3])} and so on. "
                "Give adata.var_names their old names, or denoise again."
            )
    values = {
        name: np.array(adata.layers[name] if name in adata.layers else adata.obsm[name][list(var.index)])
        for name in (names.mean, names.dispersion, names.dropout)
        if name in adata.layers or name in adata.obsm
    }
    kept = [name for name in (_keys.SPATIAL, _keys.SPATIAL_FALLBACK, names.latent) if name in adata.obsm]
    return AnnData(
        X=values.pop(names.mean),
        obs=adata.obs.copy(),
        var=var.copy(),
        layers={name.removeprefix(f"{key}_"): array for name, array in values.items()},
        obsm={name: np.array(adata.obsm[name]) for name in kept},
        # Where the mean is here, and thus the scale of which values the record has.
        uns={key: {**deepcopy(dict(provenance)), "place": "X"}},
    )


def owned_places(adata: AnnData, key: str) -> list[str]:
    """Places that an earlier run under this key wrote to, such as `"layers/dusted_mean"`."""
    record = adata.uns.get(key)
    return [str(path) for path in record.get("written", [])] if isinstance(record, Mapping) else []


def _get(adata: AnnData, path: str) -> Any:
    holder, name = _holder(adata, path)
    return holder[name] if name in holder else None


def _put(adata: AnnData, path: str, value: Any) -> None:
    """Store a value; `None` removes it."""
    holder, name = _holder(adata, path)
    if value is not None:
        holder[name] = value
    elif name in holder:
        del holder[name]


def _holder(adata: AnnData, path: str) -> tuple[Any, str]:
    attribute, name = path.split("/", 1)
    return getattr(adata, attribute), name
