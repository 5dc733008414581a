"""The verb that clusters: what it writes, and what it leaves alone."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from stdenoise.datasets import tissue
from stdenoise.stats import clusters as _clusters
from stdenoise.stats.labels import refine_labels
from stdenoise.tl._cluster import cluster


@pytest.fixture(scope="module")
def section():
    return tissue(n_spots=300, n_genes=60, seed=1)


def test_writes_categories_by_falling_size(section, freeze):
    adata = section.copy()
    assert cluster(adata, 5, n_components=8) is None
    column = adata.obs["cluster"]
    assert list(column.cat.categories) == ["0", "1", "2", "3", "4"]
    assert (np.diff(column.value_counts(sort=False)) <= 0).all()
    assert adjusted_rand_score(adata.obs["region"], column) > 0.5
    record = adata.uns["cluster"]
    assert record["backend"] == "native"
    assert record["params"]["n_dimensions"] == 8
    n_parameters = 4 + 5 * 8 + 36
    assert record["bic"] == pytest.approx(2 * record["loglik"] - n_parameters * np.log(300))
    del adata.obs["cluster"], adata.uns["cluster"]
    assert freeze(adata) == freeze(section)


def test_copy_leaves_the_input_alone(section, unchanged):
    with unchanged(section):
        out = cluster(section, 4, n_components=5, key_added="domain", copy=True)
    assert "domain" in out.obs
    assert "domain" in out.uns


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("genes", [None, ["gene1", "gene2", "gene5", "gene9"]])
def test_survives_a_file(section, genes, suffix, reload, assert_same):
    out = cluster(section, 3, genes=genes, n_components=3, refine=5, copy=True)
    again = reload(out, suffix)
    assert_same(again.uns["cluster"], out.uns["cluster"])
    assert list(again.obs["cluster"]) == list(out.obs["cluster"])
    cluster(again, 2, n_components=3)
    assert again.obs["cluster"].nunique() == 2


def test_refinement_votes_over_the_plain_clusters(section):
    plain = cluster(section, 5, n_components=8, copy=True)
    smooth = cluster(section, 5, n_components=8, refine=6, copy=True)
    assert plain.uns["cluster"]["loglik"] == smooth.uns["cluster"]["loglik"]
    voted = refine_labels(section.obsm["spatial"], plain.obs["cluster"].cat.codes.to_numpy(), 6)
    np.testing.assert_array_equal(smooth.obs["cluster"].astype(int), voted)
    assert list(smooth.obs["cluster"]) != list(plain.obs["cluster"])


def test_one_cluster(section):
    out = cluster(section, 1, n_components=4, copy=True)
    assert set(out.obs["cluster"]) == {"0"}


def test_the_same_seed_gives_the_same_record(section, freeze):
    first, second = (cluster(section, 5, n_components=8, seed=3, copy=True) for _ in range(2))
    assert freeze(first) == freeze(second)


def test_never_overwrites_what_is_not_its_own(section, unchanged):
    with unchanged(section), pytest.raises(ValueError, match="obs/region exists"):
        cluster(section, 3, n_components=4, key_added="region")


@pytest.mark.parametrize("key", ["", 3])
def test_key_must_be_a_name(section, key):
    with pytest.raises(TypeError, match="key_added"):
        cluster(section, 3, key_added=key)


def test_coordinates_are_checked_before_the_fit(section, unchanged, monkeypatch):
    monkeypatch.setattr(_clusters, "fit", lambda *_, **__: pytest.fail("work was done"))
    with unchanged(section), pytest.raises(KeyError, match="'xy' is not in adata.obsm"):
        cluster(section, 3, n_components=4, refine=3, spatial_key="xy")
    with unchanged(section), pytest.raises(KeyError, match="'xy' is not in adata.obsm"):
        cluster(section, 3, n_components=4, spatial_key="xy")


def test_nothing_is_written_when_the_fit_fails(section, unchanged):
    adata = section.copy()
    adata.obsm["twice"] = adata.obsm["spatial"][:, [0, 1, 1]]
    with unchanged(adata), pytest.raises(ValueError, match="linear combinations"):
        cluster(adata, 3, use_rep="twice")
