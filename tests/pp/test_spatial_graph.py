from collections import Counter

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

import stdenoise as st

few_neighbours = pytest.mark.filterwarnings("ignore:spots have")


def spots(coordinates, **obs):
    adata = ad.AnnData(
        X=np.zeros((len(coordinates), 1), dtype=np.float32),
        obs=pd.DataFrame(obs, index=[str(i) for i in range(len(coordinates))]),
    )
    adata.obsm["spatial"] = np.asarray(coordinates)
    return adata


def scattered(seed, n_spots, n_dims=2):
    return np.random.default_rng(seed).uniform(size=(n_spots, n_dims))


def joined(adata, key="spatial"):
    return adata.obsp[f"{key}_connectivities"].toarray() > 0


def within(coordinates, radius):
    distances = cdist(coordinates, coordinates)
    return (distances > 0) & (distances <= radius)


def rotated(coordinates, degrees):
    angle = np.radians(degrees)
    return coordinates @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def component_count(adjacency):
    left, found = set(range(len(adjacency))), 0
    while left:
        found += 1
        queue = [left.pop()]
        while queue:
            near = set(np.flatnonzero(adjacency[queue.pop()])) & left
            left -= near
            queue += near
    return found


# What a coordinate file does to an array whose centres are 100 apart.
LATTICE_CHANGES = {
    "exact": lambda xy: xy,
    "rounded": np.round,
    "coarse": lambda xy: np.round(xy / 20),
    "jittered": lambda xy: xy + np.random.default_rng(0).normal(0, 1, xy.shape),
    "rotated": lambda xy: rotated(xy, 10),
    "pixels": lambda xy: np.round(rotated(xy, 1) * 1.37 + 3000),
}


@pytest.mark.parametrize("change", LATTICE_CHANGES)
@pytest.mark.parametrize("n_spots", [61, 300, 1200])
def test_auto_radius_joins_the_six_around_on_a_hexagonal_array(n_spots, change):
    adata = st.datasets.tissue(n_spots=n_spots, n_genes=1)
    expected = within(adata.obsm["spatial"], 120)
    adata.obsm["spatial"] = LATTICE_CHANGES[change](adata.obsm["spatial"])
    st.pp.spatial_graph(adata)
    np.testing.assert_array_equal(joined(adata), expected)


@pytest.mark.parametrize("change", LATTICE_CHANGES)
def test_mean_degree_on_a_hexagonal_array(change):
    adata = st.datasets.tissue(n_spots=1200, n_genes=1)
    adata.obsm["spatial"] = LATTICE_CHANGES[change](adata.obsm["spatial"])
    st.pp.spatial_graph(adata)
    assert 5.5 <= adata.uns["spatial_neighbors"]["stats"]["mean_degree"] <= 6


@pytest.mark.parametrize("change", LATTICE_CHANGES)
@pytest.mark.parametrize("mean_degree", [4.0, 6.0, 8.0])
def test_auto_radius_splits_no_ring_of_a_square_array(mean_degree, change):
    lattice = 100.0 * np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2)
    adata = spots(LATTICE_CHANGES[change](lattice))
    st.pp.spatial_graph(adata, mean_degree=mean_degree)
    degrees = {"edges": within(lattice, 120), "corners": within(lattice, 160)}
    wanted = {4.0: ["edges"], 6.0: ["edges", "corners"], 8.0: ["corners"]}[mean_degree]
    assert any((joined(adata) == degrees[name]).all() for name in wanted)


@few_neighbours
@given(
    some.integers(2, 3).flatmap(
        lambda n_dims: some.lists(some.tuples(*[some.integers(0, 6)] * n_dims), min_size=1, max_size=40)
    ),
    some.floats(0.5, 4),
)
def test_radius_equals_brute_force_with_coincident_spots(coordinates, radius):
    adata = spots(np.array(coordinates))
    st.pp.spatial_graph(adata, radius=radius)
    expected = within(coordinates, radius)
    np.testing.assert_array_equal(joined(adata), expected)
    lengths = np.where(expected, cdist(coordinates, coordinates), 0)
    np.testing.assert_allclose(adata.obsp["spatial_distances"].toarray(), lengths)


