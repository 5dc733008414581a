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


def joined(adata, key="spatial"):
    return adata.obsp[f"{key}_connectivities"].toarray() > 0


def within(coordinates, radius):
    distances = cdist(coordinates, coordinates)
    return (distances > 0) & (distances <= radius)


def rotated(coordinates, degrees):
    angle = np.radians(degrees)
    return coordinates @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


# What a coordinate file does to an array whose centres are 100 apart.
LATTICE_CHANGES = {
    "exact": lambda xy: xy,
    "rounded": np.round,
    "coarse": lambda xy: np.round(xy / 20),
    "jittered": lambda xy: xy + np.random.default_rng(0).normal(0, 1, xy.shape),
    "pixels": lambda xy: np.round(rotated(xy, 10) * 1.37 + 3000),
}


@pytest.mark.parametrize("change", LATTICE_CHANGES)
def test_auto_radius_splits_no_ring_of_an_array(change, recwarn):
    for n_spots in (61, 1200):
        adata = st.datasets.tissue(n_spots=n_spots, n_genes=1)
        expected = within(adata.obsm["spatial"], 120)
        adata.obsm["spatial"] = LATTICE_CHANGES[change](adata.obsm["spatial"])
        st.pp.spatial_graph(adata)
        np.testing.assert_array_equal(joined(adata), expected)
    assert 5.5 <= adata.uns["spatial_neighbors"]["stats"]["mean_degree"] <= 6
    square = 100.0 * np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2)
    adata = spots(LATTICE_CHANGES[change](square))
    edges, corners = within(square, 120), within(square, 160)
    for mean_degree, wanted in ((4.0, [edges]), (6.0, [edges, corners]), (8.0, [corners])):
        st.pp.spatial_graph(adata, mean_degree=mean_degree)
        assert any((joined(adata) == expected).all() for expected in wanted)
        assert adata.uns["spatial_neighbors"]["params"]["mean_degree"] == mean_degree
    assert not [warning for warning in recwarn if warning.category is UserWarning]


def n_components(adjacency):
    left, found = set(range(len(adjacency))), 0
    while left:
        found += 1
        queue = [left.pop()]
        while queue:
            near = set(np.flatnonzero(adjacency[queue.pop()])) & left
            left -= near
            queue += near
    return found


@few_neighbours
@given(
    some.integers(2, 3).flatmap(
        lambda n_dims: some.lists(some.tuples(*[some.integers(0, 6)] * n_dims), min_size=1, max_size=40)
    ),
    some.floats(0.5, 4),
    some.sampled_from([np.int32, np.uint16, np.float32, np.float64]),
)
def test_radius_and_statistics_equal_brute_force_with_coincident_spots(coordinates, radius, dtype):
    adata = spots(np.array(coordinates, dtype=dtype) + dtype(60000))
    st.pp.spatial_graph(adata, radius=radius)
    expected = within(coordinates, radius)
    np.testing.assert_array_equal(joined(adata), expected)
    lengths = np.where(expected, cdist(coordinates, coordinates), 0)
    np.testing.assert_allclose(adata.obsp["spatial_distances"].toarray(), lengths)
    assert adata.obsm["spatial"].dtype == dtype
    assert adata.uns["spatial_neighbors"]["stats"] == {
        "mean_degree": pytest.approx(expected.sum() / len(coordinates)),
        "n_edges": expected.sum(),
        "n_isolated": (~expected.any(axis=1)).sum(),
        "n_coincident": sum(n for n in Counter(coordinates).values() if n > 1),
        "n_components": n_components(expected),
    }


@given(some.integers(0, 10**6), some.sampled_from([2, 3]), some.integers(1, 12))
def test_nearest_neighbours_equal_the_union_of_scikit_learn(seed, n_dims, n_neighbors):
    coordinates = np.random.default_rng(seed).uniform(size=(40, n_dims))
    adata = spots(coordinates)
    st.pp.spatial_graph(adata, n_neighbors=n_neighbors)
    theirs = NearestNeighbors(n_neighbors=n_neighbors).fit(coordinates).kneighbors_graph().toarray() > 0
    np.testing.assert_array_equal(joined(adata), theirs | theirs.T)
    lengths = np.where(joined(adata), cdist(coordinates, coordinates), 0)
    np.testing.assert_allclose(adata.obsp["spatial_distances"].toarray(), lengths)
    st.pp.spatial_graph(adata, n_neighbors=50)
    assert joined(adata).sum() == 40 * 39


@few_neighbours
@pytest.mark.parametrize("how", [{}, {"radius": 1.0}, {"n_neighbors": 3}], ids=str)
@pytest.mark.parametrize("n_spots", [1, 2])
def test_one_spot_and_two_coincident_ones_have_no_neighbours(n_spots, how):
    adata = spots(np.zeros((n_spots, 2)))
    st.pp.spatial_graph(adata, **how)
    stats = adata.uns["spatial_neighbors"]["stats"]
    assert joined(adata).sum() == stats["mean_degree"] == 0
    assert stats["n_isolated"] == stats["n_components"] == n_spots


