"""Nearest neighbours: of points in many dimensions, and of spots in their library."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from stdenoise._base.checks import check_number
from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.radius import pairs_within

# Entries of a block of distances: 64 MB.
_BLOCK = 1 << 24
# Candidates beyond the k wanted, so that rounding seldom leaves the choice open.
_SPARE = 16


def nearest_neighbors(points: Tensor, k: int, *, include_self: bool = False) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbours of every point by brute force, which beats trees from about ten dimensions on.

    Exact: matrix products give lower bounds of the distances, and the distances themselves decide among the least of them.
    No more than a block of rows of the distances is held at a time.

    Parameters
    ----------
    points
        Finite values, shape `(n_points, n_dims)`.
    k
        Neighbours per point: at most `n_points - 1`, or `n_points` with `include_self`.
    include_self
        Count a point among its own neighbours. It is not always the first: coincident points come in the order of their indices.

    Returns
    -------
    Indices and Euclidean distances, both of shape `(n_points, k)`: nearest first, equally near ones by index.

    Examples
    --------
    >>> import torch
    >>> from stdenoise.spatial.neighbors import nearest_neighbors
    >>> index, distance = nearest_neighbors(torch.tensor([[0.0], [1.0], [3.0]]), 1)
    >>> index.flatten().tolist(), distance.flatten().tolist()
    ([1, 0, 1], [1.0, 1.0, 2.0])
    """
    n_points, n_dims = points.shape
    most = n_points if include_self else max(n_points - 1, 0)
    if not 0 <= k <= most:
        raise ValueError(f"k must lie between 0 and {most}, not {k!r}.")
    index = torch.empty(n_points, k, dtype=torch.int64, device=points.device)
    distance = points.new_empty(n_points, k)
    if k == 0:
        return index, distance

    # Reduced precision of float32 products, where a user asked torch for it, would break the bound.
    coarse = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
    # Centred and scaled: the bound is the tighter and no square overflows.
    shifted = points.double() - points.double().mean(0)
    largest = shifted.abs().max()
    largest = torch.where(largest > 0, largest, 1.0)
    scaled = (shifted / largest).to(coarse)
    # Rounding of a squared distance is below this share of the squared norms.
    error = (n_dims + 16) * torch.finfo(coarse).eps
    norm = (1 - error) * (scaled * scaled).sum(1)
    width = min(k + _SPARE, n_points)
    for rows in torch.arange(n_points, device=points.device).split(max(1, _BLOCK // max(n_points, width * n_dims))):
        least = torch.addmm(norm, scaled[rows], scaled.t(), alpha=-2).add_(norm[rows, None])
        itself = (torch.arange(len(rows), device=points.device), rows)
        if not include_self:
            least[itself] = torch.inf
        bound, candidates = least.topk(width, largest=False)
        # Candidates by index: a stable sort by distance then leaves equal ones in that order.
        candidates = candidates.sort(1).values
        exact = (points[candidates] - points[rows, None]).double().norm(dim=2)
        if not include_self:
            exact[candidates == rows[:, None]] = torch.inf
        exact, order = exact.sort(dim=1, stable=True)
        index[rows] = candidates.gather(1, order[:, :k])
        distance[rows] = exact[:, :k].to(points.dtype)
        if width < n_points:
            open_ = rows[(exact[:, k - 1] / largest) ** 2 >= bound[:, -1]]
            if len(open_):
                index[open_], distance[open_] = _compare_all(points, open_, k, include_self)
    return index, distance


def _compare_all(points: Tensor, rows: Tensor, k: int, include_self: bool) -> tuple[Tensor, Tensor]:
    """Nearest neighbours of some points by the distances to all points."""
    distance = torch.cdist(points[rows].double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if not include_self:
        distance[torch.arange(len(rows), device=rows.device), rows] = torch.inf
    distance, order = distance.sort(dim=1, stable=True)
    return order[:, :k], distance[:, :k].to(points.dtype)


def neighborhoods(
    coordinates: Tensor, libraries: Tensor | None, *, k: int | None = None, radius: float | None = None
) -> tuple[SpatialGraph, Tensor]:
    """Join every spot to the spots around it in its library; coincident spots are neighbours at distance 0.

    So it is in the published methods that use this; the graph of `stdenoise.spatial.radius` joins no coincident spots, as in those that use that one.

    Parameters
    ----------
    coordinates
        Shape `(n_spots, n_dims)`.
    libraries
        Library of each spot, shape `(n_spots,)`; `None` where all are of one.
    k
        Join each spot to its `k` nearest others, equally near ones by index; to fewer where its library has fewer.
    radius
        Join spots at a distance of at most this, in units of the coordinates. Give this or `k`.

    Returns
    -------
    The graph, without self loops, and the length of each of its edges, shape `(n_edges,)`, double precision. Row `i` lists
    the neighbours of spot `i`; with `k` they need not list it in turn.

    Examples
    --------
    >>> import torch
    >>> from stdenoise.spatial.neighbors import neighborhoods
    >>> graph, lengths = neighborhoods(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]]), None, k=1)
    >>> graph.col.tolist(), lengths.tolist()
    ([1, 2, 1], [5.0, 1.0, 1.0])
    """
    if (k is None) == (radius is None):
        raise ValueError(f"give either k or radius, not k={k!r} and radius={radius!r}.")
    check_number(
        "k" if radius is None else "radius", k if radius is None else radius, minimum=1 if radius is None else 0
    )
    places = coordinates.detach().cpu().double().numpy()
    codes = np.zeros(len(places), dtype=np.int64) if libraries is None else libraries.cpu().numpy()
    order = np.argsort(codes, kind="stable")
    empty = np.empty(0, dtype=np.int64)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(empty, empty, np.empty(0))]
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(members) > 1:
            near = _nearest(places[members], k) if k is not None else _within(places[members], float(radius or 0))
            found.append((members[near[0]], members[near[1]], near[2]))
    row, col, length = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((col, row))
    crow = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(places)))])
    index = np.int32 if len(row) < np.iinfo(np.int32).max else np.int64
    device = coordinates.device
    graph = SpatialGraph(
        torch.from_numpy(crow.astype(index)).to(device), torch.from_numpy(col[order].astype(index)).to(device)
    )
    return graph, torch.from_numpy(length[order]).to(device)


def _nearest(places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and lengths of the edges to the nearest others."""
    n = len(places)
    k = min(k, n - 1)
    tree = cKDTree(places)
    rows, width = np.arange(n), min(k + 5, n)
    found = []
    while len(rows):
        lengths, neighbors = tree.query(places[rows], k=np.arange(1, width + 1))
        last = lengths[:, -1].copy()
        lengths[neighbors == rows[:, None]] = np.inf
        by_index = np.lexsort((neighbors, lengths))[:, :k]
        lengths, neighbors = (np.take_along_axis(part, by_index, axis=1) for part in (lengths, neighbors))
        # The tree breaks ties as it likes: the choice stands where the search went past the ties of the last neighbour.
        done = (lengths[:, -1] < last) | (width == n)
        found.append((np.repeat(rows[done], k), neighbors[done].ravel(), lengths[done].ravel()))
        rows, width = rows[~done], min(2 * width, n)
    row, col, length = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return row, col, length


def _within(places: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and lengths of the edges within a radius."""
    pairs, lengths = pairs_within(cKDTree(places), radius)
    row, col = np.concatenate([pairs, pairs[:, ::-1]]).T
    return row, col, np.concatenate([lengths, lengths])
