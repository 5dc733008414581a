import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from stdenoise.datasets._kinetics import RATES, Kinetics, beta_poisson, draw_factors, match_ranks, true_counts

# The published quantiles, as the sheet of the simulation prints them.
SHARES = [0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100]


@given(some.lists(some.integers(-5, 5), min_size=1, max_size=40), some.integers(0, 2**31))
def test_ranks_are_matched_in_order_and_ties_stay_ties(scores, seed):
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=len(scores))
    values = match_ranks(np.array(scores, dtype=float)[:, None], draws)[:, 0]
    assert set(values) <= set(draws)
    order = np.lexsort((values, scores))
    assert (np.diff(values[order]) >= 0).all()
    for score in set(scores):
        assert len(set(values[np.array(scores) == score])) == 1
    # Distinct scores use every draw.
    distinct = rng.permutation(len(scores))[None]
    np.testing.assert_array_equal(match_ranks(distinct, draws)[0, np.argsort(distinct[0])], np.sort(draws))


def test_mean_and_variance_of_beta_poisson_in_every_block_of_cells():
    # Three kinds of genes, more cells than one block holds.
    k_on, k_off, s = (np.repeat(x, 60) for x in ([0.3, 3.0, 5.0], [2.0, 10.0, 1.0], [80.0, 20.0, 200.0]))
    shape = (6000, 180)
    drawn = beta_poisson(*(np.broadcast_to(x, shape) for x in (k_on, k_off, s)), np.random.default_rng(1))
    total = k_on + k_off
    mean = s * k_on / total
    variance = mean + s**2 * k_on * k_off / (total**2 * (total + 1))
    np.testing.assert_allclose(drawn.mean(axis=1), mean.mean(), atol=6 * np.sqrt(variance.mean() / 180))
    for kind in (slice(0, 60), slice(60, 120), slice(120, 180)):
        part, m, v = drawn[:, kind], mean[kind][0], variance[kind][0]
        assert part.mean() == pytest.approx(m, abs=4 * np.sqrt(v / part.size))
        # Four standard errors of a variance, from the fourth moment of the sample.
        fourth = ((part - part.mean()) ** 4).mean()
        assert part.var() == pytest.approx(v, abs=4 * np.sqrt((fourth - v**2) / part.size))


def test_the_rates_have_the_published_quantiles():
    drawn = np.interp(np.random.default_rng(3).random(400_000), np.array(SHARES) / 100, RATES["s"])
    np.testing.assert_allclose(np.quantile(drawn, [0.05, 0.5, 0.95]), [1.343, 1.915, 2.594], atol=0.02)
    assert RATES["k_on"][SHARES.index(50)] == 0.459
    assert RATES["k_off"][SHARES.index(50)] == 0.980
    assert all((np.diff(quantiles) > 0).all() for quantiles in RATES.values())


def test_factors_differ_between_types_only_where_they_should():
    types = np.repeat([0, 1, 2], 4000)
    factors = draw_factors(types, 9, Kinetics(), np.random.default_rng(4))
    means = np.array([factors[types == kind].mean(axis=0) for kind in range(3)])
    np.testing.assert_allclose(means[:, 9], 1.0, atol=5 * 0.4 / np.sqrt(4000))
    assert (np.ptp(means[:, :9], axis=0) > 0.05).all()
    np.testing.assert_allclose(factors[types == 1].std(axis=0), 0.4, rtol=0.06)


def test_highly_expressed_genes_are_raised_without_bursts():
    types = np.repeat(np.arange(3), 100)
    counts, high = true_counts(types, 200, Kinetics(), np.random.default_rng(5))
    plain, same = true_counts(types, 200, Kinetics(high_log2=0.0), np.random.default_rng(5))
    np.testing.assert_array_equal(high, same)
    assert high.sum() == 3  # 1.5 % of 200, rounded up
    np.testing.assert_array_equal(counts[:, ~high], plain[:, ~high])
    # Both are Poisson around s times a power of two, 2^5 apart, with the same ranks.
    ratio = counts[:, high].sum(axis=0) / plain[:, high].sum(axis=0)
    np.testing.assert_allclose(ratio, 2**5, rtol=0.1)


def test_zero_share_of_the_truth():
    counts, _ = true_counts(np.repeat(np.arange(5), 100), 500, Kinetics(), np.random.default_rng(6))
    assert (counts == 0).mean() == pytest.approx(0.13, abs=0.02)