@given(some.integers(0, 10**6), some.sampled_from([2, 3]), some.integers(1, 12))
def test_nearest_neighbours_equal_the_union_of_scikit_learn(seed, n_dims, n_neighbors):
    coordinates = scattered(seed, 40, n_dims)
    adata = spots(coordinates)
    st.pp.spatial_graph(adata, n_neighbors=n_neighbors)
    theirs = NearestNeighbors(n_neighbors=n_neighbors).fit(coordinates).kneighbors_graph().toarray() > 0
    np.testing.assert_array_equal(joined(adata), theirs | theirs.T)


def test_more_neighbours_than_spots_joins_all():
    adata = spots(scattered(0, 5))
    st.pp.spatial_graph(adata, n_neighbors=50)
    assert joined(adata).sum() == 20


@pytest.mark.parametrize("how", [{}, {"radius": 4.5}, {"n_neighbors": 5}, {"library_key": "library"}], ids=str)
def test_graph_is_symmetric_without_loops(irregular, how):
    st.pp.spatial_graph(irregular, **how)
    for key in ("spatial_connectivities", "spatial_distances"):
        matrix = irregular.obsp[key].toarray()
        np.testing.assert_array_equal(matrix, matrix.T)
        assert (matrix.diagonal() == 0).all()


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float32])
def test_integer_and_single_precision_coordinates(dtype):
    coordinates = np.array([[3, 0], [0, 4], [0, 0], [60000, 1]], dtype=dtype)
    adata = spots(coordinates)
    st.pp.spatial_graph(adata, radius=5)
    assert adata.obsp["spatial_distances"][0].toarray().tolist() == [[0, 5, 3, 0]]
    assert adata.obsm["spatial"].dtype == dtype


def radius_of(adata, library):
    params = adata.uns["spatial_neighbors"]["params"]
    return dict(zip(params["libraries"], params["radius"], strict=True))[library]


@pytest.mark.parametrize("how", [{"radius": 4.5}, {"n_neighbors": 3}, {}], ids=str)
def test_libraries_are_built_apart(irregular, how):
    st.pp.spatial_graph(irregular, library_key="library", **how)
    graph = joined(irregular)
    library = irregular.obs["library"].to_numpy()
    assert not graph[library[:, None] != library].any()
    for name in ("left", "right"):
        part = irregular[library == name].copy()
        st.pp.spatial_graph(part, **how)
        np.testing.assert_array_equal(graph[np.ix_(library == name, library == name)], joined(part))
        assert radius_of(irregular, name) == part.uns["spatial_neighbors"]["params"]["radius"]


def test_each_library_gets_the_radius_of_its_own_scale():
    lattice = st.datasets.tissue(n_spots=300, n_genes=1).obsm["spatial"]
    adata = spots(np.concatenate([lattice, 7 * lattice]), library=[1] * 300 + [2] * 300)
    st.pp.spatial_graph(adata, library_key="library")
    assert radius_of(adata, "2") == pytest.approx(7 * radius_of(adata, "1"))
    assert joined(adata).sum() == 2 * within(lattice, 120).sum()


def test_a_category_without_spots_is_no_library(irregular):
    irregular.obs["library"] = irregular.obs["library"].cat.add_categories("absent")
    st.pp.spatial_graph(irregular, library_key="library")
    assert list(irregular.uns["spatial_neighbors"]["params"]["libraries"]) == ["left", "right"]


def test_statistics_equal_an_independent_count(irregular):
    coordinates = irregular.obsm["spatial"]
    graph = within(coordinates, 4.5)
    places = Counter(map(tuple, coordinates))
    assert irregular.uns["spatial_neighbors"]["stats"] == {
        "mean_degree": pytest.approx(graph.sum() / 41),
        "n_edges": graph.sum(),
        "n_isolated": (~graph.any(axis=1)).sum(),
        "n_coincident": sum(n for n in places.values() if n > 1),
        "n_components": component_count(graph),
    }


def test_statistics_of_the_irregular_tissue(irregular):
    stats = irregular.uns["spatial_neighbors"]["stats"]
    assert (stats["n_isolated"], stats["n_coincident"], stats["n_components"]) == (1, 2, 3)


