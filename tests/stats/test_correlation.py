import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from stdenoise._base.random import torch_generator
from stdenoise.stats.correlation import draw_weights, pearson, resampled_correlations

CPU = torch.device("cpu")


@given(seed=some.integers(0, 2**32 - 1), n=some.integers(3, 60), n_levels=some.integers(1, 30))
def test_correlations_of_spots_and_resamples_equal_scipy_with_ties(seed, n, n_levels):
    left, right = np.random.default_rng(seed).integers(n_levels, size=(2, n)).astype(float)
    weights = torch.cat([torch.ones(1, n).double(), draw_weights(3, n, torch_generator(seed), CPU)])
    found = resampled_correlations(torch.tensor(left), torch.tensor(right), weights)
    for i, weight in enumerate(weights.numpy().astype(int)):
        a, b = (np.repeat(side, weight) for side in (left, right))
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert np.isnan([float(r[i]) for r in found]).all()
        else:
            expected = [stats.pearsonr(a, b).statistic, stats.spearmanr(a, b).statistic]
            assert [float(r[i]) for r in found] == pytest.approx(expected, abs=1e-12)


def test_columns_equal_scipy_or_are_undefined():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 100, 5))
    # The last bits of a mean in float32.
    left[:, 1] = (np.float32(0.1) * (1 + rng.uniform(-1, 1, 100) * 1e-7)).astype(np.float64)
    left[:, 2], right[:, 3], left[:, 4] = 0, 7, -right[:, 4]
    assert np.ptp(left[:, 1]) > 0
    found = pearson(torch.tensor(left), torch.tensor(right))
    assert found[[0, 4]].tolist() == pytest.approx([stats.pearsonr(left[:, 0], right[:, 0]).statistic, -1], abs=1e-12)
    assert found[1:4].isnan().all()
    assert pearson(torch.zeros(0, 2).double(), torch.zeros(0, 2).double()).isnan().all()


def test_weights_are_multinomial():
    weights = draw_weights(400, 30, torch_generator(0), CPU)
    assert (weights.sum(1) == 30).all()
    # Mean 1 and variance 29/30 per spot; 400 x 30 draws.
    assert float(weights.var()) == pytest.approx(29 / 30, abs=0.06)
    assert float((weights.mean(0) - 1).abs().max()) < 4 * (29 / 30 / 400) ** 0.5
