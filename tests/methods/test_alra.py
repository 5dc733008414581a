import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

import stdenoise as st
from stdenoise.methods.alra import ALRA
from stdenoise.spatial.normalize import lognorm
from stdenoise.spatial.spots import Context, make_spots

CPU = torch.device("cpu")


def spots_of(counts):
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    names = [f"gene{j}" for j in range(counts.shape[1])]
    return make_spots(counts, names, positions=None, context=Context(), device=CPU)


def fit(counts, seed=0, **params):
    return ALRA(**params).fit(spots_of(counts), seed=seed, progress=False)


def counts_of(n_spots, n_genes, rank=3, seed=0, depth=20):
    rng = np.random.default_rng(seed)
    mean = rng.gamma(1, 1, (n_spots, rank)) @ rng.gamma(0.3, 1, (rank, n_genes))
    return rng.poisson(depth * mean / mean.mean())


def dense_alra(values, rank, quantile=0.001, only_negative=False):
    """ALRA gene by gene, with the full decomposition."""
    u, s, vt = np.linalg.svd(values, full_matrices=False)
    fitted = (u[:, :rank] * s[:rank]) @ vt[:rank]
    result = np.zeros_like(values)
    for gene in range(values.shape[1]):
        b, a = fitted[:, gene], values[:, gene]
        limit = np.quantile(b, quantile)
        c = np.where(b > (0 if only_negative and limit >= 0 else abs(limit)), b, 0)
        fit, seen = c[c != 0], a[a != 0]
        if len(fit) > 1 and len(seen) > 1 and fit.std() > 0:
            ratio = seen.std(ddof=1) / fit.std(ddof=1)
            c = np.where(c != 0, c * ratio + seen.mean() - fit.mean() * ratio, 0)
        c = c.clip(min=0)
        result[:, gene] = np.where((a > 0) & (c == 0), a, c)
    return result


# Beside a dense evaluation


@pytest.mark.parametrize("only_negative", [False, True])
@pytest.mark.parametrize("quantile", [0, 0.001, 0.1, 0.5, 1])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equals_a_dense_evaluation(rank, quantile, only_negative):
    counts = counts_of(150, 30)
    expected = dense_alra(lognorm(counts.astype(float)), rank, quantile, only_negative)
    result = fit(counts, rank=rank, quantile=quantile, only_negative=only_negative)
    np.testing.assert_allclose(result.mean.numpy(), expected, atol=1e-4)


def test_blocks_of_genes_do_not_matter(monkeypatch):
    counts = counts_of(50, 23)
    whole = fit(counts, rank=3).mean
    monkeypatch.setattr("stdenoise.methods.alra._BLOCK_ENTRIES", 200)
    torch.testing.assert_close(fit(counts, rank=3).mean, whole, rtol=0, atol=1e-6)


def test_latent_is_the_scaled_left_singular_vectors():
    values = lognorm(counts_of(40, 20).astype(float))
    u, s, _ = np.linalg.svd(values, full_matrices=False)
    latent = fit(counts_of(40, 20), rank=4).latent.numpy()
    np.testing.assert_allclose(np.abs(latent), np.abs(u[:, :4] * s[:4]), atol=1e-3)


# Properties

matrices = some.builds(
    counts_of,
    some.integers(1, 30),
    some.integers(1, 20),
    some.integers(1, 4),
    some.integers(0, 1000),
    some.sampled_from([0.5, 20, 1e5]),
).filter(lambda counts: counts.any())


@given(counts=matrices, rank=some.none() | some.integers(1, 40), quantile=some.sampled_from([0, 0.001, 0.3, 1]))
def test_no_value_is_negative_and_none_is_lost(counts, rank, quantile):
    result = fit(counts, rank=rank, quantile=quantile)
    assert np.isfinite(result.mean.numpy()).all()
    assert (result.mean.numpy() >= 0).all()
    assert (result.mean.numpy()[counts > 0] > 0).all()
    assert np.isfinite(result.latent.numpy()).all()


def test_at_full_rank_only_the_smallest_value_of_a_gene_falls_below_its_limit():
    counts = counts_of(40, 12, depth=500) + 1
    values = lognorm(counts.astype(float))
    np.testing.assert_allclose(fit(counts, rank=12, only_negative=True).mean.numpy(), values, atol=1e-5)
    for fitted, observed in zip(fit(counts, rank=12).mean.numpy().T, values.T, strict=True):
        smallest = observed == observed.min()
        np.testing.assert_allclose(fitted[smallest], observed[smallest], atol=1e-5)
        # The others are shifted and scaled, to the mean and deviation of all.
        slope, intercept = np.polyfit(observed[~smallest], fitted[~smallest], 1)
        np.testing.assert_allclose(fitted[~smallest], slope * observed[~smallest] + intercept, atol=1e-4)
        assert fitted[~smallest].mean() == pytest.approx(observed.mean(), rel=1e-5)
        assert fitted[~smallest].std(ddof=1) == pytest.approx(observed.std(ddof=1), rel=1e-4)


def test_at_full_rank_a_gene_with_zeros_stays_as_it_is():
    # The error of rounding must not pass for expression.
    counts = counts_of(40, 12)
    zeros = (counts == 0).any(0)
    assert zeros.sum() > 3
    mean = fit(counts, rank=12).mean.numpy()
    np.testing.assert_allclose(mean[:, zeros], lognorm(counts.astype(float))[:, zeros], atol=1e-5)


