import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.spatial.distance import cdist, pdist

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


@pytest.mark.parametrize(
    "step",
    [(1, 0), (1, 1), (1, 2), (3, 4), (0.1, 0.2), (0.3, 0.3), (1, 1, 1), (1, 1, 2), (0.1, 0.7, 0.2)],
    ids=str,
)
def test_radius_is_inclusive(step):
    pair = np.array([np.zeros(len(step)), step])
    assert radius_edges(pair, float(np.linalg.norm(step))).distances.nnz == 2
    assert radius_edges(pair, 0.999999 * float(np.linalg.norm(step))).distances.nnz == 0


@given(some.integers(0, 10**6), some.sampled_from([2, 3]), some.sampled_from([1e-4, 1.0, 1e5]))
def test_radius_equals_brute_force_at_any_scale(seed, n_dims, scale):
    coordinates = scale * scattered(seed, n_dims=n_dims)
    edges = radius_edges(coordinates, 0.3 * scale)
    distances = cdist(coordinates, coordinates)
    joined = (distances > 0) & (distances <= 0.3 * scale)
    np.testing.assert_array_equal(pattern(edges), joined)
    np.testing.assert_allclose(edges.distances.toarray(), np.where(joined, distances, 0))


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


@given(some.integers(0, 10**6), some.floats(1, 8))
def test_the_chosen_radius_gives_the_same_edges_again(seed, mean_degree):
    coordinates = scattered(seed)
    edges = auto_radius_edges(coordinates, mean_degree)
    np.testing.assert_array_equal(pattern(radius_edges(coordinates, edges.radius)), pattern(edges))


@pytest.mark.parametrize("build", [lambda xy: auto_radius_edges(xy, 6), lambda xy: neighbor_edges(xy, 4)])
def test_neither_order_nor_scale_nor_place_matters(build):
    coordinates = scattered(3)
    order = np.random.default_rng(4).permutation(len(coordinates))
    moved = build((1000 * coordinates + 5e5)[order])
    np.testing.assert_array_equal(pattern(moved), pattern(build(coordinates))[np.ix_(order, order)])


def test_auto_radius_of_many_spots():
    # Beyond 5000 positions the search starts from a sample.
    edges = auto_radius_edges(scattered(0, n_spots=12_000), 6.0)
    assert edges.distances.nnz / 12_000 == pytest.approx(6.0, abs=1e-3)


def test_auto_radius_with_fewer_spots_than_neighbours_asked_for_joins_all():
    assert pattern(auto_radius_edges(scattered(0, n_spots=4), 6.0)).sum() == 12


@pytest.mark.parametrize("n_neighbors", [1, 5, 59, 500])
def test_radius_of_nearest_neighbours_is_the_longest_edge(n_neighbors):
    edges = neighbor_edges(scattered(1), n_neighbors)
    assert edges.radius == edges.distances.max()
    assert (pattern(edges).sum(axis=1) >= min(n_neighbors, 59)).all()


@pytest.mark.parametrize(
    "build", [lambda xy: radius_edges(xy, 1.5), lambda xy: auto_radius_edges(xy, 2), lambda xy: neighbor_edges(xy, 1)]
)
def test_coincident_spots_share_neighbours_but_are_not_joined(build):
    edges = build(np.array([[0.0, 0.0], [1.0, 0.0], [-0.0, 0.0], [1.0, 0.0]]))
    expected = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(pattern(edges), expected)
    assert edges.n_coincident == 4


@pytest.mark.parametrize(
    "build", [lambda xy: radius_edges(xy, 1.5), lambda xy: auto_radius_edges(xy, 6), lambda xy: neighbor_edges(xy, 6)]
)
@pytest.mark.parametrize("n_spots", [1, 2, 3000])
def test_spots_at_one_place_have_no_edges(build, n_spots):
    edges = build(np.full((n_spots, 2), 7.0))
    assert edges.distances.shape == (n_spots, n_spots)
    assert edges.distances.nnz == 0
    assert edges.n_coincident == (n_spots if n_spots > 1 else 0)


def test_spots_on_a_line():
    line = np.column_stack([np.arange(10.0), np.zeros(10)])
    assert auto_radius_edges(line, 2.0).distances.nnz == 18
    assert neighbor_edges(line[:3], 1).distances.nnz == 4


def test_a_dense_clump_does_not_join_all_its_pairs():
    rng = np.random.default_rng(0)
    clump, around = rng.normal(0, 1e-3, (40_000, 2)), rng.uniform(-100, 100, (50_000, 2))
    edges = auto_radius_edges(np.concatenate([clump, around]), 6.0)
    # A typical distance of the scattered spots would make 800 million pairs of the clump.
    assert edges.distances.nnz / 90_000 == pytest.approx(6, rel=1e-3)