@pytest.mark.parametrize("how", [{"radius": 4.5}, {"n_neighbors": 3}, {}], ids=str)
def test_libraries_are_built_apart(irregular, how, reload, assert_same):
    # Names with a slash do not suit files, and a category without spots is no library.
    names = ["mouse/1", "mouse/2"]
    irregular.obs["library"] = irregular.obs["library"].cat.rename_categories(names).cat.add_categories("absent")
    st.pp.spatial_graph(irregular, library_key="library", **how)
    graph, params = joined(irregular), irregular.uns["spatial_neighbors"]["params"]
    np.testing.assert_array_equal(graph, graph.T)
    assert params["library_key"] == "library"
    assert list(params["libraries"]) == names
    library = irregular.obs["library"].to_numpy()
    assert not graph[library[:, None] != library].any()
    for name, radius in zip(names, params["radius"], strict=True):
        part = irregular[library == name].copy()
        st.pp.spatial_graph(part, **how)
        np.testing.assert_array_equal(graph[np.ix_(library == name, library == name)], joined(part))
        assert radius == part.uns["spatial_neighbors"]["params"]["radius"]
    back = reload(irregular, ".zarr" if how else ".h5ad")
    assert_same(irregular.obsp, back.obsp)
    assert_same(irregular.uns, back.uns)


@pytest.mark.parametrize(("names", "scale"), [((1, 2), 7), ((1, "1"), 1)])
def test_each_library_gets_the_radius_of_its_own_scale_and_names_that_read_alike_stay_apart(names, scale):
    lattice = st.datasets.tissue(n_spots=300, n_genes=1).obsm["spatial"]
    adata = spots(np.concatenate([lattice, scale * lattice]), library=[names[0]] * 300 + [names[1]] * 300)
    st.pp.spatial_graph(adata, library_key="library")
    first, second = adata.uns["spatial_neighbors"]["params"]["radius"]
    assert second == pytest.approx(scale * first)
    assert joined(adata).sum() == 2 * within(lattice, 120).sum()


def test_coincident_spots_are_counted_within_their_library():
    adata = spots([[0, 0], [0, 0], [1, 0], [1, 0], [0, 1], [1, 1]], library=list("aabcab"))
    st.pp.spatial_graph(adata, radius=1, library_key="library")
    assert adata.uns["spatial_neighbors"]["stats"]["n_coincident"] == 2


@pytest.mark.parametrize(("tissue", "radius"), [("hexagonal", 180.0), ("volume", 3.0)])
def test_fields_and_edges_are_those_of_squidpy(tissue, radius, request, assert_same):
    sq = pytest.importorskip("squidpy")
    adata = request.getfixturevalue(tissue)
    theirs = adata.copy()
    del theirs.obsp, theirs.uns["spatial_neighbors"]
    st.pp.spatial_graph(adata, radius=radius)
    sq.gr.spatial_neighbors(theirs, coord_type="generic", radius=radius)
    assert set(theirs.obsp) == set(adata.obsp)
    ours, squidpys = adata.uns["spatial_neighbors"], theirs.uns["spatial_neighbors"]
    for name in ("connectivities_key", "distances_key"):
        assert ours[name] == squidpys[name]
        assert sparse.isspmatrix_csr(adata.obsp[ours[name]])
        np.testing.assert_allclose(adata.obsp[ours[name]].toarray(), theirs.obsp[ours[name]].toarray())
    for name in ("coord_type", "radius"):
        assert ours["params"][name] == squidpys["params"][name]
    assert "mean_degree" not in ours["params"]
    # It reads the graph for its statistics.
    table = sq.gr.spatial_autocorr(adata, mode="moran", copy=True, show_progress_bar=False)
    morans_i = st.metrics.morans_i(adata)["morans_i"]
    np.testing.assert_allclose(table.loc[morans_i.index, "I"], morans_i, rtol=1e-4, atol=1e-6)


