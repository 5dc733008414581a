import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.spatial.distance import pdist

from stdenoise.spatial.radius import auto_radius_edges, neighbor_edges, radius_edges


def scattered(seed, n_spots=60, n_dims=2):
    return np.random.default_rng(seed).uniform(size=(n_spots, n_dims))


def pattern(edges):
    return edges.distances.toarray() > 0


def nearest_degree(coordinates, mean_degree):
    """Distance of the best of all possible mean degrees from the one asked for."""
    lengths = pdist(coordinates)
    lengths = np.sort(lengths[lengths > 0])
    ends = np.append(lengths[1:] > lengths[:-1], True)
    degrees = 2 * np.flatnonzero(ends) + 2
    return np.abs(degrees / len(coordinates) - mean_degree).min()


def test_radius_is_inclusive():
    for step in [(1, 0), (1, 2), (3, 4), (0.1, 0.2), (0.3, 0.3), (1, 1, 1), (0.1, 0.7, 0.2)]:
        pair, length = np.array([np.zeros(len(step)), step]), float(np.linalg.norm(step))
        assert radius_edges(pair, length).distances.nnz == 2
        assert radius_edges(pair, length * (1 - 1e-12)).distances.nnz == 0


@given(
    some.integers(0, 10**6),
    some.sampled_from([40, 120]),
    some.sampled_from([2, 3]),
    some.floats(2, 8),
    some.integers(0, 10),
)
def test_auto_radius_comes_as_near_as_any_radius_can(seed, n_spots, n_dims, mean_degree, n_coincident):
    coordinates = scattered(seed, n_spots=n_spots, n_dims=n_dims)
    coordinates[:n_coincident] = coordinates[-n_coincident - 1 : -1]
    edges = auto_radius_edges(coordinates, mean_degree)
    achieved = abs(edges.distances.nnz / n_spots - mean_degree)
    assert achieved == pytest.approx(nearest_degree(coordinates, mean_degree), abs=1e-9)
    # And it gives the same edges again.
    np.testing.assert_array_equal(pattern(radius_edges(coordinates, edges.radius)), pattern(edges))


@pytest.mark.parametrize("build", [lambda xy: auto_radius_edges(xy, 6), lambda xy: neighbor_edges(xy, 4)])
def test_neither_order_nor_scale_nor_place_matters(build):
    coordinates = scattered(3)
    order = np.random.default_rng(4).permutation(len(coordinates))
    moved = build((1000 * coordinates + 5e5)[order])
    np.testing.assert_array_equal(pattern(moved), pattern(build(coordinates))[np.ix_(order, order)])


def test_auto_radius_of_many_spots_and_of_a_few():
    # Beyond 5000 positions the search starts from a sample.
    edges = auto_radius_edges(scattered(0, n_spots=12_000), 6.0)
    assert edges.distances.nnz / 12_000 == pytest.approx(6.0, abs=1e-3)
    # Fewer spots than neighbours asked for: all are joined.
    assert pattern(auto_radius_edges(scattered(0, n_spots=4), 6.0)).sum() == 12


def test_radius_of_nearest_neighbours_is_the_longest_edge():
    for n_neighbors in (1, 5, 500):
        edges = neighbor_edges(scattered(1), n_neighbors)
        assert edges.radius == edges.distances.max()
        assert (pattern(edges).sum(axis=1) >= min(n_neighbors, 59)).all()


@pytest.mark.parametrize(
    "build", [lambda xy: radius_edges(xy, 1.5), lambda xy: auto_radius_edges(xy, 2), lambda xy: neighbor_edges(xy, 1)]
)
def test_coincident_spots_share_neighbours_but_are_not_joined(build):
    edges = build(np.array([[0.0, 0.0], [1.0, 0.0], [-0.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_array_equal(pattern(edges), np.tile([[0, 1], [1, 0]], (2, 2)))
    assert edges.n_coincident == 4
    # Many of them cost no pairs.
    for n_spots in (1, 3000):
        edges = build(np.full((n_spots, 2), 7.0))
        assert edges.distances.shape == (n_spots, n_spots)
        assert edges.distances.nnz == 0
        assert edges.n_coincident == (n_spots if n_spots > 1 else 0)


def test_a_dense_clump_does_not_join_all_its_pairs():
    rng = np.random.default_rng(0)
    clump, around = rng.normal(0, 1e-3, (20_000, 2)), rng.uniform(-100, 100, (25_000, 2))
    edges = auto_radius_edges(np.concatenate([clump, around]), 6.0)
    # A typical distance of the scattered spots would make 200 million pairs of the clump.
    assert edges.distances.nnz / 45_000 == pytest.approx(6, rel=1e-3)
