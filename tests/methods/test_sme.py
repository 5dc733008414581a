import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

import stdenoise as st
from stdenoise.methods.sme import (
    SME,
    adjust,
    average,
    image_components,
    most_similar,
    near_spots,
    rank,
    similarity,
    spot_distance,
)
from stdenoise.spatial.graph import SpatialGraph, to_csr_tensor
from stdenoise.spatial.normalize import lognorm
from stdenoise.spatial.spots import Context, make_spots


def spots_of(counts, coordinates, features=None, libraries=None):
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    context = Context(
        coordinates=torch.tensor(coordinates, dtype=torch.float64),
        features=None if features is None else torch.tensor(features, dtype=torch.float32),
        libraries=None if libraries is None else torch.tensor(libraries),
    )
    genes = [f"gene{j}" for j in range(counts.shape[1])]
    return make_spots(counts, genes, positions=None, context=context, device=torch.device("cpu"))


def fit(*arguments, seed=0, libraries=None, **params):
    return SME(**params).fit(spots_of(*arguments, libraries=libraries), seed=seed, progress=False)


def drawn(seed, n_spots, n_genes, n_features=4):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.7, 3.0, size=(n_spots, n_genes)))
    counts[0, 0] += 1
    return counts, rng.uniform(0, 10, size=(n_spots, 2)), rng.normal(size=(n_spots, n_features))


def hexagon(n_rows, n_cols):
    row, col = np.mgrid[:n_rows, :n_cols]
    return np.column_stack([(col + (row % 2) / 2).ravel(), (row * np.sqrt(0.75)).ravel()])


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


@pytest.mark.parametrize("mode", ["normalize", "impute"])
@pytest.mark.parametrize("clip_negative", [True, False])
@pytest.mark.parametrize(
    ("parts", "k"),
    [
        ("physical_morphology_expression", 3),
        ("physical_expression", 3),
        ("physical_expression", 30),
        ("physical_morphology", 5),
        ("physical", 6),
        ("physical", 2),
    ],
)
def test_it_equals_a_dense_evaluation(parts, k, clip_negative, mode):
    data = drawn(0, 60, 20)
    options = {"radius": 3.0, "n_components": 10, "mode": mode, "clip_negative": clip_negative}
    found = fit(*data, weights=parts, n_neighbors_kept=k, **options)
    assert found.scale == "log1p"
    np.testing.assert_allclose(found.mean.numpy(), dense_sme(*data, parts=parts, k=k, **options), atol=2e-5)


def test_without_clipping_negative_weights_count_only_in_small_data():
    # Spots out of range have weight 0 and come before negative ones: with 12 spots in range of each other they do not exist.
    data = drawn(3, 12, 30)
    options = {"radius": 100.0, "n_components": 8, "clip_negative": False}
    found = fit(*data, weights="physical_expression", n_neighbors_kept=9, **options).mean.numpy()
    expected = dense_sme(*data, parts="physical_expression", k=9, **options)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(found, fit(*data, n_neighbors_kept=9, **{**options, "clip_negative": True}).mean.numpy())


def test_many_features_are_reduced_to_their_components():
    data = drawn(1, 50, 20, n_features=30)
    # A spectrum with a gap: of a flat one, the randomised components are not exact.
    data[2][:, :6] *= 20
    found = fit(*data, radius=4.0, n_components=6).mean.numpy()
    expected = dense_sme(*data, parts="physical_morphology_expression", radius=4.0, k=3, n_components=6)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_features_are_compared_about_their_mean():
    features = torch.tensor(drawn(2, 20, 5)[2])
    np.testing.assert_allclose(image_components(features + 100, 50, None), features - features.mean(0), atol=1e-10)


def test_the_automatic_weights_use_all_that_is_given():
    counts, coordinates, features = drawn(4, 40, 15)
    auto = fit(counts, coordinates, features).mean
    assert torch.equal(auto, fit(counts, coordinates, features, weights="physical_morphology_expression").mean)
    without = fit(counts, coordinates, features, weights="physical_expression").mean
    assert torch.equal(fit(counts, coordinates).mean, without)
    assert not torch.equal(auto, without)


def test_the_automatic_radius_gives_thirty_neighbours_on_a_hexagonal_array():
    inside = 6 * 12 + 6
    for scale, noise in ((1, 0), (137, 0), (137, 1), (0.001, 0)):
        coordinates = hexagon(12, 12) * scale
        if noise:
            coordinates = coordinates.round()
        graph, _ = near_spots(spots_of(np.ones((144, 2)), coordinates), "auto")
        assert graph.crow.diff().max() == 30
        assert graph.crow.diff()[inside] == 30
    square = np.stack(np.mgrid[:12, :12], axis=2).reshape(-1, 2) * 200.0
    graph, _ = near_spots(spots_of(np.ones((144, 2)), square), "auto")
    assert graph.crow.diff()[inside] == 24


