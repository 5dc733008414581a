import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from stdenoise.methods.alra import ALRA
from stdenoise.spatial.normalize import lognorm


def counts_of(n_spots, n_genes, rank=3, seed=0, depth=20):
    rng = np.random.default_rng(seed)
    mean = rng.gamma(1, 1, (n_spots, rank)) @ rng.gamma(0.3, 1, (rank, n_genes))
    return rng.poisson(depth * mean / mean.mean())


def normalised(counts):
    return lognorm(counts.astype(float))


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
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equals_a_dense_evaluation(rank, only_negative, fit, monkeypatch):
    # Also in blocks of eight genes; one gene is seen once.
    counts = counts_of(150, 30)
    counts[:, 4] = 0
    counts[9, 4] = 3
    for quantile in (0, 0.001, 0.1, 0.5, 1):
        method = ALRA(rank=rank, quantile=quantile, only_negative=only_negative)
        expected = dense_alra(normalised(counts), rank, quantile, only_negative)
        np.testing.assert_allclose(fit(method, counts).mean, expected, atol=1e-4)
        with monkeypatch.context() as patch:
            patch.setattr("stdenoise.methods.alra._BLOCK_ENTRIES", 8 * 150)
            np.testing.assert_allclose(fit(method, counts).mean, expected, atol=1e-4)


def test_latent_is_the_scaled_left_singular_vectors(fit):
    counts = counts_of(40, 20)
    u, s, _ = np.linalg.svd(normalised(counts), full_matrices=False)
    latent = fit(ALRA(rank=4), counts).latent.numpy()
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
def test_no_value_is_negative_and_none_is_lost(counts, rank, quantile, fit):
    result = fit(ALRA(rank=rank, quantile=quantile), counts)
    assert np.isfinite(result.mean.numpy()).all()
    assert (result.mean.numpy() >= 0).all()
    assert (result.mean.numpy()[counts > 0] > 0).all()
    assert np.isfinite(result.latent.numpy()).all()


def test_at_full_rank_only_the_smallest_value_of_a_gene_falls_below_its_limit(fit):
    counts = counts_of(40, 12, depth=500) + 1
    values = normalised(counts)
    np.testing.assert_allclose(fit(ALRA(rank=12, only_negative=True), counts).mean, values, atol=1e-5)
    for fitted, observed in zip(fit(ALRA(rank=12), counts).mean.numpy().T, values.T, strict=True):
        smallest = observed == observed.min()
        np.testing.assert_allclose(fitted[smallest], observed[smallest], atol=1e-5)
        # The others are shifted and scaled, to the mean and deviation of all.
        slope, intercept = np.polyfit(observed[~smallest], fitted[~smallest], 1)
        np.testing.assert_allclose(fitted[~smallest], slope * observed[~smallest] + intercept, atol=1e-4)
        assert fitted[~smallest].mean() == pytest.approx(observed.mean(), rel=1e-5)
        assert fitted[~smallest].std(ddof=1) == pytest.approx(observed.std(ddof=1), rel=1e-4)
    # The error of rounding must not pass for expression.
    with_zeros = counts_of(40, 12)
    zeros = (with_zeros == 0).any(0)
    assert zeros.sum() > 3
    mean = fit(ALRA(rank=12), with_zeros).mean.numpy()
    np.testing.assert_allclose(mean[:, zeros], normalised(with_zeros)[:, zeros], atol=1e-5)


def test_neither_order_nor_seed_matters(fit):
    counts = counts_of(60, 25)
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(60), rng.permutation(25)
    permuted = fit(ALRA(), counts[rows][:, columns]).mean.numpy()
    np.testing.assert_allclose(permuted, fit(ALRA(), counts).mean.numpy()[rows][:, columns], atol=1e-4)
    # Even where the spectrum is flat.
    flat = rng.poisson(1.0, (300, 200))
    first, second = (fit(ALRA(rank=4), flat, seed=seed).mean.numpy() for seed in (0, 1))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.999
    # The spectrum that a rank is chosen from has a random start.
    first, again, second = (fit(ALRA(), flat, seed=seed).history["singular_values"] for seed in (0, 0, 1))
    assert first == again != second


# The rank


@pytest.mark.parametrize(
    ("counts", "n_values", "start"),
    [(counts_of(400, 150, 4, depth=200), 100, 80), (counts_of(200, 41, 2, depth=300), 40, 32)],
)
def test_rank_is_the_last_gap_above_that_of_noise(counts, n_values, start, fit, caplog):
    """Noise begins at four fifths of the values."""
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        result = fit(ALRA(), counts)
    s = np.array(result.history["singular_values"])
    assert len(s) == n_values
    gaps = s[:-1] - s[1:]
    noise = gaps[start - 2 :]
    expected = np.flatnonzero((gaps - noise.mean()) / noise.std(ddof=1) > 6).max() + 1
    assert expected >= 2
    assert result.latent.shape == (len(counts), expected)
    assert f"rank {expected}, chosen from {n_values} singular values" in caplog.text
    assert fit(ALRA(noise_start=start), counts).latent.shape == result.latent.shape
    assert fit(ALRA(threshold=1e9), counts).latent.shape[1] == 1


def test_values_of_a_deficient_matrix_are_no_noise_to_compare_with(fit):
    # All singular values but one are zero up to rounding.
    assert fit(ALRA(), np.outer(np.full(50, 2), np.arange(1, 41))).latent.shape == (50, 1)


def test_the_rank_of_small_data(fit, caplog):
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        for shape in [(1, 20), (5, 20), (20, 1), (20, 5), (1, 1), (2, 2)]:
            caplog.clear()
            result = fit(ALRA(), np.arange(np.prod(shape)).reshape(shape) + 1)
            assert result.latent.shape == (shape[0], 1)
            assert np.isfinite(result.mean.numpy()).all()
            assert "too few to choose" in caplog.text
        assert fit(ALRA(rank=50), counts_of(30, 8)).latent.shape == (30, 8)
    assert "rank 8 instead of 50" in caplog.text


def test_empty_spots_have_no_part_in_the_result(fit):
    counts = counts_of(80, 30)
    counts[counts.sum(1) == 0, 0] = 1
    gaps = np.insert(counts, [0, 7, 7, 80], 0, axis=0)
    rows = gaps.any(1)
    method = ALRA(rank=3, quantile=0.2)
    whole, with_gaps = fit(method, counts), fit(method, gaps)
    np.testing.assert_allclose(with_gaps.mean.numpy()[rows], whole.mean.numpy(), atol=1e-5)
    assert (with_gaps.mean.numpy()[~rows] == 0).all()
    assert (with_gaps.latent.numpy()[~rows] == 0).all()
    # All of them, where chosen genes have no count.
    chosen = fit(ALRA(), np.pad(counts, ((0, 0), (0, 3))), positions=np.array([30, 31, 32]))
    assert (chosen.mean == 0).all()
