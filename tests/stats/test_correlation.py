import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays
from scipy import stats

from stdenoise._base.random import torch_generator
from stdenoise.stats.correlation import draw_weights, pearson, resampled_correlations

CPU = torch.device("cpu")


def correlations(left, right):
    ones = torch.ones(1, len(left), dtype=torch.float64)
    return [float(r) for r in resampled_correlations(torch.tensor(left), torch.tensor(right), ones)]


@given(seed=some.integers(0, 2**32 - 1), n=some.integers(3, 60), n_levels=some.integers(2, 30))
def test_correlations_equal_scipy_with_ties(seed, n, n_levels):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(n_levels, size=(2, n)).astype(float)
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        assert np.isnan(correlations(left, right)).all()
        return
    found = correlations(left, right)
    assert found[0] == pytest.approx(stats.pearsonr(left, right).statistic, abs=1e-12)
    assert found[1] == pytest.approx(stats.spearmanr(left, right).statistic, abs=1e-12)


@given(
    some.tuples(some.integers(2, 20), some.integers(1, 5)).flatmap(
        lambda shape: arrays.arrays(np.float64, (2, *shape), elements=some.integers(-20, 20).map(float))
    )
)
def test_columns_equal_scipy_or_are_undefined(sides):
    found = pearson(torch.tensor(sides[0]), torch.tensor(sides[1])).numpy()
    for column, r in enumerate(found):
        left, right = sides[:, :, column]
        if np.ptp(left) == 0 or np.ptp(right) == 0:
            assert np.isnan(r)
        else:
            assert r == pytest.approx(stats.pearsonr(left, right).statistic, abs=1e-12)


def test_a_resample_equals_scipy_on_the_repeated_spots():
    rng = np.random.default_rng(1)
    left, right = rng.poisson(2, size=(2, 50)).astype(float)
    weights = draw_weights(7, 50, torch_generator(3), CPU)
    found = resampled_correlations(torch.tensor(left), torch.tensor(right), weights)
    for i, weight in enumerate(weights.numpy().astype(int)):
        rows = np.repeat(np.arange(50), weight)
        assert float(found[0][i]) == pytest.approx(stats.pearsonr(left[rows], right[rows]).statistic, abs=1e-12)
        assert float(found[1][i]) == pytest.approx(stats.spearmanr(left[rows], right[rows]).statistic, abs=1e-12)


def test_weights_are_multinomial():
    weights = draw_weights(400, 30, torch_generator(0), CPU)
    assert (weights.sum(1) == 30).all()
    # Mean 1 and variance 29/30 per spot; 400 x 30 draws.
    assert float(weights.var()) == pytest.approx(29 / 30, abs=0.06)
    assert float((weights.mean(0) - 1).abs().max()) < 4 * (29 / 30 / 400) ** 0.5


def test_a_constant_in_float32_is_undefined():
    rng = np.random.default_rng(0)
    constant = (np.float32(0.1) * (1 + rng.uniform(-1, 1, 100) * 1e-7)).astype(np.float64)
    assert np.ptp(constant) > 0
    values = torch.tensor(rng.normal(size=(100, 1)))
    assert torch.isnan(pearson(torch.tensor(constant)[:, None], values)).all()
    assert torch.isfinite(pearson(torch.tensor(constant)[:, None] * 0 + values, values)).all()


def test_nothing_is_undefined_rather_than_an_error():
    assert torch.isnan(pearson(torch.zeros(0, 2).double(), torch.zeros(0, 2).double())).all()
