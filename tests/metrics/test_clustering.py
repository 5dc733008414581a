"""Scores of clusters against an annotation."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.decomposition import PCA

import stdenoise as st
from stdenoise.metrics import clustering
from stdenoise.stats import clusters as _clusters
from stdenoise.stats.labels import matched_accuracy

COLUMNS = [
    *("seed", "ari", "nmi", "homogeneity", "completeness", "accuracy"),
    *("loglik", "n_scored", "n_dropped", "n_clusters"),
]


@pytest.fixture(scope="module")
def tissue():
    return st.datasets.tissue(n_spots=300, n_genes=60, seed=1)


@pytest.fixture
def section(tissue):
    return tissue.copy()


def test_one_row_per_run_with_the_scores_of_the_clusters_that_tl_finds(section, unchanged):
    with unchanged(section):
        table = clustering(section, "region", n_components=8, n_runs=2, seed=4, refine=6)
    assert list(table.columns) == COLUMNS
    assert table["seed"].tolist() == [4, 5]
    assert (table["ari"] > 0.5).all()
    st.tl.cluster(section, 5, n_components=8, seed=5, refine=6)
    pair = section.obs["region"], section.obs["cluster"]
    expected = [
        metrics.adjusted_rand_score(*pair),
        metrics.normalized_mutual_info_score(*pair),
        metrics.homogeneity_score(*pair),
        metrics.completeness_score(*pair),
        matched_accuracy(*pair),
    ]
    assert table.loc[1, COLUMNS[1:6]].tolist() == pytest.approx(expected)
    plain = clustering(section, "region", n_components=8, seed=5)
    assert plain.loc[0, "loglik"] == table.loc[1, "loglik"]
    assert plain.loc[0, "ari"] != table.loc[1, "ari"]


def test_missing_labels_are_clustered_and_not_scored(section, caplog):
    caplog.set_level("INFO", logger="stdenoise")
    whole = clustering(section, "region", n_components=8)
    section.obs.loc[section.obs_names[:50], "region"] = np.nan
    table = clustering(section, "region", n_components=8, n_clusters=5)
    assert table.loc[0, ["n_scored", "n_dropped"]].tolist() == [250, 50]
    assert table.loc[0, "loglik"] == whole.loc[0, "loglik"]
    assert table.loc[0, "ari"] != whole.loc[0, "ari"]
    assert "50 of 300" in caplog.text


def test_components_of_sparse_and_dense_values_equal_scikit_learn(section):
    x = section.X.astype(np.float64)
    for n in (6, 60):
        exact = PCA(n, svd_solver="full").fit_transform(x.toarray())
        for values in (x, x.toarray()):
            np.testing.assert_allclose(_clusters.principal_components(values, n_components=n), exact, atol=1e-8)


def test_an_embedding_is_clustered_as_it_is_without_dimensions_that_are_constant(section, caplog):
    caplog.set_level("INFO", logger="stdenoise")
    points = _clusters.principal_components(np.log1p(section.X.toarray()), n_components=5)
    section.obsm["X_pca"], section.obsm["padded"] = points, np.insert(points, 1, 2.5, axis=1)
    left, right = (clustering(section, "region", use_rep=name) for name in ("X_pca", "padded"))
    pd.testing.assert_frame_equal(left, right)
    assert "dimensions [1]" in caplog.text
    assert left.loc[0, "loglik"] == _clusters.fit(points, 5, backend="native", seed=0).loglik
    other = clustering(section, "region", scale="stored", n_components=5)
    assert other.loc[0, "loglik"] != left.loc[0, "loglik"]


def test_a_single_class_is_one_cluster(section):
    section.obs["all"] = "tissue"
    row = clustering(section, "all", n_components=4).loc[0]
    assert row[COLUMNS[1:6]].tolist() == [1.0] * 5
    assert clustering(section, "all", n_components=4, n_clusters=3).loc[0, "homogeneity"] == 1


def test_bad_input(section, unchanged):
    section.obs["none"] = np.nan
    values = np.random.default_rng(0).normal(size=(300, 2))
    holes = values.copy()
    holes[[3, 8], [0, 1]] = np.nan
    section.obsm.update(holes=holes, flat=np.ones((300, 2)), twice=values[:, [0, 1, 0]])
    with unchanged(section):
        for options, error, match in [
            ({"labels": "regoin"}, KeyError, "'region'"),
            ({"labels": "none"}, ValueError, "all 300"),
            ({"n_clusters": 0}, ValueError, "n_clusters"),
            ({"n_clusters": 301}, ValueError, "301 .* 300"),
            ({"n_clusters": 295}, ValueError, "too few"),
            ({"n_components": 61}, ValueError, "60"),
            ({"backend": "R"}, ValueError, "'R'"),
            ({"refine": 0}, ValueError, "refine"),
            ({"refine": 300}, ValueError, "refine=300"),
            ({"refine": 3, "spatial_key": "xy"}, KeyError, "xy"),
            ({"spatial_key": "xy"}, KeyError, "xy"),
            ({"spatial_key": "flat"}, TypeError, "'flat'.* without refine="),
            ({"scale": "counts"}, ValueError, "log1p"),
            ({"n_runs": 0}, ValueError, "n_runs"),
            ({"seed": -1}, ValueError, "seed"),
            ({"use_rep": "X_pca"}, KeyError, "X_pca"),
            ({"use_rep": "holes"}, ValueError, "2 of 300"),
            ({"use_rep": "flat"}, ValueError, "nothing to cluster"),
            ({"use_rep": "twice"}, ValueError, "linear combinations"),
            ({"use_rep": "spatial", "genes": ["gene1"]}, ValueError, "genes"),
        ]:
            with pytest.raises(error, match=match):
                clustering(section, **{"labels": "region", "n_components": 8, **options})
