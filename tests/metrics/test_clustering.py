"""Scores of clusters against an annotation."""

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from stdenoise.datasets import tissue
from stdenoise.metrics._clustering import clustering
from stdenoise.stats import clusters as _clusters

COLUMNS = [
    *("seed", "ari", "nmi", "homogeneity", "completeness", "accuracy"),
    *("loglik", "n_scored", "n_dropped", "n_clusters"),
]


@pytest.fixture(scope="module")
def section():
    return tissue(n_spots=300, n_genes=60, seed=1)


def test_one_row_per_run(section, unchanged):
    with unchanged(section):
        table = clustering(section, "region", n_components=8, n_runs=3, seed=4)
    assert list(table.columns) == COLUMNS
    assert table["seed"].tolist() == [4, 5, 6]
    assert (table["ari"] > 0.5).all()
    alone = clustering(section, "region", n_components=8, seed=5)
    pd.testing.assert_frame_equal(alone, table.iloc[[1]].reset_index(drop=True))


def test_missing_labels_are_clustered_and_not_scored(section, caplog):
    caplog.set_level("INFO", logger="stdenoise")
    part = section.copy()
    part.obs.loc[part.obs_names[:50], "region"] = np.nan
    table = clustering(part, "region", n_components=8, n_clusters=5)
    assert table.loc[0, ["n_scored", "n_dropped"]].tolist() == [250, 50]
    assert table.loc[0, "loglik"] == clustering(section, "region", n_components=8).loc[0, "loglik"]
    assert "50 of 300 spots have no label" in caplog.text


def test_all_scores_use_the_refined_labels(section, monkeypatch):
    monkeypatch.setattr(
        "stdenoise.metrics._clustering.refine_labels", lambda coordinates, labels, n: np.zeros_like(labels)
    )
    row = clustering(section, "region", n_components=8, refine=6).loc[0]
    share = section.obs["region"].value_counts(normalize=True).max()
    assert row[["ari", "nmi", "homogeneity", "completeness"]].tolist() == pytest.approx([0, 0, 0, 1], abs=1e-12)
    assert row["accuracy"] == pytest.approx(share)


def test_sparse_and_dense_give_the_same_components(section):
    x = section.X.astype(np.float64)
    left = _clusters.principal_components(x, n_components=6)
    right = _clusters.principal_components(x.toarray(), n_components=6)
    np.testing.assert_allclose(left, right, atol=1e-8)
    exact = PCA(6, svd_solver="full").fit_transform(x.toarray())
    np.testing.assert_allclose(left, exact, atol=1e-8)


def test_as_many_components_as_genes(section):
    assert clustering(section[:, :7].copy(), "region", n_components=7).loc[0, "ari"] > 0


def test_an_embedding_is_clustered_as_it_is(section):
    part = section.copy()
    part.obsm["X_pca"] = _clusters.principal_components(np.log1p(part.X.toarray()), n_components=5)
    stored = clustering(part, "region", use_rep="X_pca")
    assert stored.loc[0, "loglik"] == _clusters.fit(part.obsm["X_pca"], 5, backend="native", seed=0).loglik
    same = clustering(part, "region", scale="stored", n_components=5)
    assert same.loc[0, "loglik"] != stored.loc[0, "loglik"]


def test_constant_dimensions_are_left_out(section, caplog):
    caplog.set_level("INFO", logger="stdenoise")
    part = section.copy()
    points = np.random.default_rng(0).normal(size=(300, 3))
    part.obsm["plain"], part.obsm["padded"] = points, np.insert(points, 1, 2.5, axis=1)
    left, right = (clustering(part, "region", use_rep=name) for name in ("plain", "padded"))
    pd.testing.assert_frame_equal(left, right)
    assert "leaving out dimensions [1]" in caplog.text


def test_a_single_class_is_one_cluster(section):
    part = section.copy()
    part.obs["all"] = "tissue"
    row = clustering(part, "all", n_components=4).loc[0]
    assert row[["ari", "nmi", "homogeneity", "completeness", "accuracy"]].tolist() == [1.0] * 5
    assert clustering(part, "all", n_components=4, n_clusters=3).loc[0, "homogeneity"] == 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"labels": "regoin"}, KeyError, "Did you mean 'region'"),
        ({"labels": "none"}, ValueError, "all 300 values are missing"),
        ({"n_clusters": 0}, ValueError, "n_clusters"),
        ({"n_clusters": 301}, ValueError, "n_clusters=301 is more than the 300 spots"),
        ({"n_clusters": 295}, ValueError, "too few"),
        ({"n_components": 61}, ValueError, "choose at most 60"),
        ({"backend": "R"}, ValueError, "choose from"),
        ({"refine": 0}, ValueError, "refine"),
        ({"refine": 300}, ValueError, "refine=300"),
        ({"refine": 3, "spatial_key": "xy"}, KeyError, "xy"),
        ({"spatial_key": "xy"}, KeyError, "xy"),
        ({"spatial_key": "flat"}, TypeError, "spatial_key='flat' has no effect without refine="),
        ({"scale": "counts"}, ValueError, "log1p"),
        ({"n_runs": 0}, ValueError, "n_runs"),
        ({"seed": -1}, ValueError, "seed"),
        ({"use_rep": "X_pca"}, KeyError, "X_pca"),
        ({"use_rep": "holes"}, ValueError, "NaN or infinite values in 2 of 300 spots"),
        ({"use_rep": "flat"}, ValueError, "nothing to cluster"),
        ({"use_rep": "twice"}, ValueError, "linear combinations"),
        ({"use_rep": "spatial", "genes": ["gene1"]}, ValueError, "genes do not apply"),
    ],
)
def test_bad_input(section, options, error, match, unchanged):
    part = section.copy()
    part.obs["none"] = np.nan
    values = np.random.default_rng(0).normal(size=(300, 2))
    holes = values.copy()
    holes[[3, 8], [0, 1]] = np.nan
    part.obsm.update(holes=holes, flat=np.ones((300, 2)), twice=values[:, [0, 1, 0]])
    with unchanged(part), pytest.raises(error, match=match):
        clustering(part, **{"labels": "region", "n_components": 8, **options})
