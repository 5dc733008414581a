"""The front door between AnnData and tensors, and what passes through it: `Spots` in, `Block` out.

Nothing else reads counts from an AnnData that is in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from stdenoise._base import keys as _keys
from stdenoise._base.checks import lookup, near_match, refuse_key
from stdenoise._base.inputs import Inputs
from stdenoise._base.keys import GraphKeys
from stdenoise._io.matrix import read_numbers
from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.spots import SPATIAL, Tissue

logger = logging.getLogger("stdenoise")

ADVICE = {
    "graph": "Build the graph first: st.pp.spatial_graph(adata).",
    "coordinates": "Store the coordinates of the spots there, or name their key.",
    "features": "Compute them first: st.pp.image_features(adata).",
}
"""What to do about an input that is not there."""


def select_genes(adata: AnnData, genes: str | Sequence[str] | None) -> np.ndarray | None:
    """Resolve a gene choice to column positions in `var` order; `None` stands for all genes."""
    if genes is None:
        return None
    if isinstance(genes, str):
        if genes != _keys.HIGHLY_VARIABLE:
            raise ValueError(
                f"genes={genes!r} is not valid; choose None (all genes), 'highly_variable' or a list of gene names."
            )
        positions = np.flatnonzero(read_highly_variable(adata))
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


def read_highly_variable(adata: AnnData) -> np.ndarray:
    """Read which genes are marked, shape `(n_genes,)`: a column of `True` and `False`, or of 1 and 0."""
    key = _keys.HIGHLY_VARIABLE
    column = lookup(adata.var, key, where="adata.var", advice="Run sc.pp.highly_variable_genes first.")
    if column.isna().any():
        raise ValueError(f"adata.var[{key!r}] has {column.isna().sum()} missing values.")
    values = np.asarray(column.to_list())
    if values.dtype.kind not in "iufb" or not np.isin(values, (0, 1)).all():
        bad = next(value for value in values.tolist() if isinstance(value, str) or value not in (0, 1))
        raise TypeError(
            f"adata.var[{key!r}] must hold True and False, not {bad!r}. "
            f"Of text: adata.var[{key!r}] = adata.var[{key!r}] == 'True'."
        )
    return values.astype(bool)


def read_counts(adata: AnnData, layer: str | None, *, allow_fractions: bool = False) -> sparse.csr_matrix:
    """Read and check the raw counts of all genes, as a CSR matrix that may share memory with the AnnData."""
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    matrix = adata.X if layer is None else lookup(adata.layers, layer, where="adata.layers")
    if matrix is None:
        raise ValueError(f"adata.X is None; pass layer=, one of {list(layers_of(adata))}.")
    matrix = read_numbers(matrix, where)
    check_counts(
        matrix.data if sparse.issparse(matrix) else matrix[matrix != 0], where=where, allow_fractions=allow_fractions
    )
    return sparse.csr_matrix(matrix)


def layers_of(adata: AnnData) -> dict[str, Any]:
    """Layers by name; since anndata 0.13 `adata.layers` has `X`, too, under `None`."""
    return {name: value for name, value in adata.layers.items() if name is not None}


def check_anndata(adata: Any, *, in_memory: bool = True) -> None:
    """Raise unless the object is an AnnData with spots and genes, in memory if asked for."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    if in_memory and adata.isbacked:
        raise ValueError(f"adata is backed by {str(adata.filename)!r}; load it first: adata = adata.to_memory().")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata is empty: {adata.n_obs} spots x {adata.n_vars} genes.")


def read_libraries(adata: AnnData, library_key: str) -> tuple[list[str], np.ndarray]:
    """Read which library each spot belongs to: the names of those that have spots, and a position in them per spot."""
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
            "st.tl.denoise takes the values as they are with st.settings.check_counts = False."
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


def read_dense(values: Any, where: str) -> np.ndarray:
    """Read numbers as a dense array."""
    numbers = read_numbers(values, where)
    dense: np.ndarray = numbers.toarray() if sparse.issparse(numbers) else numbers
    return dense


def read_coordinates(adata: AnnData, spatial_key: str) -> np.ndarray:
    """Read the coordinates, shape `(n_spots, 2)` or `(n_spots, 3)`, or raise."""
    spatial_key = find_spatial_key(adata, spatial_key)
    values = lookup(adata.obsm, spatial_key, where="adata.obsm", advice=ADVICE["coordinates"])
    where = f"adata.obsm[{spatial_key!r}]"
    coordinates = read_dense(values, where).astype(np.float64)
    if coordinates.ndim != 2 or coordinates.shape[1] not in (2, 3):
        raise ValueError(f"{where} must have 2 or 3 columns, but has shape {coordinates.shape}.")
    bad = int((~np.isfinite(coordinates).all(axis=1)).sum())
    if bad:
        raise ValueError(f"{where} has NaN or infinite coordinates in {bad} spots.")
    return coordinates


def read_places(adata: AnnData, spatial_key: str, *, refine: int | None) -> np.ndarray | None:
    """Read the coordinates for a vote of the nearest spots; a key that is given without one is an error."""
    if refine is not None:
        return read_coordinates(adata, spatial_key)
    if spatial_key != _keys.SPATIAL:
        why = "without refine=, which alone reads coordinates"
        refuse_key("spatial_key", spatial_key, adata.obsm, spatial_key, where="adata.obsm", why=why)
    return None


