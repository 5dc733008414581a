"""The verb that clusters: what it writes, and what it leaves alone."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import stdenoise as st
from stdenoise.stats.labels import refine_labels


@pytest.fixture(scope="module")
def section():
    return st.datasets.tissue(n_spots=300, n_genes=60, seed=1)


def test_writes_categories_by_falling_size(section, freeze):
    adata = section.copy()
    assert st.tl.cluster(adata, 5, n_components=8, seed=3) is None
    column = adata.obs["cluster"]
    assert list(column.cat.categories) == ["0", "1", "2", "3", "4"]
    assert (np.diff(column.value_counts(sort=False)) <= 0).all()
    assert adjusted_rand_score(adata.obs["region"], column) > 0.5
    record = adata.uns["cluster"]
    assert (record["backend"], record["seed"], record["params"]["n_dimensions"]) == ("native", 3, 8)
    n_parameters = 4 + 5 * 8 + 36
    assert record["bic"] == pytest.approx(2 * record["loglik"] - n_parameters * np.log(300))
    assert freeze(st.tl.cluster(section, 5, n_components=8, seed=3, copy=True)) == freeze(adata)
    del adata.obs["cluster"], adata.uns["cluster"]
    assert freeze(adata) == freeze(section)


@pytest.mark.parametrize(("suffix", "genes"), [(".h5ad", None), (".zarr", ["gene1", "gene2", "gene5", "gene9"])])
def test_survives_a_file(section, genes, suffix, unchanged, reload, assert_same):
    with unchanged(section):
        out = st.tl.cluster(section, 3, genes=genes, n_components=3, refine=5, key_added="domain", copy=True)
    again = reload(out, suffix)
    assert_same(again.uns["domain"], out.uns["domain"])
    assert list(again.obs["domain"]) == list(out.obs["domain"])
    st.tl.cluster(again, 1, n_components=3, key_added="domain")
    assert set(again.obs["domain"]) == {"0"}


def test_refinement_votes_over_the_plain_clusters(section):
    plain = st.tl.cluster(section, 5, n_components=8, copy=True)
    smooth = st.tl.cluster(section, 5, n_components=8, refine=6, copy=True)
    assert plain.uns["cluster"]["loglik"] == smooth.uns["cluster"]["loglik"]
    voted = refine_labels(section.obsm["spatial"], plain.obs["cluster"].cat.codes.to_numpy(), 6)
    np.testing.assert_array_equal(smooth.obs["cluster"].astype(int), voted)
    assert list(smooth.obs["cluster"]) != list(plain.obs["cluster"])


def test_what_is_refused_leaves_nothing(section, unchanged):
    adata = section.copy()
    adata.obsm["twice"] = adata.obsm["spatial"][:, [0, 1, 1]]
    adata.uns["notes"] = {"model": "mine"}
    for arguments, error, fragment in (
        ({"key_added": "region"}, ValueError, "obs/region exists"),
        ({"key_added": "notes"}, ValueError, "uns/notes exists"),
        ({"key_added": ""}, TypeError, "key_added"),
        ({"key_added": 3}, TypeError, "key_added"),
        ({"seed": -1}, ValueError, "seed .*not -1"),
        ({"use_rep": "twice"}, ValueError, "linear combinations"),
        # Before the fit, which would fail.
        ({"use_rep": "twice", "spatial_key": "xy", "refine": 3}, KeyError, "'xy' is not in adata.obsm"),
        ({"use_rep": "twice", "spatial_key": "xy"}, KeyError, "'xy' is not in adata.obsm"),
    ):
        with unchanged(adata), pytest.raises(error, match=fragment):
            st.tl.cluster(adata, 3, **arguments)
