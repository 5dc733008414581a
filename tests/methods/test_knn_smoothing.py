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
from stdenoise._base.random import torch_generator
from stdenoise.methods.knn_smoothing import KNNSmoothing, freeman_tukey, pool, similar
from stdenoise.spatial.spots import Context, make_spots


def spots_of(counts):
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    genes = [f"gene{j}" for j in range(counts.shape[1])]
    return make_spots(counts, genes, positions=None, context=Context(), device=torch.device("cpu"))


def drawn(seed, n_spots, n_genes):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.7, 3.0, size=(n_spots, n_genes)))
    counts[0, 0] += 1
    return counts


def fit(counts, *, seed=0, **params):
    return KNNSmoothing(**params).fit(spots_of(counts), seed=seed, progress=False)


def dense_smoothing(counts, k, d):
    """The sums from the definition, with dense arrays and without dither; ties are those of distances to 8 digits."""
    counts = np.asarray(counts, dtype=float)
    pooled = counts
    for step in range(1, int(np.ceil(np.log2(k))) + 1):
        scaled = pooled * np.median(pooled.sum(axis=1)) / pooled.sum(axis=1, keepdims=True)
        scores = PCA(d, svd_solver="full").fit_transform(np.sqrt(scaled) + np.sqrt(scaled + 1))
        near = np.argsort(cdist(scores, scores).round(8), axis=1, kind="stable")[:, : min(2**step, k)]
        pooled = counts[near].sum(axis=1)
    return pooled


@pytest.mark.parametrize("k", [1, 2, 3, 8, 15, 40])
def test_it_equals_a_dense_evaluation(k):
    counts = drawn(0, 40, 20)
    expected = dense_smoothing(counts, k, 5)
    result = fit(counts, k=k, d=5, dither=0, output="sum")
    np.testing.assert_array_equal(result.mean.numpy(), expected)
    assert result.scale == "counts"
    mean = expected / expected.sum(axis=1, keepdims=True) * counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fit(counts, k=k, d=5, dither=0).mean.numpy(), mean, rtol=1e-5)


def test_all_spots_pooled_are_the_totals():
    counts = drawn(1, 12, 6)
    sums = fit(counts, k=12, output="sum").mean.numpy()
    np.testing.assert_array_equal(sums, np.tile(counts.sum(axis=0), (12, 1)))


@given(some.integers(0, 10**6), some.sampled_from([2, 7, 30]), some.integers(1, 12), some.integers(1, 40))
def test_totals_are_kept(seed, n_spots, n_genes, k):
    counts = drawn(seed, n_spots, n_genes)
    mean = fit(counts, k=k).mean.numpy()
    assert (mean >= 0).all()
    np.testing.assert_allclose(mean.sum(axis=1), counts.sum(axis=1), rtol=1e-4)


def test_dither_changes_the_choice_a_little():
    counts = torch.tensor(drawn(2, 200, 30), dtype=torch.float32)
    plain, faint, strong = (
        similar(counts, 8, d=5, dither=dither, generator=torch_generator(0)) for dither in (0, 0.03, 10)
    )

    def shared(one, other):
        return np.mean([len(set(a) & set(b)) / 8 for a, b in zip(one.tolist(), other.tolist(), strict=True)])

    assert 0.6 < shared(plain, faint) < 1
    # Within a few of chance, 8 of 200, plus the spot itself.
    assert shared(plain, strong) < 0.3


def test_dither_is_uniform_over_its_share_of_the_range(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "stdenoise.methods.knn_smoothing.nearest_neighbors", lambda scores, k, **_: seen.append(scores) or (None, None)
    )
    counts = torch.tensor(drawn(3, 400, 10), dtype=torch.float32)
    for dither in (0, 0.1):
        similar(counts, 2, d=3, dither=dither, generator=torch_generator(0))
    plain, dithered = seen
    noise = (dithered - plain) / (plain.amax(0) - plain.amin(0))
    assert 0.049 < noise.abs().max() <= 0.05
    assert noise.std().item() == pytest.approx(0.1 / np.sqrt(12), rel=0.05)