def test_where_coordinates_are_read(hexagonal, assert_same):
    expected, xy = hexagonal.obsp["spatial_connectivities"].copy(), hexagonal.obsm["spatial"]
    hexagonal.obsm["X_spatial"] = 0 * xy
    st.pp.spatial_graph(hexagonal, radius=120)
    assert_same(hexagonal.obsp["spatial_connectivities"], expected)
    hexagonal.obsm["centres"] = pd.DataFrame(xy, index=hexagonal.obs_names, columns=["x", "y"])
    st.pp.spatial_graph(hexagonal, radius=120, spatial_key="centres", key_added="near")
    assert_same(hexagonal.obsp["near_connectivities"], expected)
    assert hexagonal.uns["near_neighbors"]["connectivities_key"] == "near_connectivities"
    assert hexagonal.uns["near_neighbors"]["distances_key"] == "near_distances"
    # `X_spatial` stands in for `spatial`, and for no other key.
    hexagonal.obsm["X_spatial"] = hexagonal.obsm.pop("spatial")
    with pytest.raises(KeyError, match="'other'"):
        st.pp.spatial_graph(hexagonal, spatial_key="other")
    st.pp.spatial_graph(hexagonal, n_neighbors=4)
    params = hexagonal.uns["spatial_neighbors"]["params"]
    assert (params["spatial_key"], params["library_key"], params["n_neighbors"]) == ("X_spatial", "", 4)
    assert "mean_degree" not in params
    st.pp.spatial_graph(hexagonal, radius=120)
    assert_same(hexagonal.obsp["spatial_connectivities"], expected)


def test_a_copy_and_a_view_leave_their_origin_and_nothing_but_the_graph_is_written(hexagonal, unchanged, freeze):
    before = freeze(hexagonal)
    with unchanged(hexagonal):
        copied = st.pp.spatial_graph(hexagonal, radius=180, key_added="wide", copy=True)
        view = hexagonal[:30]
        st.pp.spatial_graph(view, radius=120)
    np.testing.assert_array_equal(joined(view), within(view.obsm["spatial"], 120))
    assert st.pp.spatial_graph(hexagonal, radius=180, key_added="wide") is None
    after = freeze(hexagonal)
    assert freeze(copied) == after
    for place, names in (("obsp", ("wide_connectivities", "wide_distances")), ("uns", ("wide_neighbors",))):
        for name in names:
            del after[place][name]
    assert after == before


@pytest.mark.parametrize(("radius", "degree"), [(50, "0"), (10_000, "60")])
def test_a_radius_in_other_units_is_warned_of(hexagonal, radius, degree):
    with pytest.warns(UserWarning, match=f"{degree} neighbours"):
        st.pp.spatial_graph(hexagonal, radius=radius)


def test_bad_input(hexagonal, unchanged):
    obsm, obs = hexagonal.obsm, hexagonal.obs
    for name, bad in (("nan", np.nan), ("inf", np.inf)):
        obsm[name] = obsm["spatial"].copy()
        obsm[name][[3, 8], 1] = bad
    obsm["line"], obsm["four"] = np.zeros((61, 1)), np.zeros((61, 4))
    obs["holes"] = obs["region"].where(np.arange(61) > 1)
    with unchanged(hexagonal):
        for change, error, words in [
            ({"radius": 0}, ValueError, "radius.* 0"),
            ({"radius": -3.0}, ValueError, "radius.* -3.0"),
            ({"radius": np.nan}, ValueError, "radius.* nan"),
            ({"radius": np.inf}, ValueError, "radius.* inf"),
            ({"radius": "wide"}, ValueError, "radius='wide'.* 'auto'"),
            ({"radius": None}, TypeError, "radius.* None"),
            ({"radius": True}, TypeError, "radius.* True"),
            ({"radius": 120, "n_neighbors": 3}, ValueError, "radius=120 and n_neighbors=3"),
            ({"radius": 120, "mean_degree": 3}, ValueError, "mean_degree=3"),
            ({"n_neighbors": 3, "mean_degree": 3}, ValueError, "mean_degree=3"),
            ({"n_neighbors": 0}, ValueError, "n_neighbors.* 0"),
            ({"n_neighbors": 2.5}, TypeError, "n_neighbors.* 2.5"),
            ({"mean_degree": 0}, ValueError, "mean_degree.* 0"),
            ({"mean_degree": "6"}, TypeError, "mean_degree.* '6'"),
            ({"key_added": ""}, TypeError, "key_added"),
            ({"library_key": "regoin"}, KeyError, "'regoin'.* 'region'"),
            ({"library_key": "holes"}, ValueError, r"\['holes'\].* 2 missing"),
            ({"spatial_key": "spatail"}, KeyError, "'spatail'.* 'spatial'"),
            ({"spatial_key": "nan"}, ValueError, "2 spots"),
            ({"spatial_key": "inf"}, ValueError, "2 spots"),
            ({"spatial_key": "line"}, ValueError, r"\(61, 1\)"),
            ({"spatial_key": "four"}, ValueError, r"\(61, 4\)"),
        ]:
            with pytest.raises(error, match=words):
                st.pp.spatial_graph(hexagonal, **change)
    with pytest.raises(TypeError, match="AnnData"):
        st.pp.spatial_graph(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="0 spots x 12 genes"):
        st.pp.spatial_graph(hexagonal[:0].copy())
    del hexagonal.obsm
    with pytest.raises(KeyError, match="'spatial'.* nothing"):
        st.pp.spatial_graph(hexagonal)
