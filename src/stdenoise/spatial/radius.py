"""Edges between spots, from their coordinates alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

# How far the mean degree may stray from the one asked for in order to end between two rings of a lattice: a square array
# has 4 or 8 neighbours, never 6.
_DEGREE_SLACK = 0.4


def _lattice_gap(n_spots: int, mean_degree: float) -> float:
    """Least jump of the logarithm of successive pair distances that marks the gap between two rings of a lattice.

    At least 5 %, and 15 times the mean spacing of the lengths within the slack, so that scattered spots show none by chance.
    """
    return max(0.05, 16 / (n_spots * mean_degree))


@dataclass(frozen=True)
class Edges:
    """Symmetric edges with their lengths.

    Parameters
    ----------
    distances
        CSR, shape `(n_spots, n_spots)`; the stored entries, all positive, are the edges.
    radius
        Length that no edge exceeds; for nearest neighbours, that of the longest edge.
    n_coincident
        Spots that share their position with another one. They are not joined to each other.
    """

    distances: sparse.csr_matrix
    radius: float
    n_coincident: int


def radius_edges(coordinates: np.ndarray, radius: float) -> Edges:
    """Join spots at a distance in `(0, radius]`.

    Parameters
    ----------
    coordinates
        Shape `(n_spots, n_dims)`.
    radius
        In units of the coordinates.
    """
    places = _Places(coordinates)
    return places.edges(*pairs_within(places.tree, radius), radius)


def auto_radius_edges(coordinates: np.ndarray, mean_degree: float) -> Edges:
    """Join spots within the radius that brings the mean degree as near as possible to the one asked for.

    On a lattice, where whole rings of neighbours lie at one distance, the radius ends half-way between two rings, so that
    rounding of the coordinates does not split a ring.
    """
    places = _Places(coordinates)
    if len(places.sites) < 2:
        return places.edges(np.empty((0, 2), dtype=np.int64), np.empty(0), 0.0)
    n_spots = len(coordinates)
    wanted = min(mean_degree, float(n_spots - 1))
    # More candidates than needed, so that the ring beyond the radius is seen too.
    pairs = places.tree.query_pairs(_enclosing_radius(places, 2.2 * wanted), output_type="ndarray")
    lengths = places.lengths(pairs)
    order = np.argsort(lengths, kind="stable")
    pairs, lengths = pairs[order], lengths[order]
    degree = 2.0 * np.cumsum(places.multiplicity(pairs)) / n_spots

    # Candidates are the ends of runs of equal lengths.
    last = np.flatnonzero(np.append(lengths[1:] > lengths[:-1], True))
    cut = last[np.argmin(np.abs(degree[last] - wanted))]
    radius = lengths[cut]
    inner = last[:-1]
    inner = inner[np.abs(degree[inner] - wanted) <= _DEGREE_SLACK * wanted]
    gap = np.log(lengths[inner + 1] / lengths[inner])
    if gap.max(initial=0.0) > _lattice_gap(n_spots, wanted):
        # Rounded coordinates leave small gaps within a ring, too; only the wide ones count.
        rings = inner[gap > gap.max() / 2]
        cut = rings[np.argmin(np.abs(degree[rings] - wanted))]
        radius = (lengths[cut] + lengths[cut + 1]) / 2
    return places.edges(pairs[: cut + 1], lengths[: cut + 1], float(radius))


def neighbor_edges(coordinates: np.ndarray, n_neighbors: int) -> Edges:
    """Join each position to its nearest other positions; the union of both directions.

    Parameters
    ----------
    coordinates
        Shape `(n_spots, n_dims)`.
    n_neighbors
        At most the number of positions less one.
    """
    places = _Places(coordinates)
    n_sites = len(places.sites)
    k = min(n_neighbors, n_sites - 1)
    if k == 0:
        return places.edges(np.empty((0, 2), dtype=np.int64), np.empty(0), 0.0)
    _, neighbors = places.tree.query(places.sites, k=np.arange(2, k + 2), workers=-1)
    pairs = np.column_stack([np.repeat(np.arange(n_sites), k), neighbors.ravel()])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    lengths = places.lengths(pairs)
    return places.edges(pairs, lengths, float(lengths.max()))


def pairs_within(tree: cKDTree, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of points at a distance of at most the radius, shape `(n_pairs, 2)`, each once, and their distances."""
    # The tree compares squares, which rounding can push over the bound; the lengths themselves decide.
    pairs = tree.query_pairs(radius * (1 + 1e-9), output_type="ndarray")
    lengths = pair_lengths(tree.data, pairs)
    near = lengths <= radius
    return pairs[near], lengths[near]


def pair_lengths(points: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Distance of each pair of points, without ever holding all coordinate differences in full."""
    squared = np.zeros(len(pairs))
    for axis in points.T:
        squared += (axis[pairs[:, 0]] - axis[pairs[:, 1]]) ** 2
    return np.asarray(np.sqrt(squared))


class _Places:
    """Distinct positions, and which spots sit on each: coincident spots cost no pairs in the tree."""

    def __init__(self, coordinates: np.ndarray) -> None:
        self.n_spots = len(coordinates)
        self.sites, self.site, self.occupants = np.unique(coordinates, axis=0, return_inverse=True, return_counts=True)
        self.site = self.site.ravel()
        self.tree = cKDTree(self.sites)

    def lengths(self, pairs: np.ndarray) -> np.ndarray:
        """Distance of each pair of sites."""
        return pair_lengths(self.sites, pairs)

    def multiplicity(self, pairs: np.ndarray) -> np.ndarray:
        """Pairs of spots that each pair of sites stands for."""
        return np.asarray(self.occupants[pairs[:, 0]] * self.occupants[pairs[:, 1]])

    def edges(self, pairs: np.ndarray, lengths: np.ndarray, radius: float) -> Edges:
        """Expand pairs of sites to pairs of spots, in both directions."""
        n_sites = len(self.sites)
        half = sparse.csr_matrix((lengths, (pairs[:, 0], pairs[:, 1])), shape=(n_sites, n_sites))
        both = half + half.T
        spread = sparse.csr_matrix(
            (np.ones(self.n_spots), self.site, np.arange(self.n_spots + 1)), shape=(self.n_spots, n_sites)
        )
        distances = spread @ both @ spread.T if n_sites < self.n_spots else both[self.site][:, self.site]
        distances = sparse.csr_matrix(distances)
        distances.sort_indices()
        return Edges(distances, radius, int((self.occupants[self.site] > 1).sum()))


def _enclosing_radius(places: _Places, mean_degree: float) -> float:
    """Find a radius whose mean degree, over a sample of the sites, is at least the one given.

    It grows from a radius that is too small: in a section with a dense clump, a typical distance elsewhere would join all
    pairs within the clump.
    """
    sites = places.sites
    sample = sites[:: max(1, len(sites) // 5000)]
    span = float(np.linalg.norm(sites.max(axis=0) - sites.min(axis=0)))
    k = min(len(sites), int(np.ceil(mean_degree)) + 1)
    radius = float(places.tree.query(sample, k=[k])[0].min())
    while radius < span and places.tree.query_ball_point(sample, radius, return_length=True).mean() - 1 < mean_degree:
        radius *= 1.2
    return min(radius, span) * (1 + 1e-9)