def test_equal_profiles_tie_and_the_lower_index_comes_first():
    counts = torch.tensor(drawn(4, 60, 30), dtype=torch.float32)
    counts[[7, 31, 55]] = counts[2].clone()
    near = similar(counts, 3, d=8, dither=0, generator=torch_generator(0))
    assert near[[2, 7, 31, 55]].tolist() == [[2, 7, 31]] * 4


def test_pooling_sums_the_chosen_counts():
    counts = torch.tensor(drawn(5, 30, 7), dtype=torch.float32)
    near = torch.tensor(np.argsort(np.random.default_rng(0).random((30, 30)), axis=1)[:, :4])
    assert torch.equal(pool(counts, near), counts[near].sum(1))


def test_the_transform_ignores_empty_spots():
    counts = torch.tensor([[2.0, 2], [0, 0], [1, 1], [0, 0], [0, 0]])
    # Totals of 4 and 2: their median is 3.
    expected = np.sqrt(1.5) + np.sqrt(2.5)
    np.testing.assert_allclose(freeman_tukey(counts), [[expected] * 2, [1, 1], [expected] * 2, [1, 1], [1, 1]])
    assert (freeman_tukey(torch.zeros(3, 2)) == 1).all()


@given(some.integers(0, 10**6), some.integers(1, 6), some.integers(1, 6), some.sampled_from([1, 1_000_000]))
def test_tiny_data(seed, n_spots, n_genes, scale):
    counts = drawn(seed, n_spots, n_genes) * scale
    for output in ("mean", "sum"):
        mean = fit(counts, output=output).mean
        assert mean.shape == (n_spots, n_genes)
        assert torch.isfinite(mean).all()


def test_genes_of_which_none_has_counts():
    # Other genes of the object have counts, those that are modelled have none.
    spots = make_spots(
        sparse.csr_matrix([[0, 0, 5], [0, 0, 3]], dtype=np.float32),
        list("abc"),
        positions=np.array([0, 1]),
        context=Context(),
        device=torch.device("cpu"),
    )
    assert (KNNSmoothing().fit(spots, seed=0, progress=False).mean == 0).all()


def test_small_data_are_announced(caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        fit(drawn(0, 8, 5), k=9)
        assert "only 8 spots" in caplog.text
        caplog.clear()
        fit(drawn(0, 8, 5), k=8)
        assert "only" not in caplog.text


def test_the_same_seed_gives_the_same_bits():
    counts = drawn(6, 80, 40)
    assert torch.equal(fit(counts, seed=3).mean, fit(counts, seed=3).mean)
    assert not torch.equal(fit(counts, seed=3).mean, fit(counts, seed=4).mean)


def test_empty_spots_and_genes(irregular):
    empty = irregular.obs_names.get_loc("spot7")
    mean = fit(irregular.X).mean.numpy()
    assert np.isfinite(mean).all()
    np.testing.assert_array_equal(mean[:, 3], 0)
    np.testing.assert_array_equal(mean[empty], 0)
    # Sums are those of the neighbours.
    assert fit(irregular.X, output="sum").mean.numpy()[empty].sum() > 0


def test_neither_coordinates_nor_libraries_matter(irregular):
    method = KNNSmoothing(k=4)
    st.tl.denoise(irregular, method, library_key="library", key_added="apart")
    irregular.obsm["spatial"] = irregular.obsm["spatial"][::-1].copy()
    st.tl.denoise(irregular, method, key_added="together")
    np.testing.assert_array_equal(irregular.layers["apart_mean"], irregular.layers["together_mean"])


def test_it_runs_behind_the_verb(irregular, reload, assert_same):
    st.tl.denoise(irregular, KNNSmoothing())
    assert irregular.uns["knn_smoothing"]["scale"] == "counts"
    again = reload(irregular, ".h5ad")
    assert_same(again.layers["knn_smoothing_mean"], irregular.layers["knn_smoothing_mean"])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"k": 0}, "k must be an integer >= 1, not 0"),
        ({"k": 2.0}, "k must be an integer >= 1, not 2.0"),
        ({"d": 0}, "d must be an integer >= 1, not 0"),
        ({"dither": -0.1}, "dither must be a number >= 0, not -0.1"),
        ({"output": "total"}, "output='total' is not valid; choose from"),
        ({"n_neighbors": 5}, "knn_smoothing has no parameter 'n_neighbors'"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        KNNSmoothing(**params)
