"""The back door between tensors and AnnData: results and their records, written and read again.

`write_denoised` takes the `Denoised` of a method. Nothing else writes results into an AnnData.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
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
from stdenoise.spatial.results import Denoised

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
            f"{', '.join(taken)} exists and was not written by stdenoise; choose another name with key_added=."
        )


def write_denoised(
    adata: AnnData,
    result: Denoised,
    *,
    key: str,
    positions: np.ndarray | None,
    provenance: Mapping[str, Any],
    whole: bool = False,
    dtype: str = "float32",
) -> None:
    """Open the back door: store a result, its provenance and its history.

    Everything is converted before anything is stored, so that a failure leaves the AnnData as it was. What an earlier run
    under the same key wrote is replaced as a whole.

    Parameters
    ----------
    adata
        Is changed.
    result
        Values of the modelled genes.
    key
        Prefix of the results.
    positions
        Modelled columns, in the order of the result; `None` for all genes, in the order of the AnnData.
    provenance
        Method, parameters and the like.
    whole
        Whether the columns are all genes in another order, rather than a choice of genes.
    dtype
        Type of the arrays that have the size of the data, or `ROUNDED`.
    """
    names = ResultKeys(key)
    # In the order of the AnnData.
    columns = slice(None) if positions is None else np.argsort(positions)
    genes = None if positions is None or whole else adata.var_names[np.sort(positions)]
    arrays = {
        name: tensor
        for name, tensor in (
            (names.mean, result.mean),
            (names.dispersion, result.dispersion),
            (names.dropout, result.dropout),
        )
        if tensor is not None
    }
    for name, tensor in arrays.items():
        if tensor.shape != result.mean.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the mean {tuple(result.mean.shape)}.")
    size = sum(tensor.numel() for tensor in arrays.values()) * (2 if dtype == "float16" else 4)
    logger.info("storing %d arrays of %d x %d, %.2f GB", len(arrays), *result.mean.shape, size / 1e9)

    fields: dict[str, Any] = {}
    for name, tensor in arrays.items():
        values, clipped = narrowed(tensor.cpu().numpy()[:, columns], dtype)
        if clipped:
            logger.warning(CLIPPED, name)
        if genes is None:
            fields[f"layers/{name}"] = values
        else:
            fields[f"obsm/{name}"] = pd.DataFrame(values, index=adata.obs_names, columns=genes)
    if genes is not None:
        modelled = np.zeros(adata.n_vars, dtype=bool)
        modelled[positions] = True
        fields[f"var/{names.modelled}"] = modelled
    if result.latent is not None:
        fields[f"obsm/{names.latent}"] = result.latent.cpu().numpy()
    if result.attention is not None:
        crow, col, weights = (part.cpu().numpy() for part in result.attention)
        fields[f"obsp/{names.attention}"] = sparse.csr_matrix((weights, col, crow), shape=(adata.n_obs,) * 2)
    place = f"uns/{names.uns}"
    fields[place] = result_record(
        provenance, scale=result.scale, genes=genes, history=result.history, written=[*fields, place]
    )

    stale = [path for path in owned_places(adata, key) if path not in fields]
    before = {path: _get(adata, path) for path in [*stale, *fields]}
    try:
        for path in before:
            _put(adata, path, fields.get(path))
    except BaseException:
        for path, value in before.items():
            _put(adata, path, value)
        raise
    logger.info("wrote %s", ", ".join(fields))


def result_record(
    provenance: Mapping[str, Any],
    *,
    scale: str,
    genes: pd.Index | None,
    history: Mapping[str, Sequence[float]],
    written: Sequence[str],
) -> dict[str, Any]:
    """Return what is stored in `uns` about a result; without names of genes, all were modelled."""
    return {
        **provenance,
        "scale": scale,
        "genes": "all" if genes is None else genes.to_numpy(dtype=object),
        "history": {name: np.asarray(values) for name, values in history.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("stdenoise", "torch", "anndata")},
        },
        "written": list(written),
    }


def stored_provenance(adata: AnnData, key: str) -> Mapping[str, Any]:
    """Return what `write_denoised` stored in `uns` under this key, or raise a `KeyError` that lists the results there are."""
    results = {k: v for k, v in adata.uns.items() if isinstance(v, Mapping) and "written" in v}
    return lookup(results, key, where="the denoised results of adata", advice="Run st.tl.denoise(adata) first.")


def read_denoised(adata: AnnData, key: str) -> AnnData:
    """Return a stored result as an AnnData of the modelled genes; nothing in it is shared with the original."""
    provenance = stored_provenance(adata, key)
    names = ResultKeys(key)
    var = adata.var[adata.var[names.modelled]] if names.modelled in adata.var else adata.var
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
        uns={key: deepcopy(dict(provenance))},
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
