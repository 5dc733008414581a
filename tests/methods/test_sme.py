import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from stdenoise.methods.sme import SME, adjust, average, image_components, most_similar, near_spots
from stdenoise.spatial.graph import SpatialGraph, to_csr_tensor
from stdenoise.spatial.normalize import lognorm

PARTS = ["physical_morphology_expression", "physical_expression", "physical_morphology", "physical"]


@pytest.fixture(scope="session")
def tissue(drawn):
    """Counts, places and image features."""

    def tissue(seed, n_spots, n_genes, n_features=4):
        rng = np.random.default_rng(seed + 1)
        return drawn(seed, n_spots, n_genes), rng.uniform(0, 10, (n_spots, 2)), rng.normal(size=(n_spots, n_features))

    return tissue


@pytest.fixture(scope="session")
def sme(fit):
    def sme(counts, coordinates, features=None, libraries=None, **params):
        return fit(SME(**params), counts, coordinates, features=features, libraries=libraries).mean.numpy()

    return sme


def hexagon(n_rows, n_cols):
    row, col = np.mgrid[:n_rows, :n_cols]
    return np.column_stack([(col + (row % 2) / 2).ravel(), (row * np.sqrt(0.75)).ravel()])


def complete(n_spots):
    return SpatialGraph.from_scipy(sparse.csr_matrix(1 - np.eye(n_spots)))


def dense_sme(counts, coordinates, features, *, parts, radius, k, n_components, mode="normalize", clip_negative=True):
    """The values from the definition, with dense arrays over all pairs of spots."""
    x = np.asarray(lognorm(np.asarray(counts, dtype=float)))
    distance = cdist(coordinates, coordinates)
    if parts == "physical":
        distance[distance == 0] = np.inf
        weights = np.zeros_like(distance)
        for i, row in enumerate(distance):
            nearest = np.argsort(row, kind="stable")[:k]
            weights[i, nearest] = row[nearest] < radius
    else:
        weights = (distance < radius).astype(float)
        if "morphology" in parts:
            centred = features - features.mean(axis=0)
            if centred.shape[1] > n_components:
                centred = PCA(n_components, svd_solver="full").fit_transform(centred)
            weights *= np.maximum(1 - cdist(centred, centred, "cosine"), 0)
        if "expression" in parts:
            correlation = np.corrcoef(PCA(n_components, svd_solver="full").fit_transform(x))
            weights *= np.maximum(correlation, 0) if clip_negative else correlation
        for row in weights:
            row[np.argsort(-row, kind="stable")[k:]] = 0
    total = weights.sum(axis=1, keepdims=True)
    mean = np.where(total > 0, weights / np.where(total > 0, total, 1), 0) @ x
    if mode == "impute":
        return np.where(x == 0, mean, x)
    return np.where(mean == 0, x, (x + mean) / 2)


@pytest.mark.parametrize("clip_negative", [True, False])
@pytest.mark.parametrize("mode", ["normalize", "impute"])
def test_it_equals_a_dense_evaluation(tissue, sme, monkeypatch, clip_negative, mode):
    data = tissue(0, 60, 20)
    options = {"radius": 3.0, "n_components": 10, "mode": mode, "clip_negative": clip_negative}
    for parts, k in [(PARTS[0], 3), (PARTS[1], 3), (PARTS[1], 30), (PARTS[2], 5), (PARTS[3], 6), (PARTS[3], 2)]:
        expected = dense_sme(*data, parts=parts, k=k, **options)
        np.testing.assert_allclose(sme(*data, weights=parts, n_neighbors_kept=k, **options), expected, atol=2e-5)
        if k == (6 if parts == "physical" else 3):
            np.testing.assert_allclose(sme(*data, weights=parts, **options), expected, atol=2e-5)
    # In blocks of few genes, and at a radius that is not reached.
    monkeypatch.setattr("stdenoise.methods.sme._BLOCK_ENTRIES", 400)
    data = (data[0], data[1].round(), data[2])
    options |= {"parts": PARTS[1], "k": 9}
    expected = dense_sme(*data, **options)
    options["n_neighbors_kept"], options["weights"] = options.pop("k"), options.pop("parts")
    np.testing.assert_allclose(sme(*data, **options), expected, atol=2e-5)


