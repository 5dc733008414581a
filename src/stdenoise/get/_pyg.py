"""Counts and graph for torch_geometric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from stdenoise._base import keys as _keys
from stdenoise._io.read import (
    check_anndata,
    check_unique_genes,
    read_coordinates,
    read_counts,
    read_graph,
    select_genes,
)
from stdenoise.spatial.graph import SpatialGraph

if TYPE_CHECKING:
    from anndata import AnnData
    from torch_geometric.data import Data

logger = logging.getLogger("stdenoise")


def pyg(
    adata: AnnData,
    *,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    graph_key: str = _keys.SPATIAL,
    spatial_key: str = _keys.SPATIAL,
) -> Data:
    """Hand counts and graph on as a `torch_geometric.data.Data`.

    Parameters
    ----------
    adata
        Annotated data with raw counts and a spatial graph.
    layer
        Layer with the counts; `X` if not given.
    genes
        All genes, `"highly_variable"` or a list of names.
    graph_key
        Key of the spatial graph.
    spatial_key
        Key of the coordinates in `obsm`.

    Returns
    -------
    Data with `x` (counts, dense, `(n_spots, n_genes)`), `edge_index` (`(2, n_edges)`: sender, receiver; no self loops) and,
    where there are coordinates, `pos`.

    Raises
    ------
    KeyError, ValueError, TypeError
        Counts or graph are missing or not valid.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> st.get.pyg(adata).x.shape
    torch.Size([100, 20])
    """
    from torch_geometric.data import Data

    check_anndata(adata)
    check_unique_genes(adata)
    positions = select_genes(adata, genes)
    counts = read_counts(adata, layer)
    graph = SpatialGraph.from_scipy(read_graph(adata, graph_key))
    counts = counts if positions is None else counts[:, positions]
    logger.info("dense counts of %d x %d: %.2f GB", *counts.shape, counts.shape[0] * counts.shape[1] * 4 / 1e9)
    data = Data(
        x=torch.tensor(counts.toarray(), dtype=torch.float32),
        edge_index=torch.stack([graph.col.long(), graph.row.long()]),
    )
    # A graph needs no coordinates, but a key that was asked for must be there.
    if spatial_key != _keys.SPATIAL or _keys.SPATIAL in adata.obsm or _keys.SPATIAL_FALLBACK in adata.obsm:
        data.pos = torch.tensor(read_coordinates(adata, spatial_key), dtype=torch.float32)
    return data