def test_order_of_spots_and_genes_does_not_matter():
    counts = counts_of(60, 25)
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(60), rng.permutation(25)
    permuted = fit(counts[rows][:, columns]).mean.numpy()
    np.testing.assert_allclose(permuted, fit(counts).mean.numpy()[rows][:, columns], atol=1e-4)


def test_neither_does_the_seed_even_where_the_spectrum_is_flat():
    counts = np.random.default_rng(0).poisson(1.0, (300, 200))
    first, second = (fit(counts, rank=4, seed=seed).mean.numpy() for seed in (0, 1))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.999


def test_denoising_a_low_rank_tissue_helps():
    rng = np.random.default_rng(0)
    mean = rng.gamma(1, 1, (400, 3)) @ rng.gamma(0.3, 1, (3, 60))
    counts = rng.poisson(mean / mean.mean())
    truth = lognorm(mean)

    def error(values):
        return np.square(values - truth).mean()

    assert error(fit(counts, rank=3).mean.numpy()) < 0.6 * error(lognorm(counts.astype(float)))


# The rank


def test_rank_is_the_last_gap_above_that_of_noise(caplog):
    counts = counts_of(400, 150, rank=4, depth=200)
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        result = fit(counts)
    s = np.array(result.history["singular_values"])
    assert len(s) == 100
    gaps = s[:-1] - s[1:]
    noise = gaps[78:]
    expected = np.flatnonzero((gaps - noise.mean()) / noise.std(ddof=1) > 6).max() + 1
    assert result.latent.shape == (400, expected)
    assert expected >= 4
    assert f"alra: rank {expected}, chosen from 100 singular values" in caplog.text


def test_noise_of_fewer_values_starts_at_four_fifths():
    counts = counts_of(200, 41, rank=2, depth=300)
    result = fit(counts)
    s = np.array(result.history["singular_values"])
    assert len(s) == 40
    gaps = s[:-1] - s[1:]
    noise = gaps[30:]
    assert result.latent.shape[1] == np.flatnonzero((gaps - noise.mean()) / noise.std(ddof=1) > 6).max() + 1
    assert fit(counts, noise_start=32).latent.shape == result.latent.shape
    assert fit(counts, threshold=1e9).latent.shape[1] == 1


def test_values_of_a_deficient_matrix_are_no_noise_to_compare_with():
    # All singular values but one are zero up to rounding.
    counts = np.outer(np.full(50, 2), np.arange(1, 41))
    assert fit(counts).latent.shape == (50, 1)


@pytest.mark.parametrize("shape", [(1, 20), (5, 20), (20, 1), (20, 5), (1, 1), (2, 2)])
def test_too_few_values_to_choose_from_give_rank_one(shape, caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        result = fit(np.arange(np.prod(shape)).reshape(shape) + 1)
    assert result.latent.shape == (shape[0], 1)
    assert np.isfinite(result.mean.numpy()).all()
    assert "too few to choose it" in caplog.text


def test_rank_is_capped(caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        assert fit(counts_of(30, 8), rank=50).latent.shape == (30, 8)
    assert "alra: rank 8 instead of 50 for 30 spots x 8 genes" in caplog.text


# Odd data


def test_empty_spots_have_no_part_in_the_result():
    counts = counts_of(80, 30)
    counts[counts.sum(1) == 0, 0] = 1
    gaps = np.insert(counts, [0, 7, 7, 80], 0, axis=0)
    rows = gaps.any(1)
    whole = fit(counts, rank=3, quantile=0.2)
    with_gaps = fit(gaps, rank=3, quantile=0.2)
    np.testing.assert_allclose(with_gaps.mean.numpy()[rows], whole.mean.numpy(), atol=1e-5)
    assert (with_gaps.mean.numpy()[~rows] == 0).all()
    assert (with_gaps.latent.numpy()[~rows] == 0).all()


def test_chosen_genes_without_any_count():
    counts = sparse.csr_matrix(np.pad(counts_of(20, 5), ((0, 0), (0, 3))), dtype=np.float32)
    names = [f"gene{j}" for j in range(8)]
    spots = make_spots(counts, names, positions=np.array([5, 6, 7]), context=Context(), device=CPU)
    assert (ALRA().fit(spots, seed=0, progress=False).mean == 0).all()


def test_a_gene_seen_once_is_left_as_fitted():
    counts = counts_of(60, 20)
    counts[:, 4] = 0
    counts[9, 4] = 3
    expected = dense_alra(lognorm(counts.astype(float)), 3)
    np.testing.assert_allclose(fit(counts, rank=3).mean.numpy(), expected, atol=1e-4)


def test_no_graph_and_no_coordinates_are_needed(hexagonal):
    del hexagonal.obsp, hexagonal.obsm
    st.tl.denoise(hexagonal, ALRA(rank=2))
    assert hexagonal.obsm["X_alra"].shape == (61, 2)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"rank": 0}, "rank must be an integer >= 1, not 0"),
        ({"rank": 2.5}, "rank must be an integer >= 1, not 2.5"),
        ({"n_components": 1}, "n_components must be an integer >= 2, not 1"),
        ({"noise_start": 1}, "noise_start must be an integer >= 2, not 1"),
        ({"noise_start": 100}, "noise_start=100 must lie below n_components=100"),
        ({"threshold": 0}, "threshold must be a number > 0, not 0"),
        ({"quantile": -0.1}, "quantile must be a number >= 0, not -0.1"),
        ({"quantile": 1.5}, "quantile must be a number between 0 and 1, not 1.5"),
        ({"only_negative": "yes"}, "only_negative='yes' is not valid"),
        ({"k": 3}, "alra has no parameter 'k'"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ALRA(**params)