def test_without_clipping_negative_weights_count_only_in_small_data(tissue, sme):
    # Spots out of range have weight 0 and come before negative ones: with 12 spots in range of each other they do not exist.
    data = tissue(3, 12, 30)
    options = {"radius": 100.0, "n_components": 8}
    found, clipped = (
        sme(*data, weights=PARTS[1], n_neighbors_kept=9, clip_negative=clip, **options) for clip in (False, True)
    )
    expected = dense_sme(*data, parts=PARTS[1], k=9, clip_negative=False, **options)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(found, clipped)


def test_features_are_centred_and_many_are_reduced_to_their_components(tissue, sme):
    data = tissue(1, 50, 20, n_features=30)
    # A spectrum with a gap: of a flat one, the randomised components are not exact.
    data[2][:, :6] *= 20
    found = sme(*data, radius=4.0, n_components=6)
    expected = dense_sme(*data, parts=PARTS[0], radius=4.0, k=3, n_components=6)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    few = torch.tensor(tissue(2, 20, 5)[2])
    np.testing.assert_allclose(image_components(few + 100, 50, None), few - few.mean(0), atol=1e-10)


def test_the_automatic_weights_use_all_that_is_given(tissue, sme):
    counts, coordinates, features = tissue(4, 40, 15)
    auto, without = sme(counts, coordinates, features), sme(counts, coordinates)
    np.testing.assert_array_equal(auto, sme(counts, coordinates, features, weights=PARTS[0]))
    np.testing.assert_array_equal(without, sme(counts, coordinates, features, weights=PARTS[1]))
    assert not np.array_equal(auto, without)
    for weights in (PARTS[0], PARTS[2]):
        with pytest.raises(ValueError, match=f"{weights}.*features_key="):
            sme(counts, coordinates, weights=weights)


def test_the_automatic_radius_gives_thirty_neighbours_on_a_hexagonal_array(spots_of):
    inside = 6 * 12 + 6
    square = np.stack(np.mgrid[:12, :12], axis=2).reshape(-1, 2) * 200.0
    arrays = [(hexagon(12, 12) * scale, 30) for scale in (1, 137, 0.001)]
    for coordinates, expected in [*arrays, ((hexagon(12, 12) * 137).round(), 30), (square, 24)]:
        graph, _ = near_spots(spots_of(np.ones((144, 2)), coordinates), "auto")
        assert graph.crow.diff().max() == graph.crow.diff()[inside] == expected


def test_the_automatic_radius_is_that_of_the_places_of_the_library(spots_of):
    """Coincident spots are one place, and of one place alone nothing is known."""
    one = hexagon(6, 6)
    coordinates = np.concatenate([one, 50 * np.repeat(one, 2, axis=0), np.ones((5, 2))])
    libraries = np.repeat([0, 1, 2], [36, 72, 5])
    graph, lengths = near_spots(spots_of(np.ones((113, 2)), coordinates, libraries=libraries), "auto")
    pairs = graph.to_scipy().toarray()
    first, second = pairs[:36, :36], pairs[36:108, 36:108]
    np.testing.assert_array_equal(first, (cdist(one, one) < 2.9) & ~np.eye(36, dtype=bool))
    np.testing.assert_array_equal(first, second[::2, ::2])
    np.testing.assert_array_equal(first + np.eye(36), second[::2, 1::2])
    np.testing.assert_array_equal(pairs[108:, 108:], 1 - np.eye(5))
    assert first.sum() + second.sum() + 20 == pairs.sum()
    # In units of the distance between spots.
    assert lengths[graph.row < 36].min() == pytest.approx(1)
    assert lengths[lengths > 0].min() == pytest.approx(1)


