"""What surrounds the spots beside their counts: graph, coordinates, image features and libraries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise._base.checks import ADVICE, lookup, read_coordinates, read_libraries
from stdenoise._base.keys import GraphKeys
from stdenoise.spatial.graph import SpatialGraph

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Context:
    """What a method may know of the spots beside their counts; `None` where it was not asked for.

    Parameters
    ----------
    graph
        Spatial graph without self loops.
    coordinates
        Double precision, shape `(n_spots, 2)` or `(n_spots, 3)`.
    features
        Features of the image around each spot, shape `(n_spots, n_features)`.
    libraries
        Position of each spot's library among the libraries, shape `(n_spots,)`; `None` where all spots are of one.
    """

    graph: SpatialGraph | None = None
    coordinates: Tensor | None = None
    features: Tensor | None = None
    libraries: Tensor | None = None

    def permuted(self, order: np.ndarray) -> Context:
        """Return the context of the same spots in another order; row `i` of it is row `order[i]` of this one."""
        rows = torch.from_numpy(order)
        return Context(
            graph=None if self.graph is None else self.graph.permuted(order),
            **{
                name: None if (values := getattr(self, name)) is None else values[rows.to(values.device)]
                for name in ("coordinates", "features", "libraries")
            },
        )

    def without_neighbors(self, n_spots: int) -> Context:
        """Return the same context with each spot on its own: no edge, and a library for each."""
        device = next((t.device for t in (self.coordinates, self.libraries) if t is not None), torch.device("cpu"))
        graph = self.graph
        if graph is not None:
            device = graph.col.device
            graph = SpatialGraph.from_scipy(sparse.csr_matrix((n_spots, n_spots)), device=device)
        return replace(self, graph=graph, libraries=torch.arange(n_spots, device=device))


def read_graph(adata: AnnData, graph_key: str) -> sparse.csr_matrix:
    """Read the adjacency matrix of a spatial graph, ours or squidpy's."""
    key = GraphKeys(graph_key).connectivities
    adjacency = lookup(adata.obsp, key, where="adata.obsp", advice=ADVICE["graph"])
    if adjacency.shape != (adata.n_obs, adata.n_obs):
        raise ValueError(
            f"adata.obsp[{key!r}] has shape {adjacency.shape}, but adata has {adata.n_obs} spots; "
            "build the graph again: st.pp.spatial_graph(adata)."
        )
    return sparse.csr_matrix(adjacency)


def read_features(adata: AnnData, features_key: str) -> np.ndarray:
    """Read image features, shape `(n_spots, n_features)`, or raise."""
    values = lookup(adata.obsm, features_key, where="adata.obsm", advice=ADVICE["features"])
    where = f"adata.obsm[{features_key!r}]"
    features = values.toarray() if sparse.issparse(values) else np.asarray(values)
    if features.dtype.kind not in "iufb":
        raise TypeError(f"{where} must hold numbers, not {features.dtype}.")
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{where} must have shape (n_spots, n_features), not {features.shape}.")
    bad = int((~np.isfinite(features).all(axis=1)).sum())
    if bad:
        raise ValueError(f"{where} has NaN or infinite values in {bad} spots.")
    return features


def read_context(
    adata: AnnData,
    *,
    graph_key: str | None,
    library_key: str | None,
    spatial_key: str | None,
    features_key: str | None,
    device: torch.device,
) -> Context:
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
    graph = coordinates = features = None
    if graph_key is not None:
        adjacency = read_graph(adata, graph_key)
        if codes is not None:
            _check_libraries(adjacency, codes, str(library_key))
        graph = SpatialGraph.from_scipy(adjacency, device=device)
    if spatial_key is not None:
        coordinates = torch.tensor(read_coordinates(adata, spatial_key), device=device)
    if features_key is not None:
        features = torch.tensor(read_features(adata, features_key), dtype=torch.float32, device=device)
    libraries = None if codes is None else torch.tensor(codes.astype(np.int64), device=device)
    return Context(graph, coordinates, features, libraries)


def _check_libraries(adjacency: sparse.csr_matrix, codes: np.ndarray, library_key: str) -> None:
    edges = adjacency.tocoo()
    crossing = int((codes[edges.row] != codes[edges.col]).sum())
    if crossing:
        raise ValueError(
            f"{crossing} of {edges.nnz} edges join spots of different {library_key!r}; "
            f"build the graph with st.pp.spatial_graph(adata, library_key={library_key!r})."
        )