def read_graph(adata: AnnData, graph_key: str) -> sparse.csr_matrix:
    """Read the adjacency matrix of a spatial graph, ours or squidpy's."""
    key = GraphKeys(graph_key).connectivities
    adjacency = lookup(adata.obsp, key, where="adata.obsp", advice=ADVICE["graph"])
    if adjacency.shape != (adata.n_obs, adata.n_obs):
        raise ValueError(
            f"adata.obsp[{key!r}] has shape {adjacency.shape}, but adata has {adata.n_obs} spots; "
            "build the graph again: st.pp.spatial_graph(adata)."
        )
    return sparse.csr_matrix(read_numbers(adjacency, f"adata.obsp[{key!r}]"))


def read_features(adata: AnnData, features_key: str) -> np.ndarray:
    """Read image features, shape `(n_spots, n_features)`, or raise."""
    values = lookup(adata.obsm, features_key, where="adata.obsm", advice=ADVICE["features"])
    where = f"adata.obsm[{features_key!r}]"
    features = read_dense(values, where)
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{where} must have shape (n_spots, n_features), not {features.shape}.")
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise ValueError(f"{where} has NaN or infinite values in {bad} spots.")
    return features


def read_tissue(
    adata: AnnData,
    *,
    graph_key: str | None,
    library_key: str | None,
    spatial_key: str | None,
    features_key: str | None,
    device: torch.device,
) -> Tissue:
    """Read and check what surrounds the spots.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    graph_key, spatial_key, features_key
        Keys of graph, coordinates and image features; `None` for what is not needed.
    library_key
        Column of `obs` that no edge may cross.
    device
        Where the tensors go.
    """
    # Read for methods without a graph, too: a mistyped column is an error, never ignored.
    codes = None if library_key is None else read_libraries(adata, library_key)[1]
    graphs: dict[str, SpatialGraph] = {}
    arrays: dict[str, torch.Tensor] = {}
    if graph_key is not None:
        adjacency = read_graph(adata, graph_key)
        if codes is not None:
            _check_libraries(adjacency, codes, str(library_key))
        graphs[SPATIAL] = SpatialGraph.from_scipy(adjacency, device=device)
    if spatial_key is not None:
        arrays["coordinates"] = torch.tensor(read_coordinates(adata, spatial_key), device=device)
    if features_key is not None:
        arrays["features"] = torch.tensor(read_features(adata, features_key), dtype=torch.float32, device=device)
    if codes is not None:
        arrays["libraries"] = torch.tensor(codes.astype(np.int64), device=device)
    return Tissue(graphs=graphs, arrays=arrays)


def _check_libraries(adjacency: sparse.csr_matrix, codes: np.ndarray, library_key: str) -> None:
    edges = adjacency.tocoo()
    crossing = int((codes[edges.row] != codes[edges.col]).sum())
    if crossing:
        raise ValueError(
            f"{crossing} of {edges.nnz} edges join spots of different {library_key!r}; "
            f"build the graph with st.pp.spatial_graph(adata, library_key={library_key!r})."
        )


def keys_to_read(
    adata: AnnData,
    inputs: Inputs,
    *,
    graph_key: str,
    library_key: str | None,
    spatial_key: str,
    features_key: str | None,
) -> dict[str, str | None]:
    """Return the keys of what at least one of the methods reads, and `None` for the others.

    Parameters
    ----------
    adata
        Annotated data; may have been opened lazily.
    inputs
        What the methods that share the keys read.
    graph_key, library_key, spatial_key, features_key
        As given to a verb.

    Raises
    ------
    KeyError
        A key names nothing. The default of what no method needs is exempt.
    TypeError
        A key was given, and none of the methods reads what it names; or it is no string.
    """
    if library_key is not None:
        lookup(adata.obs, library_key, where="adata.obs")
    if not isinstance(graph_key, str):
        raise TypeError(f"graph_key must be a string, not {graph_key!r}.")
    keys: dict[str, str | None] = {"library_key": library_key}
    for name, what, key, default in (
        ("graph_key", "graph", graph_key, _keys.SPATIAL),
        ("spatial_key", "coordinates", spatial_key, _keys.SPATIAL),
        ("features_key", "features", features_key, None),
    ):
        keys[name] = None
        needed, is_read = what in inputs.needed, what in inputs.read
        if key is None or not (is_read or key != default):
            continue
        found = adata.obsp if what == "graph" else adata.obsm
        where = "adata.obsp" if what == "graph" else "adata.obsm"
        if not is_read:
            refuse_key(name, key, found, _place(what, key), where=where, why=inputs.why_not(what))
        there = find_spatial_key(adata, key) if what == "coordinates" else key
        if needed or key != default:
            lookup(found, _place(what, there), where=where, advice=ADVICE[what])
        keys[name] = there if _place(what, there) in found else None
    return keys


def _place(what: str, key: str) -> str:
    return GraphKeys(key).connectivities if what == "graph" else key
