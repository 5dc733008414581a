import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import pdist

import stdenoise as st


@pytest.fixture(scope="module")
def tissue():
    return st.datasets.tissue()


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 3), (61, 12), (100, 1)])
def test_shape(shape):
    adata = st.datasets.tissue(*shape)
    assert adata.shape == shape
    assert adata.obsm["spatial"].shape == (shape[0], 2)
    assert np.isfinite(adata.layers["true_mean"]).all()
    assert (adata.obsm["spatial"] >= -1e-9).all()


def test_default_shape_and_types(tissue):
    assert tissue.shape == (1200, 300)
    assert sparse.isspmatrix_csr(tissue.X)
    assert tissue.X.dtype == tissue.layers["true_mean"].dtype == np.float32
    assert tissue.obs_names.is_unique
    assert tissue.var_names.is_unique


def test_values_are_counts(tissue):
    assert tissue.X.data.min() >= 0
    np.testing.assert_array_equal(tissue.X.data, np.rint(tissue.X.data))


def test_the_same_seed_gives_the_same_tissue(freeze):
    assert freeze(st.datasets.tissue(50, 10, seed=3)) == freeze(st.datasets.tissue(50, 10, seed=3))


def test_another_seed_gives_other_counts_in_the_same_places():
    first, second = (st.datasets.tissue(50, 10, seed=seed) for seed in (0, 1))
    assert (first.X != second.X).nnz > 0
    np.testing.assert_array_equal(first.obsm["spatial"], second.obsm["spatial"])


def test_global_generators_are_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    st.datasets.tissue(20, 5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_spots_are_100_apart_on_a_hexagonal_array(tissue):
    lengths = pdist(tissue.obsm["spatial"])
    assert lengths.min() == pytest.approx(100)
    # Between the rings of a hexagonal array, at 1 and at the square root of 3, there is nothing.
    assert not ((lengths > 101) & (lengths < 173)).any()
    degree = 2 * (lengths < 101).sum() / 1200
    assert 5.5 < degree < 6


def test_the_section_is_round(tissue):
    centred = tissue.obsm["spatial"] - tissue.obsm["spatial"].mean(axis=0)
    area = 1200 * 100**2 * np.sqrt(0.75)
    assert np.hypot(*centred.T).max() == pytest.approx(np.sqrt(area / np.pi), rel=0.03)


def test_five_regions_have_spots(tissue):
    assert set(tissue.obs["region"]) == {"core", "inner", "outer", "rim", "islet"}
    assert tissue.obs["region"].value_counts().min() > 10


def test_counts_scatter_around_the_true_mean(tissue):
    mean = tissue.layers["true_mean"].astype(float)
    counts = tissue.X.toarray()
    assert counts.sum() == pytest.approx(mean.sum(), rel=0.01)
    # Negative binomial with inverse dispersion 5: variance mean + mean^2 / 5.
    assert ((counts - mean) ** 2).sum() == pytest.approx((mean + mean**2 / 5).sum(), rel=0.05)


def test_one_third_of_the_genes_is_the_same_everywhere(tissue):
    one_per_region = np.unique(tissue.obs["region"], return_index=True)[1]
    logs = np.log(tissue.layers["true_mean"][one_per_region].astype(float))
    # From one region to another, genes without a pattern all change alike: by the depth of the two spots.
    changes = np.round(logs[1:] - logs[0], 3)
    _, alike = np.unique(changes, axis=1, return_counts=True)
    assert 0.25 < alike.max() / 300 < 0.42
    assert (alike == 1).sum() + alike.max() > 290


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_spots": 0}, ValueError, "n_spots must be an integer >= 1, not 0"),
        ({"n_genes": -1}, ValueError, "n_genes must be an integer >= 1"),
        ({"n_spots": 10.0}, TypeError, "n_spots must be an integer >= 1"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0"),
        ({"seed": "a"}, TypeError, "seed must be an integer >= 0"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        st.datasets.tissue(**arguments)