def test_the_automatic_radius_is_that_of_the_library():
    one = hexagon(6, 6)
    coordinates = np.concatenate([one, 50 * one])
    libraries = np.repeat([0, 1], 36)
    unit = spot_distance(torch.tensor(coordinates), torch.tensor(libraries))
    np.testing.assert_allclose(unit, np.where(libraries == 0, 1, 50))
    graph, _ = near_spots(spots_of(np.ones((72, 2)), coordinates, libraries=libraries), "auto")
    pairs = graph.to_scipy().toarray()
    np.testing.assert_array_equal(pairs[:36, :36], pairs[36:, 36:])
    assert not pairs[:36, 36:].any()


def test_coincident_spots_do_not_shorten_the_unit():
    coordinates = torch.tensor(np.repeat(hexagon(4, 4), 2, axis=0))
    np.testing.assert_allclose(spot_distance(coordinates, None), 1)
    np.testing.assert_array_equal(spot_distance(torch.ones(5, 2, dtype=torch.float64), None), 1)
    np.testing.assert_array_equal(spot_distance(coordinates, torch.arange(32)), 1)


def test_a_given_radius_is_not_reached():
    coordinates = np.array([[0.0, 0], [3, 0], [3, 2.5]])
    graph, lengths = near_spots(spots_of(np.ones((3, 2)), coordinates), 3)
    assert graph.to_scipy().toarray().tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert lengths.tolist() == [2.5, 2.5]


def test_ranks_are_those_of_each_spot():
    graph = SpatialGraph.from_scipy(sparse.csr_matrix(1 - np.eye(4)))
    score = torch.tensor([1.0, 3, 2, 5, 5, 5, -1, 0, -2, 4, 6, 7])
    assert rank(graph, score).tolist() == [2, 0, 1, 0, 1, 2, 1, 0, 2, 2, 1, 0]


def test_a_spot_keeps_itself_among_its_equals():
    graph = SpatialGraph.from_scipy(sparse.csr_matrix(1 - np.eye(5))).with_self_loops()
    keep = most_similar(graph, torch.ones(25), 2)
    kept = [graph.col[keep & (graph.row == i)].tolist() for i in range(5)]
    assert kept == [[0, 1], [0, 1], [0, 2], [0, 3], [0, 4]]


def test_a_row_without_weights_averages_nothing():
    graph = SpatialGraph.from_scipy(sparse.csr_matrix(1 - np.eye(3)))
    weights = torch.tensor([0.0, 0, 1, 3, 2, -2])
    matrix = average(graph, weights, torch.ones(6, dtype=bool)).to_dense()
    np.testing.assert_allclose(matrix, [[0, 0, 0], [0.25, 0, 0.75], [0, 0, 0]])


def test_vectors_without_direction_are_similar_to_themselves_only():
    graph = SpatialGraph.from_scipy(sparse.csr_matrix(1 - np.eye(3))).with_self_loops()
    flat = torch.tensor([[0.0, 0], [2, 2], [1, 2]])
    for image, expression in ((None, flat), (torch.zeros(3, 2), None)):
        found = graph.matrix(similarity(graph, image, expression, clip_negative=True)).to_dense()
        np.testing.assert_array_equal(found, np.eye(3))


def test_adjusting_in_blocks_changes_nothing(monkeypatch):
    from stdenoise.methods import sme

    rng = np.random.default_rng(0)
    values = to_csr_tensor(sparse.random(30, 17, density=0.3, random_state=rng, format="csr"), dtype=torch.float64)
    matrix = torch.tensor(rng.uniform(size=(30, 30))).to_sparse_csr()
    for mode in ("normalize", "impute"):
        whole = adjust(matrix, values, mode)
        with monkeypatch.context() as patch:
            patch.setattr(sme, "_BLOCK_ENTRIES", 100)
            torch.testing.assert_close(adjust(matrix, values, mode), whole, rtol=0, atol=1e-14)


def test_an_average_of_zero_is_missing():
    values = to_csr_tensor(sparse.csr_matrix([[4.0, 2], [0, 6]]), dtype=torch.float64)
    swap = torch.tensor([[0.0, 1], [1, 0]]).to_sparse_csr()
    assert adjust(swap, values, "normalize").tolist() == [[4, 4], [2, 4]]
    assert adjust(swap, values, "impute").tolist() == [[4, 2], [4, 6]]


def test_the_same_seed_gives_the_same_bits():
    data = drawn(5, 80, 90)
    assert torch.equal(fit(*data, seed=3).mean, fit(*data, seed=3).mean)


@given(
    some.integers(0, 10**6),
    some.integers(1, 6),
    some.integers(1, 6),
    some.sampled_from([1, 1_000_000]),
    some.sampled_from(["auto", "physical_expression", "physical_morphology", "physical"]),
    some.sampled_from(["normalize", "impute"]),
    some.booleans(),
)
def test_tiny_data(seed, n_spots, n_genes, scale, weights, mode, coincident):
    counts, coordinates, features = drawn(seed, n_spots, n_genes, n_features=1 + seed % 3)
    if coincident:
        coordinates[:] = 1
    found = fit(counts * scale, coordinates, features, weights=weights, mode=mode).mean
    assert found.shape == (n_spots, n_genes)
    assert torch.isfinite(found).all()
    # Averages stay within the range of the gene.
    x = np.asarray(lognorm(counts * scale * 1.0))
    assert (found.numpy() <= x.max(axis=0) + 1e-4).all()
    assert (found.numpy() >= 0).all()