def test_coincident_spots_are_counted_within_their_library():
    adata = spots([[0, 0], [0, 0], [1, 0], [1, 0], [0, 1], [1, 1]], library=list("aabcab"))
    st.pp.spatial_graph(adata, radius=1, library_key="library")
    assert adata.uns["spatial_neighbors"]["stats"]["n_coincident"] == 2


def test_fields_are_those_of_squidpy(hexagonal):
    sq = pytest.importorskip("squidpy")
    theirs = hexagonal.copy()
    del theirs.obsp, theirs.uns["spatial_neighbors"]
    sq.gr.spatial_neighbors(theirs, coord_type="generic", radius=120)
    assert set(theirs.obsp) == set(hexagonal.obsp)
    ours, squidpys = hexagonal.uns["spatial_neighbors"], theirs.uns["spatial_neighbors"]
    for name in ("connectivities_key", "distances_key"):
        assert ours[name] == squidpys[name]
        assert sparse.isspmatrix_csr(hexagonal.obsp[ours[name]])
    assert ours["params"]["coord_type"] == squidpys["params"]["coord_type"]
    assert ours["params"]["radius"] == squidpys["params"]["radius"]


@pytest.mark.parametrize("tissue", ["hexagonal", "volume"])
def test_edges_equal_those_of_squidpy(tissue, request, assert_same):
    sq = pytest.importorskip("squidpy")
    adata = request.getfixturevalue(tissue)
    radius = {"hexagonal": 180.0, "volume": 3.0}[tissue]
    st.pp.spatial_graph(adata, radius=radius)
    sq.gr.spatial_neighbors(adata, coord_type="generic", radius=radius, key_added="squidpy")
    assert_same(adata.obsp["spatial_connectivities"], adata.obsp["squidpy_connectivities"])
    np.testing.assert_allclose(adata.obsp["spatial_distances"].toarray(), adata.obsp["squidpy_distances"].toarray())


def test_squidpy_computes_morans_i_on_the_graph(hexagonal):
    sq = pytest.importorskip("squidpy")
    table = sq.gr.spatial_autocorr(hexagonal, mode="moran", copy=True, show_progress_bar=False)
    weights = joined(hexagonal) / joined(hexagonal).sum(axis=1, keepdims=True)
    centred = hexagonal.X.toarray() - hexagonal.X.toarray().mean(axis=0)
    morans_i = 61 / weights.sum() * np.einsum("ig,ij,jg->g", centred, weights, centred) / (centred**2).sum(axis=0)
    np.testing.assert_allclose(table.loc[hexagonal.var_names, "I"], morans_i, rtol=1e-4, atol=1e-6)


def test_parameters_are_recorded(hexagonal):
    st.pp.spatial_graph(hexagonal, n_neighbors=4)
    params = hexagonal.uns["spatial_neighbors"]["params"]
    assert params["n_neighbors"] == 4
    assert "mean_degree" not in params
    assert (params["spatial_key"], params["library_key"]) == ("spatial", "")
    st.pp.spatial_graph(hexagonal, mean_degree=5)
    assert hexagonal.uns["spatial_neighbors"]["params"]["mean_degree"] == 5


def test_a_radius_is_recorded_without_an_aim_that_had_no_part(hexagonal):
    params = hexagonal.uns["spatial_neighbors"]["params"]
    assert params["radius"] == 120
    assert "mean_degree" not in params


def test_coordinates_fall_back_to_x_spatial(hexagonal, assert_same):
    expected = hexagonal.obsp["spatial_connectivities"].copy()
    hexagonal.obsm["X_spatial"] = hexagonal.obsm["spatial"]
    del hexagonal.obsm["spatial"], hexagonal.obsp
    st.pp.spatial_graph(hexagonal, radius=120)
    assert_same(hexagonal.obsp["spatial_connectivities"], expected)
    assert hexagonal.uns["spatial_neighbors"]["params"]["spatial_key"] == "X_spatial"


