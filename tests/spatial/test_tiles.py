from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.tiles import Tiler, order_by_graph, partition


def links_of(rng, n_spots, density, *, directed):
    """A random graph: sparse enough, and it has isolated spots and several components."""
    links = rng.random((n_spots, n_spots)) < density
    links = links if directed else links | links.T
    np.fill_diagonal(links, 0)
    return links


def graph_of(links):
    return SpatialGraph.from_scipy(sparse.csr_matrix(links))


def dense(graph):
    return graph.to_scipy().toarray() > 0


def path(n_spots):
    return np.eye(n_spots, k=1) + np.eye(n_spots, k=-1) > 0


# -- Parts -------------------------------------------------------------------------------------------------------------


@given(
    seed=some.integers(0, 10_000),
    n_spots=some.integers(1, 60),
    n_dims=some.integers(1, 3),
    size=some.integers(1, 70),
    n_libraries=some.integers(1, 5),
    shift=some.booleans(),
    same_place=some.booleans(),
)
def test_each_spot_is_in_one_part_of_at_most_that_size(seed, n_spots, n_dims, size, n_libraries, shift, same_place):
    rng = np.random.default_rng(seed)
    coordinates = np.zeros((n_spots, n_dims)) if same_place else rng.uniform(0, 9, (n_spots, n_dims))
    libraries = rng.integers(n_libraries, size=n_spots) if n_libraries > 1 else None
    parts = partition(coordinates, size, libraries=libraries, rng=rng if shift else None)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n_spots))
    for part in parts:
        assert 1 <= len(part) <= size
        assert (np.diff(part) > 0).all()
    if n_libraries == 1:
        assert len(parts) == -(-n_spots // size)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(
    seed=some.integers(0, 10_000),
    sizes=some.lists(some.integers(1, 20), min_size=1, max_size=6),
    size=some.integers(1, 25),
)
def test_a_library_that_fits_is_not_cut(seed, sizes, size):
    rng = np.random.default_rng(seed)
    libraries = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = partition(rng.uniform(0, 9, (len(libraries), 2)), size, libraries=libraries, rng=rng)
    for library, n_spots in enumerate(sizes):
        n_parts = sum(library in libraries[part] for part in parts)
        assert n_parts == -(-n_spots // size)
    # A large library shares its parts with nobody.
    for part in parts:
        assert len(set(libraries[part])) == 1 or all(sizes[library] <= size for library in libraries[part])


def test_small_libraries_share_a_part():
    parts = partition(np.random.default_rng(0).uniform(size=(60, 2)), 30, libraries=np.arange(60) // 10)
    assert [len(part) for part in parts] == [30, 30]


def test_partitions_differ_between_calls_and_follow_the_seed_and_without_one_are_always_the_same():
    for n_dims in (1, 2, 3):
        coordinates = np.random.default_rng(0).uniform(size=(400, n_dims))

        def drawn(rng, coordinates=coordinates):
            return [{tuple(part) for part in partition(coordinates, 25, rng=rng)} for _ in range(4)]

        first, again, other = (drawn(np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first == again
        assert first != other
        for one, two in combinations(first, 2):
            assert len(one & two) < 4
        (only,) = {frozenset(parts) for parts in drawn(None)}
        assert len(only) == 16


def test_the_cuts_of_random_partitions_pass_now_and_then_between_any_neighbours():
    coordinates = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), axis=-1).reshape(-1, 2)
    rng = np.random.default_rng(0)
    parted, across = np.zeros((20, 19)), 0
    for _ in range(200):
        part_of = np.empty(400, dtype=int)
        for number, part in enumerate(partition(coordinates, 50, rng=rng)):
            part_of[part] = number
        part_of = part_of.reshape(20, 20)
        parted += np.diff(part_of, axis=1) != 0
        across += part_of[9, 9] != part_of[10, 10]
    # Between all of them at times, and nowhere always: not through the middle either.
    assert 0 < parted.min()
    assert parted.max() < 0.6 * 200
    assert across < 0.6 * 200


@pytest.mark.parametrize(("side", "n_dims", "size"), [(40, 2, 100), (40, 2, 64), (12, 3, 216)])
def test_parts_are_compact(side, n_dims, size):
    coordinates = np.stack(np.meshgrid(*[np.arange(float(side))] * n_dims), axis=-1).reshape(-1, n_dims)
    # Standard deviation of a cube's points along one side is its length over the root of 12.
    ideal = np.sqrt(n_dims / 12) * size ** (1 / n_dims)
    for rng in (None, np.random.default_rng(0)):
        parts = partition(coordinates, size, rng=rng)
        extent = np.mean([np.linalg.norm(np.std(coordinates[part], axis=0)) for part in parts])
        assert 0.9 * ideal < extent < 1.3 * ideal


# -- Tiles -------------------------------------------------------------------------------------------------------------


@given(
    seed=some.integers(0, 10_000),
    n_spots=some.integers(1, 40),
    density=some.sampled_from([0.0, 0.02, 0.1, 0.5]),
    directed=some.booleans(),
    n_hops=some.integers(0, 5),
    data=some.data(),
)
def test_a_tile_holds_what_reaches_its_core_and_the_edges_among_it(seed, n_spots, density, directed, n_hops, data):
    links = links_of(np.random.default_rng(seed), n_spots, density, directed=directed)
    tiler = Tiler(graph_of(links), n_hops)
    core = np.array(sorted(data.draw(some.sets(some.integers(0, n_spots - 1), min_size=1))))
    # Twice: what is noted for a tile is forgotten before the next one.
    for _ in range(2):
        tile = tiler.tile(core)
    spots = tile.spots.numpy()
    np.testing.assert_array_equal(spots[: tile.n_core], core)
    assert torch.equal(tile.core, tile.spots[: tile.n_core])
    reached = np.isin(np.arange(n_spots), core)
    rings = [reached]
    for _ in range(n_hops):
        reached = reached | (links.T @ reached)
        rings.append(reached)
    assert len(set(spots)) == len(spots)
    np.testing.assert_array_equal(np.sort(spots), np.flatnonzero(reached))
    # Ring by ring.
    for ring in rings:
        assert set(spots[: ring.sum()]) == set(np.flatnonzero(ring))
    whole = links[np.ix_(spots, spots)] | np.eye(len(spots), dtype=bool)
    np.testing.assert_array_equal(dense(tile.graph), whole)
    # Each layer may leave out the ring that the next ones do not need.
    for n_left, (inner, outer) in enumerate(pairwise(rings)):
        part = tile.graph.within(n_left)
        assert part.shape == (inner.sum(), outer.sum())
        np.testing.assert_array_equal(dense(part), whole[: inner.sum(), : outer.sum()])
        assert not whole[: inner.sum(), outer.sum() :].any()


def test_where_there_is_no_halo_there_is_nothing_to_leave_out():
    graph = graph_of(path(60))
    assert graph.within(0) is graph
    whole, part = (Tiler(graph, 3).tile(np.arange(n)).graph for n in (60, 10))
    assert whole.within(0) is whole
    assert part.within(3) is part
    assert part.to("cpu").rings == part.rings == ((10, 29), (11, 32), (12, 35), (13, 37))


def test_an_order_gives_each_spot_a_place_and_keeps_neighbours_together():
    side = 15
    shuffled = np.random.default_rng(0).permutation(side**2)
    lattice = sparse.kron(path(side), np.eye(side)) + sparse.kron(np.eye(side), path(side))
    links = lattice.toarray()[np.ix_(shuffled, shuffled)] > 0
    place = order_by_graph(graph_of(links))
    assert place.shape == (side**2, 1)
    assert sorted(place[:, 0]) == list(range(side**2))
    row, col = np.nonzero(links)
    assert np.abs(place[row, 0] - place[col, 0]).max() <= 2 * side
    assert np.abs(row - col).max() > 10 * side
    # One way, and some spots without neighbours.
    directed = links_of(np.random.default_rng(0), 40, 0.03, directed=True)
    assert sorted(order_by_graph(graph_of(directed))[:, 0]) == list(range(40))
