"""The opened front door: a section in memory, opened lazily or on disk, with what is read of it, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse

from stdenoise._base import keys as _keys
from stdenoise._base.checks import near_match
from stdenoise._base.inputs import Inputs
from stdenoise._base.keys import GraphKeys
from stdenoise._io import disk
from stdenoise._io.build_graph import build_graph
from stdenoise._io.read import (
    check_anndata,
    check_counts,
    check_unique_genes,
    keys_to_read,
    read_counts,
    read_tissue,
    select_genes,
)
from stdenoise._io.sorted import open_sorted, sort_counts
from stdenoise._io.source import Source, open_source
from stdenoise.spatial.spots import Spots, Tissue
from stdenoise.spatial.tiles import order_by_graph, partition

# Spots that lie together on the disk, at least: a tile is then a few pieces of the file.
_LEAF = 256


@dataclass(frozen=True)
class Section:
    """Raw counts and what surrounds the spots, wherever they are.

    Parameters
    ----------
    table
        The AnnData where it is in memory, else all of it but `X` and layers.
    source
        Where the counts are read from; `None` where `table` has them.
    layer
        Layer of the counts; `None` for `X`.
    keys
        Keys of what is read; `None` for what is not.
    positions
        Columns to model, in the order of the model; `None` for all.
    is_choice
        Whether the modelled genes are a choice of genes, which may hold all of them, rather than all of them in some order.
    stays
        Whether the counts have to stay where they are: whoever opened an AnnData lazily had a reason.
    allow_fractions
        Take fractional counts as they are.
    """

    table: AnnData
    source: Source | None
    layer: str | None
    keys: Mapping[str, str | None]
    positions: np.ndarray | None
    is_choice: bool
    stays: bool
    allow_fractions: bool

    @cached_property
    def adata(self) -> AnnData:
        """All of it in memory."""
        return self.table if self.source is None else self.source.load()

    @cached_property
    def on_disk(self) -> Source:
        """The same section, of which counts are read block by block."""
        return self.source or open_source(self.table, self.layer)

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of all genes."""
        return tuple(map(str, self.table.var_names))

    @property
    def size(self) -> tuple[int, int, int]:
        """Spots, modelled genes, and about how many non-zero counts of these."""
        n_spots, n_all = self.table.shape
        if self.source is not None:
            n_counts = self.source.n_counts
        else:
            matrix = self.table.X if self.layer is None else self.table.layers.get(self.layer)
            n_counts = matrix.nnz if sparse.issparse(matrix) else n_spots * n_all
        n_genes = n_all if self.positions is None else len(self.positions)
        return n_spots, n_genes, max(1, n_counts * n_genes // n_all)

    @property
    def layers(self) -> list[str] | None:
        """Names of its layers, where they are not in `table`."""
        return None if self.source is None else self.source.layers

    def record(self) -> dict[str, str]:
        """What is read, for the record of a result; "" for what is not."""
        return {"layer": self.layer or "X", **{name: key or "" for name, key in self.keys.items()}}

    def counts(self) -> sparse.csr_matrix:
        """Raw counts of all genes, checked, in memory; may share it with the AnnData."""
        return read_counts(self.adata, self.layer, allow_fractions=self.allow_fractions)

    def tissue(self, device: torch.device) -> Tissue:
        """What surrounds the spots."""
        return read_tissue(self.table, **self.keys, device=device)

    def spots(self, device: torch.device) -> Spots:
        """Return what methods see, in memory."""
        return self.tissue(device).with_counts(self.counts(), self.genes, positions=self.positions, device=device)

    @cached_property
    def order(self) -> np.ndarray:
        """Order in which spots that are near each other in the tissue are near each other in the list."""
        tissue = self.tissue(torch.device("cpu"))
        if tissue.has("coordinates"):
            places = tissue.coordinates.numpy()
        elif tissue.has("graph"):
            places = order_by_graph(tissue.graph)
        else:
            return np.arange(self.table.n_obs)
        libraries = None if tissue.libraries is None else tissue.libraries.numpy()
        return np.concatenate(partition(places, _LEAF, libraries=libraries))

    def sort(self, folder: Path) -> None:
        """Sort the counts by `order` into a folder."""
        source = self.on_disk
        sort_counts(
            source.row_blocks,
            order=self.order,
            positions=self.positions,
            n_genes=self.table.n_vars,
            folder=folder,
            check=lambda values: check_counts(values, where=source.where, allow_fractions=self.allow_fractions),
        )

    def sorted_spots(self, folder: Path) -> Spots:
        """Return what methods see, in sorted order, with counts mapped from a folder."""
        counts = open_sorted(folder)
        names = self.genes if self.positions is None else tuple(self.genes[i] for i in self.positions)
        return self.tissue(torch.device("cpu")).permuted(self.order).with_totals(counts.counts, counts.total, names)


def open_section(
    data: AnnData | Path | Source,
    inputs: Inputs,
    *,
    layer: str | None,
    genes: str | Sequence[str] | None,
    graph_key: str,
    library_key: str | None,
    spatial_key: str,
    features_key: str | None,
    model_genes: Sequence[str] | None = None,
    may_stay: bool = False,
    allow_fractions: bool = False,
) -> Section:
    """Open a section, and check what will be read of it.

    Parameters
    ----------
    data
        An AnnData, in memory or not, or the path of one. Of a file without a spatial graph, one is built where it is needed.
    inputs
        What the methods read.
    layer, genes, graph_key, library_key, spatial_key, features_key
        As given to a function.
    model_genes
        Genes of a trained network, found by name, instead of `genes`.
    may_stay
        Whether the counts may stay where they are; a path is loaded otherwise.
    allow_fractions
        Take fractional counts as they are.

    Raises
    ------
    ValueError, KeyError, TypeError
        Something is not valid, or a key names nothing or has no effect.
    OSError
        A file cannot be read.
    """
    if isinstance(data, Path):
        data = open_source(data, layer) if may_stay else disk.read(data)
        table = data.light if isinstance(data, Source) else data
        # A key of the user's own is that of a graph there is.
        is_missing = graph_key == _keys.SPATIAL and GraphKeys(graph_key).connectivities not in table.obsp
        if is_missing and "graph" in inputs.needed:
            build_graph(table, library_key=library_key, spatial_key=spatial_key, key_added=graph_key)
            if "coordinates" not in inputs.read:
                spatial_key = _keys.SPATIAL
    source = data if isinstance(data, Source) else None
    table = data.light if isinstance(data, Source) else data
    check_anndata(table, in_memory=False)
    check_unique_genes(table)
    stays = source is None and not _is_in_memory(table, layer)
    if stays:
        if not may_stay:
            where = f"is backed by {str(table.filename)!r}" if table.isbacked else "is not in memory"
            raise ValueError(
                f"adata {where}; load it first: adata = adata.to_memory(). "
                "Networks go from disk to disk, with out= and a path that ends with .zarr."
            )
        source = open_source(table, layer)
        table = source.light
    keys = keys_to_read(
        table,
        inputs,
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
    )
    if model_genes is None:
        positions = select_genes(table, genes)
        is_choice = positions is not None
    elif genes is not None:
        raise TypeError("genes has no effect with a trained network, which has its own.")
    else:
        positions = _align_genes(table, model_genes)
        is_choice = len(positions) < table.n_vars
    return Section(table, source, layer, keys, positions, is_choice, stays, allow_fractions)


def _is_in_memory(adata: AnnData, layer: str | None) -> bool:
    """Whether the counts are numpy or scipy arrays."""
    if adata.isbacked:
        return False
    matrix = adata.X if layer is None else adata.layers.get(layer)
    # What is missing or of no use is reported where it is read.
    return matrix is None or isinstance(matrix, np.ndarray) or sparse.issparse(matrix) or not hasattr(matrix, "shape")


def _align_genes(table: AnnData, genes: Sequence[str]) -> np.ndarray:
    """Return the columns of a model's genes, in its order."""
    columns = table.var_names.get_indexer(list(genes))
    missing = [gene for gene, column in zip(genes, columns, strict=True) if column < 0]
    if missing:
        hint = near_match(missing[0], table.var_names)
        raise KeyError(
            f"{len(missing)} of the {len(genes)} genes of the model are not in adata.var_names: {missing[:5]}.{hint}"
        )
    return np.asarray(columns)
