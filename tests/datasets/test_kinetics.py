import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from stdenoise.datasets._kinetics import RATES, Kinetics, beta_poisson, draw_factors, match_ranks, true_counts

# The published quantiles, as the sheet of the simulation prints them.
SHARES = [0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100]


@given(some.lists(some.integers(-5, 5), min_size=1, max_size=40), some.integers(0, 2**31))
def test_ranks_are_matched_in_order_and_ties_stay_ties(scores, seed):
    scores = np.array(scores, dtype=float)
    draws = np.random.default_rng(seed).normal(size=len(scores))
    values = match_ranks(scores[:, None], draws)[:, 0]
    assert set(values) <= set(draws)
    for i in range(len(scores)):
        for j in range(len(scores)):
            assert (values[i] <= values[j]) if scores[i] <= scores[j] else (values[i] >= values[j])
            assert scores[i] != scores[j] or values[i] == values[j]


def test_matching_distinct_scores_uses_every_draw():
    rng = np.random.default_rng(0)
    scores, draws = rng.normal(size=(20, 30)), rng.normal(size=600)
    values = match_ranks(scores, draws)
    np.testing.assert_array_equal(values.ravel()[np.argsort(scores.ravel())], np.sort(draws))


@pytest.mark.parametrize(("k_on", "k_off", "s"), [(0.3, 2.0, 80.0), (3.0, 10.0, 20.0), (5.0, 1.0, 200.0)])
def test_mean_and_variance_of_beta_poisson(k_on, k_off, s):
    n = 200_000
    drawn = beta_poisson(*(np.full((n // 100, 100), x) for x in (k_on, k_off, s)), np.random.default_rng(1))
    total = k_on + k_off
    mean = s * k_on / total
    variance = mean + s**2 * k_on * k_off / (total**2 * (total + 1))
    assert drawn.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / n))
    # Four standard errors of a variance, from the fourth moment of the sample.
    fourth = ((drawn - drawn.mean()) ** 4).mean()
    assert drawn.var() == pytest.approx(variance, abs=4 * np.sqrt((fourth - variance**2) / n))


def test_blocks_of_cells_fill_every_row():
    rates = np.full((2500, 1000), 50.0)
    drawn = beta_poisson(rates, rates, rates, np.random.default_rng(2))
    assert drawn.mean(axis=1) == pytest.approx(np.full(2500, 25.0), abs=2)


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