def test_spatial_wins_over_x_spatial(hexagonal, assert_same):
    expected = hexagonal.obsp["spatial_connectivities"].copy()
    hexagonal.obsm["X_spatial"] = 0 * hexagonal.obsm["spatial"]
    st.pp.spatial_graph(hexagonal, radius=120)
    assert_same(hexagonal.obsp["spatial_connectivities"], expected)


def test_a_named_key_of_coordinates_does_not_fall_back(hexagonal):
    hexagonal.obsm["X_spatial"] = hexagonal.obsm["spatial"]
    with pytest.raises(KeyError, match="'other' is not in adata.obsm"):
        st.pp.spatial_graph(hexagonal, spatial_key="other")


def test_coordinates_in_a_data_frame_under_another_key(hexagonal, assert_same):
    expected = hexagonal.obsp["spatial_connectivities"].copy()
    xy = pd.DataFrame(hexagonal.obsm["spatial"], index=hexagonal.obs_names, columns=["x", "y"])
    hexagonal.obsm["centres"] = xy
    st.pp.spatial_graph(hexagonal, radius=120, spatial_key="centres", key_added="near")
    assert_same(hexagonal.obsp["near_connectivities"], expected)
    assert hexagonal.uns["near_neighbors"]["connectivities_key"] == "near_connectivities"
    assert hexagonal.uns["near_neighbors"]["distances_key"] == "near_distances"


def test_copy_leaves_the_input_as_it_was(hexagonal, unchanged, assert_same):
    with unchanged(hexagonal):
        copied = st.pp.spatial_graph(hexagonal, radius=180, key_added="wide", copy=True)
    assert st.pp.spatial_graph(hexagonal, radius=180, key_added="wide") is None
    assert_same(copied.obsp["wide_distances"], hexagonal.obsp["wide_distances"])


def test_nothing_but_the_graph_is_written(irregular, freeze):
    before = freeze(irregular)
    st.pp.spatial_graph(irregular, key_added="again")
    after = freeze(irregular)
    assert set(after["obsp"]) - set(before["obsp"]) == {"again_connectivities", "again_distances"}
    assert set(after["uns"]) - set(before["uns"]) == {"again_neighbors"}
    for name in ("X", "obs", "var", "obsm", "layers"):
        assert after[name] == before[name]


def test_a_view_is_written_to_without_its_parent(hexagonal, unchanged):
    with unchanged(hexagonal):
        view = hexagonal[:30]
        st.pp.spatial_graph(view, radius=120)
    np.testing.assert_array_equal(joined(view), within(view.obsm["spatial"], 120))


@few_neighbours
@pytest.mark.parametrize("how", [{}, {"radius": 1.0}, {"n_neighbors": 3}], ids=str)
@pytest.mark.parametrize("n_spots", [1, 2])
def test_one_spot_and_two_coincident_ones_have_no_neighbours(n_spots, how):
    adata = spots(np.zeros((n_spots, 2)))
    st.pp.spatial_graph(adata, **how)
    stats = adata.uns["spatial_neighbors"]["stats"]
    assert joined(adata).sum() == stats["mean_degree"] == 0
    assert stats["n_isolated"] == stats["n_components"] == n_spots


@pytest.mark.parametrize(("radius", "degree"), [(50, "0"), (10_000, "60")])
def test_a_radius_in_other_units_is_warned_of(hexagonal, radius, degree):
    with pytest.warns(UserWarning, match=f"spots have {degree} neighbours on average; is the radius in the units"):
        st.pp.spatial_graph(hexagonal, radius=radius)


def test_a_sensible_graph_warns_of_nothing(hexagonal, recwarn):
    st.pp.spatial_graph(hexagonal)
    assert not recwarn.list


