import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import pdist

import stdenoise as st


@pytest.fixture(scope="module")
def tissue():
    return st.datasets.tissue()


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (100, 1)])
def test_shape(shape):
    adata = st.datasets.tissue(*shape)
    assert adata.shape == shape
    assert adata.obsm["spatial"].shape == (shape[0], 2)
    assert np.isfinite(adata.layers["true_mean"]).all()
    assert (adata.obsm["spatial"] >= -1e-9).all()


def test_default_shape_types_and_counts(tissue):
    assert tissue.shape == (1200, 300)
    assert sparse.isspmatrix_csr(tissue.X)
    assert tissue.X.dtype == tissue.layers["true_mean"].dtype == np.float32
    assert tissue.obs_names.is_unique
    assert tissue.var_names.is_unique
    assert tissue.X.data.min() >= 0
    np.testing.assert_array_equal(tissue.X.data, np.rint(tissue.X.data))


def test_the_seed_gives_the_counts_and_not_the_places(freeze):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (st.datasets.tissue(50, 10, seed=seed) for seed in (3, 3, 1))
    assert freeze(first) == freeze(again)
    assert (first.X != other.X).nnz > 0
    np.testing.assert_array_equal(first.obsm["spatial"], other.obsm["spatial"])
    # Global generators are left alone.
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_a_round_section_of_spots_100_apart_on_a_hexagonal_array(tissue):
    lengths = pdist(tissue.obsm["spatial"])
    assert lengths.min() == pytest.approx(100)
    # Between the rings of a hexagonal array, at 1 and at the square root of 3, there is nothing.
    assert not ((lengths > 101) & (lengths < 173)).any()
    assert 5.5 < 2 * (lengths < 101).sum() / 1200 < 6
    centred = tissue.obsm["spatial"] - tissue.obsm["spatial"].mean(axis=0)
    area = 1200 * 100**2 * np.sqrt(0.75)
    assert np.hypot(*centred.T).max() == pytest.approx(np.sqrt(area / np.pi), rel=0.03)


def test_counts_scatter_around_the_true_mean(tissue):
    mean = tissue.layers["true_mean"].astype(float)
    counts = tissue.X.toarray()
    assert counts.sum() == pytest.approx(mean.sum(), rel=0.01)
    # Negative binomial with inverse dispersion 5: variance mean + mean^2 / 5.
    assert ((counts - mean) ** 2).sum() == pytest.approx((mean + mean**2 / 5).sum(), rel=0.05)


def test_one_third_of_the_genes_is_the_same_in_all_five_regions(tissue):
    regions = tissue.obs["region"]
    assert set(regions) == {"core", "inner", "outer", "rim", "islet"}
    assert regions.value_counts().min() > 10
    one_per_region = np.unique(regions, return_index=True)[1]
    logs = np.log(tissue.layers["true_mean"][one_per_region].astype(float))
    # From one region to another, genes without a pattern all change alike: by the depth of the two spots.
    changes = np.round(logs[1:] - logs[0], 3)
    _, alike = np.unique(changes, axis=1, return_counts=True)
    assert 0.25 < alike.max() / 300 < 0.42
    assert (alike == 1).sum() + alike.max() > 290


def test_bad_input():
    for change, error, words in [
        ({"n_spots": 0}, ValueError, "n_spots.* 0"),
        ({"n_genes": -1}, ValueError, "n_genes.* -1"),
        ({"n_spots": 10.0}, TypeError, "n_spots.* 10.0"),
        ({"seed": -1}, ValueError, "seed.* -1"),
        ({"seed": "a"}, TypeError, "seed.* 'a'"),
    ]:
        with pytest.raises(error, match=words):
            st.datasets.tissue(**change)