def test_a_spot_keeps_itself_among_its_equals():
    graph = complete(5).with_self_loops()
    keep = most_similar(graph, torch.ones(25), 2)
    kept = [graph.col[keep & (graph.row == i)].tolist() for i in range(5)]
    assert kept == [[0, 1], [0, 1], [0, 2], [0, 3], [0, 4]]


def test_a_row_without_weights_averages_nothing_and_an_average_of_zero_is_missing():
    weights = torch.tensor([0.0, 0, 1, 3, 2, -2])
    matrix = average(complete(3), weights, torch.ones(6, dtype=bool)).to_dense()
    np.testing.assert_allclose(matrix, [[0, 0, 0], [0.25, 0, 0.75], [0, 0, 0]])
    values = to_csr_tensor(sparse.csr_matrix([[4.0, 2], [0, 6]]), dtype=torch.float64)
    swap = torch.tensor([[0.0, 1], [1, 0]]).to_sparse_csr()
    assert adjust(swap, values, "normalize").tolist() == [[4, 4], [2, 4]]
    assert adjust(swap, values, "impute").tolist() == [[4, 2], [4, 6]]


@given(
    some.integers(0, 10**6),
    some.integers(1, 6),
    some.integers(1, 6),
    some.sampled_from([1, 1_000_000]),
    some.sampled_from(PARTS),
    some.sampled_from(["normalize", "impute"]),
    some.booleans(),
)
def test_averages_stay_within_the_range_of_the_gene(
    tissue, sme, seed, n_spots, n_genes, scale, weights, mode, coincident
):
    counts, coordinates, features = tissue(seed, n_spots, n_genes, n_features=1 + seed % 3)
    if coincident:
        coordinates[:] = 1
    found = sme(counts * scale, coordinates, features, weights=weights, mode=mode)
    assert found.shape == (n_spots, n_genes)
    assert np.isfinite(found).all()
    assert (found <= lognorm(counts * scale * 1.0).max(axis=0) + 1e-4).all()
    assert (found >= 0).all()


def test_empty_spots_are_filled_and_fill_none(irregular, sme, spots_of):
    empty = irregular.obs_names.get_loc("spot7")
    graph, _ = near_spots(spots_of(irregular.X, irregular.obsm["spatial"]), 4.5)
    assert empty not in graph.col
    assert (graph.row == empty).any()
    mean = sme(irregular.X, irregular.obsm["spatial"], radius=4.5, weights="physical")
    assert mean[empty].sum() > 0
    np.testing.assert_array_equal(mean[:, 3], 0)


@pytest.mark.parametrize("weights", PARTS)
def test_libraries_are_not_mixed(tissue, sme, weights):
    counts, coordinates, features = tissue(6, 40, 20)
    libraries = np.arange(40) % 2
    options = {"weights": weights, "n_components": 10, "libraries": libraries}
    # A gene that only one library expresses stays 0 in the other.
    together = sme(counts, coordinates, features, **options)
    counts[libraries == 1, 0] = 0
    apart = sme(counts, coordinates, features, **options)
    assert (apart[libraries == 1, 0] == 0).all()
    assert (together[libraries == 1, 0] > 0).any()
    # Spots of their own keep their values.
    options["libraries"] = np.arange(40)
    np.testing.assert_allclose(sme(counts, coordinates, features, **options), lognorm(counts * 1.0), rtol=1e-5)


def test_a_radius_in_other_units_is_noticed(tissue, sme, recwarn):
    counts, coordinates, _ = tissue(8, 30, 10)
    with pytest.warns(UserWarning, match="radius=1e-06"):
        found = sme(counts, coordinates, radius=1e-6)
    np.testing.assert_allclose(found, lognorm(counts * 1.0), rtol=1e-5)
    sme(counts, coordinates, radius=1e-6, libraries=np.arange(30))
    assert not recwarn
