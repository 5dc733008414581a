"""Numbers of any type are understood or refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stdenoise as st
from stdenoise._io.matrix import read_numbers

WIDE = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("kind", ["float16", ">f4", ">f8", "longdouble", ">i4", "uint8", "bool"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_any_type_of_number_is_one_that_all_libraries_know(kind, form):
    values = form(WIDE if form is np.asarray else WIDE.astype(np.float64))
    values = values.astype(kind) if form is np.asarray else with_data(values, kind)
    ours = read_numbers(values, "X")
    assert ours.dtype.isnative
    assert ours.dtype.itemsize <= 8
    dense = ours.toarray() if sparse.issparse(ours) else ours
    np.testing.assert_array_equal(dense, WIDE.astype(kind).astype(float))


def with_data(matrix, kind):
    """Give a matrix a type that scipy would not take."""
    matrix.data = matrix.data.astype(kind)
    return matrix


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16"])
def test_repeated_entries_do_not_overflow(kind):
    # 100 three times at one place.
    parts = (np.full(3, 100, kind), ([1, 1, 1], [2, 2, 2]))
    narrow = sparse.csr_matrix((parts[0], [2, 2, 2], [0, 0, 3, 3]), shape=(3, 4))
    for matrix in (narrow, sparse.coo_matrix(parts, shape=(3, 4))):
        assert read_numbers(matrix, "X").toarray()[1, 2] == 300
    adata = st.datasets.tissue(n_spots=40, n_genes=5)
    counts = np.minimum(adata.X.toarray() * 60, 200) // 2
    halves = sparse.csr_matrix(counts)
    halves.data, halves.indices, halves.indptr = (
        np.repeat(halves.data, 2),
        np.repeat(halves.indices, 2),
        halves.indptr * 2,
    )
    adata.X = with_data(halves, kind)
    st.tl.denoise(adata, "raw")
    np.testing.assert_array_equal(adata.layers["raw_mean"], 2 * counts)
    st.pp.spatial_graph(adata)
    whole = adata.copy()
    whole.X = sparse.csr_matrix(2 * counts)
    pd.testing.assert_frame_equal(st.metrics.morans_i(adata), st.metrics.morans_i(whole))


def damaged(matrix, name, place, value):
    matrix = matrix.copy()
    getattr(matrix, name)[place] = value
    return matrix


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("indices", 7, 10**6),
        ("indices", 7, -1),
        ("indptr", 0, 3),
        ("indptr", -1, 20),
        ("indptr", 20, 0),
        ("indptr", 5, 10**6),
    ],
)
@pytest.mark.parametrize("where", ["X", "layer", "graph", "expression"])
def test_a_damaged_pattern_is_refused(name, place, value, where):
    adata = st.datasets.tissue(n_spots=60, n_genes=20)
    st.pp.spatial_graph(adata)
    if where == "graph":
        adata.obsp["spatial_connectivities"] = damaged(adata.obsp["spatial_connectivities"], name, place, value)
    elif where == "layer":
        adata.layers["counts"] = damaged(adata.X, name, place, value)
    else:
        adata.X = damaged(adata.X, name, place, value)
    with pytest.raises(ValueError, match="(X|layers.*|obsp.*) is damaged"):
        if where == "expression":
            st.metrics.morans_i(adata)
        else:
            st.tl.denoise(adata, "neighbor_mean", layer="counts" if where == "layer" else None)


@pytest.mark.parametrize(
    ("values", "error", "fragment"),
    [
        (np.full((40, 2), 1 + 2j), TypeError, "complex128"),
        (np.full((40, 2), "1.0"), TypeError, "<U3"),
        (pd.DataFrame({"x": ["1.0"] * 40, "y": ["2"] * 40}), TypeError, "real numbers, not"),
        (np.full((40, 2), 1.0, dtype=object), TypeError, "object"),
        (pd.DataFrame(np.ones((40, 2))).astype("Float64"), ValueError, "NaN or infinite coordinates in 1 spots"),
    ],
    ids=["complex", "text", "text in a table", "objects", "NA"],
)
def test_coordinates_that_are_no_numbers(values, error, fragment):
    adata = st.datasets.tissue(n_spots=40, n_genes=5)
    if isinstance(values, pd.DataFrame):
        values = values.set_axis(adata.obs_names)
        if error is ValueError:
            values.iloc[3, 0] = pd.NA
    adata.obsm["spatial"] = values
    with pytest.raises(error, match=f"obsm\\['spatial'\\].*{fragment}"):
        st.pp.spatial_graph(adata)


def test_sparse_coordinates_and_nullable_ones_are_read():
    adata = st.datasets.tissue(n_spots=40, n_genes=5)
    st.pp.spatial_graph(adata)
    expected = adata.obsp["spatial_distances"].toarray()
    xy = adata.obsm["spatial"]
    for values in (sparse.csr_matrix(xy), pd.DataFrame(xy, index=adata.obs_names).astype("Float64")):
        adata.obsm["spatial"] = values
        st.pp.spatial_graph(adata)
        np.testing.assert_array_equal(adata.obsp["spatial_distances"].toarray(), expected)


@pytest.mark.parametrize("kind", [str, "category"])
def test_marks_of_genes_as_text_are_refused_and_numbers_taken(kind):
    adata = st.datasets.tissue(n_spots=40, n_genes=20)
    adata.var["highly_variable"] = pd.Series(np.where(np.arange(20) < 10, "True", "False"), adata.var_names).astype(
        kind
    )
    st.pp.spatial_graph(adata)
    for call in (
        lambda: st.tl.denoise(adata, "raw", genes="highly_variable"),
        lambda: st.metrics.morans_i(adata, genes="highly_variable"),
    ):
        with pytest.raises(TypeError, match="highly_variable.* True and False, not 'True'"):
            call()
    for numbers in ((np.arange(20) < 10).astype(float), pd.array(np.arange(20) < 10, dtype="boolean")):
        adata.var["highly_variable"] = numbers
        assert len(st.metrics.morans_i(adata, genes="highly_variable")) == 10
    adata.var["highly_variable"] = pd.array([True, None, *[False] * 18], dtype="boolean")
    with pytest.raises(ValueError, match="1 missing"):
        st.metrics.morans_i(adata, genes="highly_variable")