def test_genes_of_which_none_has_counts():
    context = Context(coordinates=torch.tensor([[0.0, 0], [1, 0]], dtype=torch.float64))
    spots = make_spots(
        sparse.csr_matrix([[0, 0, 5], [0, 0, 3]], dtype=np.float32),
        list("abc"),
        positions=np.array([0, 1]),
        context=context,
        device=torch.device("cpu"),
    )
    assert (SME().fit(spots, seed=0, progress=False).mean == 0).all()


def test_empty_spots_are_filled_and_fill_none(irregular):
    empty = irregular.obs_names.get_loc("spot7")
    counts = irregular.X.toarray()
    spots = spots_of(counts, irregular.obsm["spatial"])
    graph, _ = near_spots(spots, 4.5)
    assert empty not in graph.col
    assert (graph.row == empty).any()
    mean = SME(radius=4.5, weights="physical").fit(spots, seed=0, progress=False).mean.numpy()
    assert mean[empty].sum() > 0
    np.testing.assert_array_equal(mean[:, irregular.var_names.get_loc("gene3")], 0)


@pytest.mark.parametrize("weights", ["auto", "physical_expression", "physical_morphology", "physical"])
def test_libraries_are_not_mixed(weights):
    counts, coordinates, features = drawn(6, 40, 20)
    libraries = np.arange(40) % 2
    spots = spots_of(counts, coordinates, features, libraries)
    graph, _ = near_spots(spots, "auto")
    assert (libraries[graph.row] == libraries[graph.col]).all()
    together = SME(weights=weights, n_components=10).fit(spots, seed=0, progress=False).mean.numpy()
    # A gene that only one library expresses stays 0 in the other.
    counts[libraries == 1, 0] = 0
    apart = fit(counts, coordinates, features, libraries=libraries, weights=weights, n_components=10).mean.numpy()
    assert (apart[libraries == 1, 0] == 0).all()
    assert (together[libraries == 1, 0] > 0).any()


@pytest.mark.parametrize("weights", ["auto", "physical"])
def test_a_spot_alone_in_its_library_keeps_its_values(weights):
    counts, coordinates, features = drawn(7, 30, 10)
    alone = fit(counts, coordinates, features, libraries=np.arange(30), weights=weights).mean.numpy()
    np.testing.assert_allclose(alone, lognorm(counts * 1.0), rtol=1e-5)


def test_a_radius_in_other_units_is_noticed(recwarn):
    counts, coordinates, _ = drawn(8, 30, 10)
    with pytest.warns(UserWarning, match=r"no two spots are nearer than radius=1e-06"):
        found = fit(counts, coordinates, radius=1e-6).mean.numpy()
    np.testing.assert_allclose(found, lognorm(counts * 1.0), rtol=1e-5)
    fit(counts, coordinates, radius=1e-6, libraries=np.arange(30))
    assert not recwarn


def test_the_number_of_neighbours_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        fit(np.ones((3, 4)), np.array([[0.0, 0], [1, 0], [0, 1]]))
    assert "2.0 spots within the radius" in caplog.text


def test_it_runs_behind_the_verb(irregular, reload, assert_same):
    irregular.obsm["colour"] = np.random.default_rng(0).normal(size=(41, 3))
    st.tl.denoise(irregular, SME(), library_key="library", features_key="colour")
    assert irregular.uns["sme"]["scale"] == "log1p"
    assert irregular.uns["sme"]["features_key"] == "colour"
    again = reload(irregular, ".h5ad")
    assert_same(again.layers["sme_mean"], irregular.layers["sme_mean"])


def test_coordinates_in_space(volume):
    st.tl.denoise(volume, SME())
    assert np.isfinite(volume.layers["sme_mean"]).all()


@pytest.mark.parametrize("weights", ["physical_morphology_expression", "physical_morphology"])
def test_image_weights_need_an_image(weights):
    with pytest.raises(ValueError, match="needs image features; name their key with features_key="):
        fit(*drawn(0, 10, 5)[:2], weights=weights)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weights": "expression"}, "weights='expression' is not valid; choose from"),
        ({"radius": "automatic"}, "radius='automatic' is not valid; choose from"),
        ({"radius": 0}, "radius must be a number > 0, not 0"),
        ({"n_neighbors_kept": 0}, "n_neighbors_kept must be an integer >= 1, not 0"),
        ({"n_neighbors_kept": 2.5}, "n_neighbors_kept must be an integer >= 1, not 2.5"),
        ({"n_components": 1}, "n_components must be an integer >= 2, not 1"),
        ({"mode": "impute0"}, "mode='impute0' is not valid; choose from"),
        ({"clip_negative": "no"}, "clip_negative='no' is not valid"),
        ({"k": 3}, "sme has no parameter 'k'"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SME(**params)
