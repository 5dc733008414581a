"""The two doors between AnnData and tensors, and what passes through them.

`read_spots` validates and hands `Spots` to a method; `write_denoised` takes the method's `Denoised` back. Nothing else reads
counts from an AnnData or writes results into one.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise import _keys
from stdenoise._context import Context, read_context
from stdenoise._expression import lognorm
from stdenoise._keys import ResultKeys
from stdenoise._validate import check_counts, lookup, near_match
from stdenoise.graph.csr import SpatialGraph, to_csr_tensor

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stdenoise")


@dataclass(frozen=True)
class Spots:
    """All that a method may see; on one device.

    Parameters
    ----------
    counts
        Raw counts, CSR, shape `(n_spots, n_genes)`.
    lognorm
        `log1p` of counts scaled to 10 000 per spot over these genes; CSR of the same pattern.
    size_factors
        Total count over all genes of the object divided by its median over non-empty spots, shape `(n_spots,)`; 1 for an
        empty spot.
    nonempty
        Whether a spot has any count, shape `(n_spots,)`.
    genes
        Gene names, in the order of the columns.
    graph, coordinates, features, libraries
        As in `Context`: `None` where the method does not need it.
    """

    counts: Tensor
    lognorm: Tensor
    size_factors: Tensor
    nonempty: Tensor
    genes: tuple[str, ...]
    graph: SpatialGraph | None = None
    coordinates: Tensor | None = None
    features: Tensor | None = None
    libraries: Tensor | None = None


@dataclass(frozen=True)
class Denoised:
    """All that a method returns.

    Parameters
    ----------
    mean
        Denoised expression, shape `(n_spots, n_genes)`.
    scale
        Scale of the mean.
    dispersion, dropout
        Inverse dispersion and dropout probability, of the shape of the mean, where the model has them.
    latent
        Shape `(n_spots, n_latent)`.
    attention
        Graph and weight of each of its edges.
    history
        Named values per epoch.
    """

    mean: Tensor
    scale: Literal["counts", "log1p"]
    dispersion: Tensor | None = None
    dropout: Tensor | None = None
    latent: Tensor | None = None
    attention: tuple[SpatialGraph, Tensor] | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)


def select_genes(adata: AnnData, genes: str | Sequence[str] | None) -> np.ndarray | None:
    """Resolve a gene choice to column positions in `var` order; `None` stands for all genes."""
    if genes is None:
        return None
    if isinstance(genes, str):
        if genes != _keys.HIGHLY_VARIABLE:
            raise ValueError(
                f"genes={genes!r} is not valid; choose None (all genes), 'highly_variable' or a list of gene names."
            )
        chosen = lookup(
            adata.var, _keys.HIGHLY_VARIABLE, where="adata.var", advice="Run sc.pp.highly_variable_genes first."
        )
        if chosen.isna().any():
            raise ValueError(f"adata.var['highly_variable'] has {chosen.isna().sum()} missing values.")
        positions = np.flatnonzero(chosen.to_numpy(dtype=bool))
    else:
        if not isinstance(genes, Iterable):
            raise TypeError(f"genes must be None, 'highly_variable' or a list of gene names, not {genes!r}.")
        names = list(genes)
        unknown = [name for name in names if name not in adata.var_names]
        if unknown:
            hint = near_match(str(unknown[0]), adata.var_names)
            raise KeyError(f"{len(unknown)} of {len(names)} genes are not in adata.var_names: {unknown[:5]}.{hint}")
        if len(set(names)) < len(names):
            raise ValueError(f"genes lists {len(names) - len(set(names))} names twice.")
        positions = np.sort(adata.var_names.get_indexer(names))
    if len(positions) == 0:
        raise ValueError(f"genes={genes!r} selects no gene.")
    return positions


def read_counts(adata: AnnData, layer: str | None, *, allow_fractions: bool = False) -> sparse.csr_matrix:
    """Read and check the raw counts of all genes, as a CSR matrix that may share memory with the AnnData."""
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    matrix = adata.X if layer is None else lookup(adata.layers, layer, where="adata.layers")
    if matrix is None:
        raise ValueError(f"adata.X is None; pass layer=, one of {list(adata.layers)}.")
    if not sparse.issparse(matrix) and not isinstance(matrix, np.ndarray):
        raise TypeError(f"{where} must be a numpy array or a scipy sparse matrix, not {type(matrix).__name__}.")
    check_counts(
        matrix.data if sparse.issparse(matrix) else matrix[matrix != 0], where=where, allow_fractions=allow_fractions
    )
    return sparse.csr_matrix(matrix)


def read_spots(
    adata: AnnData,
    *,
    layer: str | None,
    positions: np.ndarray | None,
    graph_key: str | None,
    library_key: str | None,
    spatial_key: str | None = None,
    features_key: str | None = None,
    allow_fractions: bool,
    device: torch.device,
) -> Spots:
    """Open the front door: validate an AnnData and move what a method needs to the device.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    layer
        Layer of raw counts; `None` for `X`.
    positions
        Columns to model, from `select_genes`.
    graph_key, spatial_key, features_key
        Keys of graph, coordinates and image features; `None` for methods without them.
    library_key
        Column of `obs` that no edge may cross.
    allow_fractions
        Accept fractional values.
    device
        Where the tensors go.
    """
    counts = read_counts(adata, layer, allow_fractions=allow_fractions)
    context = read_context(
        adata,
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
        device=device,
    )
    return make_spots(counts, tuple(map(str, adata.var_names)), positions=positions, context=context, device=device)


def make_spots(
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    *,
    positions: np.ndarray | None,
    context: Context,
    device: torch.device,
) -> Spots:
    """Move checked counts to the device, with size factors over all genes and normalised values over the modelled ones.

    Parameters
    ----------
    counts
        Raw counts of all genes, shape `(n_spots, n_all_genes)`; not changed.
    genes
        Names of all genes.
    positions
        Columns to model; `None` for all.
    context
        What surrounds the spots, on the device.
    device
        Where the tensors go.
    """
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    nonempty = total > 0
    if not nonempty.any():
        raise ValueError(f"all {counts.shape[0]} spots are empty: there is nothing to model.")
    if not nonempty.all():
        logger.info("%d of %d spots are empty: kept, but not scored in training", (~nonempty).sum(), len(nonempty))
    size_factors = np.where(nonempty, total / np.median(total[nonempty]), 1.0)

    if positions is not None:
        counts = counts[:, positions]
        genes = [genes[position] for position in positions]
    if not counts.has_canonical_format:
        counts = counts.copy()
        counts.sum_duplicates()
    return Spots(
        counts=to_csr_tensor(counts, dtype=torch.float32, device=device),
        lognorm=to_csr_tensor(lognorm(counts), dtype=torch.float32, device=device),
        size_factors=torch.tensor(size_factors, dtype=torch.float32, device=device),
        nonempty=torch.tensor(nonempty, device=device),
        genes=tuple(genes),
        **vars(context),
    )


def check_key_is_free(adata: AnnData, key: str) -> None:
    """Raise when a result under this key would overwrite something that stdenoise did not write."""
    names = ResultKeys(key)
    owned = set(_owned(adata, key))
    targets = [f"uns/{names.uns}", f"obsm/{names.latent}", f"obsp/{names.attention}", f"var/{names.modelled}"]
    for field_name in (names.mean, names.dispersion, names.dropout):
        targets += [f"layers/{field_name}", f"obsm/{field_name}"]
    taken = [t for t in targets if t not in owned and _holder(adata, t)[1] in _holder(adata, t)[0]]
    if taken:
        raise ValueError(
            f"{', '.join(taken)} exists and was not written by stdenoise; choose another name with key_added=."
        )


def write_denoised(
    adata: AnnData, result: Denoised, *, key: str, positions: np.ndarray | None, provenance: Mapping[str, Any]
) -> None:
    """Open the back door: store a result, its provenance and its history.

    Everything is converted before anything is stored, so that a failure leaves the AnnData as it was. What an earlier run
    under the same key wrote is replaced as a whole.
    """
    import pandas as pd

    names = ResultKeys(key)
    genes = adata.var_names if positions is None else adata.var_names[positions]
    arrays = {
        name: tensor
        for name, tensor in (
            (names.mean, result.mean),
            (names.dispersion, result.dispersion),
            (names.dropout, result.dropout),
        )
        if tensor is not None
    }
    size = len(arrays) * adata.n_obs * len(genes) * 4
    logger.info("storing %d arrays of %d x %d, %.2f GB", len(arrays), adata.n_obs, len(genes), size / 1e9)

    fields: dict[str, Any] = {}
    for name, tensor in arrays.items():
        values = tensor.cpu().numpy()
        if positions is None:
            fields[f"layers/{name}"] = values
        else:
            fields[f"obsm/{name}"] = pd.DataFrame(values, index=adata.obs_names, columns=genes)
    if positions is not None:
        modelled = np.zeros(adata.n_vars, dtype=bool)
        modelled[positions] = True
        fields[f"var/{names.modelled}"] = modelled
    if result.latent is not None:
        fields[f"obsm/{names.latent}"] = result.latent.cpu().numpy()
    if result.attention is not None:
        graph, weights = result.attention
        fields[f"obsp/{names.attention}"] = sparse.csr_matrix(
            (weights.cpu().numpy(), graph.col.cpu().numpy(), graph.crow.cpu().numpy()), shape=(adata.n_obs,) * 2
        )
    fields[f"uns/{names.uns}"] = {
        **provenance,
        "scale": result.scale,
        "genes": "all" if positions is None else genes.to_numpy(dtype=object),
        "history": {name: np.asarray(values) for name, values in result.history.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("stdenoise", "torch", "anndata")},
        },
        "written": [*fields, f"uns/{names.uns}"],
    }

    stale = [path for path in _owned(adata, key) if path not in fields]
    before = {path: _get(adata, path) for path in [*stale, *fields]}
    try:
        for path in before:
            _put(adata, path, fields.get(path))
    except BaseException:
        for path, value in before.items():
            _put(adata, path, value)
        raise
    logger.info("wrote %s", ", ".join(fields))


def stored_provenance(adata: AnnData, key: str) -> Mapping[str, Any]:
    """Return what `write_denoised` stored in `uns` under this key, or raise a `KeyError` that lists the results there are."""
    results = {k: v for k, v in adata.uns.items() if isinstance(v, Mapping) and "written" in v}
    return lookup(results, key, where="the denoised results of adata", advice="Run st.tl.denoise(adata) first.")


def read_denoised(adata: AnnData, key: str) -> AnnData:
    """Return a stored result as an AnnData of the modelled genes; nothing in it is shared with the original."""
    from anndata import AnnData

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


def _owned(adata: AnnData, key: str) -> list[str]:
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
