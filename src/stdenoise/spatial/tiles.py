"""Halo tiles: patches of tissue that a graph network maps exactly as it maps the whole.

A network of k layers of message passing sees k hops far. A tile is a set of core spots with all spots from which they can be
reached within k steps, and the edges among these: the outermost ring gets wrong values, and none of them arrives at the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from stdenoise.spatial.graph import SpatialGraph


@dataclass(frozen=True)
class Tile:
    """A patch of tissue.

    Parameters
    ----------
    spots
        Positions in the tissue: the core first, in the order of the tissue, then the halo, ring by ring; shape `(n_tile,)`.
    n_core
        Size of the core.
    graph
        Edges among these spots, numbered as in `spots`, with a self loop on each; it knows the rings.
    """

    spots: Tensor
    n_core: int
    graph: SpatialGraph

    @property
    def core(self) -> Tensor:
        """Positions of the core spots in the tissue, ascending."""
        return self.spots[: self.n_core]


def partition(
    coordinates: np.ndarray,
    size: int,
    *,
    libraries: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
) -> list[np.ndarray]:
    """Cut a tissue into compact parts of nearly equal numbers of spots.

    A library that is not larger than a part stays whole, and small ones share a part; larger ones are halved across their longer
    side, again and again.

    Parameters
    ----------
    coordinates
        Shape `(n_spots, n_dims)`.
    size
        Spots per part, at most.
    libraries
        Position of each spot's library, shape `(n_spots,)`.
    rng
        Source of a new partition at each call: the tissue is turned by a random angle, and cut off its middle; a line begins
        at a random spot, and its end goes on at its beginning. Without it, the partition is always the same.

    Returns
    -------
    Positions of the spots of each part, ascending; each spot in one part.
    """
    n_spots, n_dims = coordinates.shape
    if rng is not None and n_dims > 1:
        turn, _ = np.linalg.qr(rng.standard_normal((n_dims, n_dims)))
        coordinates = coordinates @ turn
    elif rng is not None:
        place = np.argsort(np.argsort(coordinates[:, 0], kind="stable"))
        coordinates = ((place + rng.integers(n_spots)) % n_spots)[:, None]
    members: Sequence[np.ndarray] = [np.arange(n_spots)]
    if libraries is not None:
        order = np.argsort(libraries, kind="stable")
        members = np.split(order, np.flatnonzero(np.diff(libraries[order])) + 1)
    parts: list[np.ndarray] = []
    shared: list[np.ndarray] = []
    for spots in sorted(members, key=len):
        if len(spots) > size:
            parts += _halve(coordinates, spots, -(-len(spots) // size), rng)
            continue
        if shared and sum(map(len, shared)) + len(spots) > size:
            parts.append(np.concatenate(shared))
            shared = []
        shared.append(spots)
    if shared:
        parts.append(np.concatenate(shared))
    return [np.sort(part) for part in parts]


def _halve(
    coordinates: np.ndarray, spots: np.ndarray, n_parts: int, rng: np.random.Generator | None
) -> list[np.ndarray]:
    """Cut spots into parts of equal size, give or take one."""
    if n_parts == 1:
        return [spots]
    here = coordinates[spots]
    axis = int(np.argmax(here.max(axis=0) - here.min(axis=0)))
    # Off the middle, so that not all random partitions cut through it.
    least = max(1, n_parts // 3)
    left = n_parts // 2 if rng is None else int(rng.integers(least, n_parts - least, endpoint=True))
    cut = len(spots) * left // n_parts
    order = np.argpartition(here[:, axis], cut)
    return [
        *_halve(coordinates, spots[order[:cut]], left, rng),
        *_halve(coordinates, spots[order[cut:]], n_parts - left, rng),
    ]


class Tiler:
    """Cuts tiles from a graph.

    Parameters
    ----------
    graph
        Spatial graph, on any device; tiles are cut on the CPU.
    n_hops
        Rings of the halo: the number of layers of message passing.
    """

    def __init__(self, graph: SpatialGraph, n_hops: int) -> None:
        self.n_hops = n_hops
        self._crow = graph.crow.cpu().numpy()
        self._col = graph.col.cpu().numpy()
        # Number of each spot within the tile at hand, -1 outside it.
        self._number = np.full(graph.n_spots, -1, dtype=np.int32)

    def tile(self, core: np.ndarray) -> Tile:
        """Return the tile around core spots, given by their positions, ascending; every spot gets a self loop."""
        rings, ring = [core], core
        self._number[core] = np.arange(len(core))
        n_tile = len(core)
        for _ in range(self.n_hops):
            sources = np.unique(self._sources(ring)[0])
            ring = sources[self._number[sources] < 0]
            self._number[ring] = np.arange(n_tile, n_tile + len(ring))
            n_tile += len(ring)
            rings.append(ring)
        spots = np.concatenate(rings)
        col, degree = self._sources(spots)
        row = np.repeat(np.arange(n_tile), degree)
        col = self._number[col]
        self._number[spots] = -1
        inside = col >= 0
        loops = np.arange(n_tile)
        graph = SpatialGraph.from_edges(
            np.concatenate([row[inside], loops]), np.concatenate([col[inside], loops]), n_tile
        )
        sizes = np.cumsum([len(ring) for ring in rings])
        graph = replace(graph, rings=tuple(zip(sizes.tolist(), graph.crow[sizes].tolist(), strict=True)))
        return Tile(torch.from_numpy(spots.astype(np.int64, copy=False)), len(core), graph)

    def _sources(self, spots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sources of all in-edges of these spots, one after the other, and how many each spot has."""
        first = self._crow[spots].astype(np.int64)
        degree = self._crow[spots + 1] - first
        start = np.cumsum(degree) - degree
        position = np.repeat(first - start, degree) + np.arange(degree.sum())
        return self._col[position], degree


def order_by_graph(graph: SpatialGraph) -> np.ndarray:
    """Coordinates for spots that have none: their places in an order that keeps neighbours together, shape `(n_spots, 1)`."""
    order = reverse_cuthill_mckee(graph.to_scipy())
    place = np.empty((graph.n_spots, 1))
    place[order, 0] = np.arange(graph.n_spots)
    return place
