import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy.spatial.distance import cdist

from stdenoise.spatial import neighbors
from stdenoise.spatial.neighbors import nearest_neighbors, neighborhoods


def drawn(seed, n, d, *, n_coincident=0, whole=False):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 3, (n, d)).astype(float) if whole else rng.normal(size=(n, d))
    points[:n_coincident] = points[-1]
    return points


def brute_force(points, k, *, include_self=False):
    distances = cdist(points, points)
    if not include_self:
        np.fill_diagonal(distances, np.inf)
    index = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(distances, index, axis=1)


@given(
    some.integers(0, 10**6),
    some.sampled_from([2, 3, 40, 90]),
    some.sampled_from([1, 2, 30]),
    some.integers(1, 89),
    some.sampled_from([0, 5, 60]),
    some.booleans(),
    some.booleans(),
)
def test_nearest_neighbours_equal_brute_force(seed, n, d, k, n_coincident, whole, include_self):
    points = drawn(seed, n, d, n_coincident=n_coincident, whole=whole)
    k = min(k, n - 1)
    index, distance = nearest_neighbors(torch.tensor(points), k, include_self=include_self)
    expected_index, expected = brute_force(points, k, include_self=include_self)
    np.testing.assert_array_equal(index.numpy(), expected_index)
    np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("scale", "shift", "dtype"), [(1e30, 0, "float32"), (1e-30, 0, "float64"), (1, 1e7, "float32")]
)
def test_neither_scale_nor_place_matters(scale, shift, dtype):
    points = (torch.tensor(drawn(0, 200, 5)) * scale + shift).to(getattr(torch, dtype))
    index, distance = nearest_neighbors(points, 7)
    expected_index, expected = brute_force(points.double().numpy(), 7)
    assert distance.dtype == points.dtype
    np.testing.assert_allclose(distance.double().numpy(), expected, rtol=1e-6 if dtype == "float32" else 1e-12)
    np.testing.assert_array_equal(index.numpy(), expected_index)


def test_blocks_give_the_same_neighbours(monkeypatch):
    points = torch.tensor(drawn(2, 150, 3, n_coincident=50))
    whole = nearest_neighbors(points, 4)
    monkeypatch.setattr(neighbors, "_BLOCK", 1000)
    for part, other in zip(nearest_neighbors(points, 4), whole, strict=True):
        assert torch.equal(part, other)


def test_neither_reduced_precision_of_products_nor_an_outlier_does_harm():
    points = drawn(3, 300, 20)
    points[17] = 1e9
    torch.set_float32_matmul_precision("medium")
    try:
        medium, _ = nearest_neighbors(torch.tensor(points), 5)
    finally:
        torch.set_float32_matmul_precision("highest")
    for index in (medium, nearest_neighbors(torch.tensor(points), 5)[0]):
        np.testing.assert_array_equal(index, brute_force(points, 5)[0])


def test_a_point_alone_has_no_neighbours_and_no_more_are_asked_for_than_there_are():
    index, distance = nearest_neighbors(torch.zeros(1, 3), 0)
    assert index.shape == distance.shape == (1, 0)
    for k, include_self, most in ((3, False, 2), (4, True, 3), (-1, False, 2)):
        with pytest.raises(ValueError, match=f"between 0 and {most}, not {k}"):
            nearest_neighbors(torch.zeros(3, 2), k, include_self=include_self)


# -- Spots of libraries


def edges_of(graph, lengths):
    dense = np.full((graph.n_spots, graph.n_spots), np.nan)
    dense[graph.row.numpy(), graph.col.numpy()] = lengths.numpy()
    return dense


@given(
    some.integers(0, 10**6),
    some.integers(1, 60),
    some.sampled_from([2, 3]),
    some.integers(1, 4),
    some.integers(1, 12),
    some.sampled_from([0, 8]),
    some.booleans(),
)
def test_neighbourhoods_equal_brute_force(seed, n, d, n_libraries, k, n_coincident, whole):
    points = drawn(seed, n, d, n_coincident=n_coincident, whole=whole)
    codes = np.random.default_rng(seed).integers(0, n_libraries, n)
    libraries = torch.tensor(codes) if n_libraries > 1 else None
    distances = np.where(codes[:, None] == codes, cdist(points, points), np.inf)
    np.fill_diagonal(distances, np.inf)

    within = np.where(distances <= 1.0, distances, np.nan)
    graph, lengths = neighborhoods(torch.tensor(points), libraries, radius=1.0)
    np.testing.assert_allclose(edges_of(graph, lengths), within, atol=1e-12)

    nearest = np.full((n, n), np.nan)
    for i in range(n):
        chosen = np.argsort(distances[i], kind="stable")[:k]
        chosen = chosen[np.isfinite(distances[i, chosen])]
        nearest[i, chosen] = distances[i, chosen]
    graph, lengths = neighborhoods(torch.tensor(points), libraries, k=k)
    np.testing.assert_allclose(edges_of(graph, lengths), nearest, atol=1e-12)
    # Columns ascend within a row.
    same_row = graph.row[1:] == graph.row[:-1]
    assert (graph.col.diff()[same_row] > 0).all()


def test_spots_in_libraries_of_their_own_have_no_neighbours():
    for settings in ({"k": 3}, {"radius": 5.0}):
        graph, lengths = neighborhoods(torch.zeros(50, 2), torch.arange(50), **settings)
        assert graph.n_spots == 50
        assert graph.n_edges == len(lengths) == 0


def test_many_coincident_spots_are_joined_by_index():
    expected = [[1, 2], [0, 2], [0, 1], [0, 1]]
    graph, lengths = neighborhoods(torch.zeros(500, 2), None, k=2)
    assert graph.col.reshape(500, 2)[[0, 1, 2, 499]].tolist() == expected
    assert (lengths == 0).all()
    index, distance = nearest_neighbors(torch.zeros(500, 2), 2)
    assert index[[0, 1, 2, 499]].tolist() == expected
    assert (distance == 0).all()


def test_bad_settings_are_refused():
    for settings, words in (
        ({}, "either k or radius"),
        ({"k": 2, "radius": 1.0}, "either k or radius"),
        ({"k": 0}, "k must be"),
        ({"radius": -1.0}, "radius must be"),
    ):
        with pytest.raises(ValueError, match=words):
            neighborhoods(torch.zeros(3, 2), None, **settings)