BAD = [
    ({"radius": 0}, ValueError, "radius must be a number > 0, not 0"),
    ({"radius": -3.0}, ValueError, "radius must be a number > 0"),
    ({"radius": np.nan}, ValueError, "radius must be a number > 0"),
    ({"radius": np.inf}, ValueError, "radius must be a number > 0"),
    ({"radius": "wide"}, ValueError, "radius='wide' is not valid; choose 'auto' or a number"),
    ({"radius": None}, TypeError, "radius must be a number > 0, not None"),
    ({"radius": True}, TypeError, "radius must be a number > 0, not True"),
    ({"radius": 120, "n_neighbors": 3}, ValueError, "radius=120 and n_neighbors=3 exclude each other"),
    ({"radius": 120, "mean_degree": 3}, ValueError, "mean_degree"),
    ({"n_neighbors": 3, "mean_degree": 3}, ValueError, "mean_degree"),
    ({"n_neighbors": 0}, ValueError, "n_neighbors must be an integer >= 1"),
    ({"n_neighbors": 2.5}, TypeError, "n_neighbors must be an integer >= 1"),
    ({"mean_degree": 0}, ValueError, "mean_degree must be a number > 0"),
    ({"mean_degree": "6"}, TypeError, "mean_degree must be a number > 0"),
    ({"library_key": "regoin"}, KeyError, "'regoin' is not in adata.obs, which has 'region'. Did you mean 'region'"),
    ({"spatial_key": "spatail"}, KeyError, "'spatail' is not in adata.obsm, which has 'spatial'. Did you mean"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[str(case[0]) for case in BAD])
def test_bad_arguments(hexagonal, unchanged, arguments, error, message):
    with unchanged(hexagonal), pytest.raises(error, match=message):
        st.pp.spatial_graph(hexagonal, **arguments)


def test_no_coordinates(hexagonal, unchanged):
    del hexagonal.obsm["spatial"]
    with unchanged(hexagonal), pytest.raises(KeyError, match="'spatial' is not in adata.obsm, which has nothing"):
        st.pp.spatial_graph(hexagonal)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_coordinates_that_are_not_finite(hexagonal, unchanged, bad):
    hexagonal.obsm["spatial"][[3, 8], 1] = bad
    with unchanged(hexagonal), pytest.raises(ValueError, match="NaN or infinite coordinates in 2 spots"):
        st.pp.spatial_graph(hexagonal)


@pytest.mark.parametrize("n_dims", [1, 4])
def test_coordinates_of_other_dimensions(hexagonal, unchanged, n_dims):
    hexagonal.obsm["spatial"] = np.zeros((61, n_dims))
    with (
        unchanged(hexagonal),
        pytest.raises(ValueError, match=rf"must have 2 or 3 columns, but has shape \(61, {n_dims}\)"),
    ):
        st.pp.spatial_graph(hexagonal)


def test_missing_library(irregular, unchanged):
    irregular.obs["library"] = irregular.obs["library"].where(np.arange(41) > 1)
    with unchanged(irregular), pytest.raises(ValueError, match=r"adata.obs\['library'\] has 2 missing values"):
        st.pp.spatial_graph(irregular, library_key="library")


@pytest.mark.parametrize("what", ["array", "empty"])
def test_not_a_tissue(what, hexagonal):
    bad, error = {"array": (np.zeros((3, 2)), TypeError), "empty": (hexagonal[:0].copy(), ValueError)}[what]
    with pytest.raises(error, match="adata must be an AnnData|adata is empty: 0 spots x 12 genes"):
        st.pp.spatial_graph(bad)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("how", [{}, {"n_neighbors": 3}, {"library_key": "library"}], ids=str)
def test_graph_survives_the_disk(irregular, reload, assert_same, suffix, how):
    st.pp.spatial_graph(irregular, **how)
    back = reload(irregular, suffix)
    assert_same(irregular.obsp, back.obsp)
    assert_same(irregular.uns, back.uns)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_names_of_libraries_survive_the_disk(irregular, reload, assert_same, suffix):
    irregular.obs["library"] = irregular.obs["library"].cat.rename_categories({"left": "mouse/1", "right": "mouse/2"})
    st.pp.spatial_graph(irregular, library_key="library")
    assert_same(irregular.uns, reload(irregular, suffix).uns)


def test_names_of_libraries_that_read_alike_stay_apart():
    lattice = st.datasets.tissue(n_spots=40, n_genes=1).obsm["spatial"]
    adata = spots(np.concatenate([lattice, lattice]), library=[1] * 40 + ["1"] * 40)
    st.pp.spatial_graph(adata, library_key="library")
    assert joined(adata).sum() == 2 * within(lattice, 120).sum()
