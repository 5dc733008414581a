"""Worked numbers of the published Sprod on six spots; the linear algebra of its released run beside the exact optimum."""

import numpy as np
import pytest
import torch

from stdenoise.methods.sprod.affinity import dissimilarities
from stdenoise.methods.sprod.config import SprodConfig
from stdenoise.methods.sprod.features import standardised
from stdenoise.methods.sprod.learn import candidate_pairs, weigh
from stdenoise.methods.sprod.resistance import Slabs
from stdenoise.methods.sprod.smooth import smooth

COORDINATES = torch.tensor([[0, 0], [1, 0.2], [2, 0], [0, 1], [1, 1.1], [2, 1]], dtype=torch.float64)
FEATURES = [[0.1, 2, 1], [0.3, 1.8, 0.7], [2.1, 0.2, 0.9], [0.2, 2.2, 1.4], [1.9, 0.1, 0.2], [2.4, 0.5, 1.1]]
E = torch.tensor([[1, 0, 3], [2, 0, 2], [0, 4, 1], [1, 1, 3], [0, 5, 0], [0, 3, 2]], dtype=torch.float64)
CONFIG = SprodConfig(radius_ratio=1.2, perplexity=2.5, capacity=2, lambda_scale=3, tol=1e-13)
PAIRS = [(0, 1), (0, 3), (1, 2), (1, 3), (1, 4), (1, 5), (2, 5), (3, 4), (4, 5)]
S = [0.446727, 0.522528, 0.954830, 0.792888, 0.943761, 0.959426, 0.342066, 0.998510, 0.858992]
SIGMA = [1.030843, 0.981300, 1.039689, 1.149843, 1.012756, 1.120958]
BEST = [0.223094, 0.168635, 0, 0, 0.012250, 0, 0.354912, 0.002955, 0.035238]
SMOOTHED = [
    [1.070812, 0.057169, 2.927552],
    [1.915305, 0.026810, 2.066870],
    [0.000016, 3.892254, 1.107723],
    [1.003375, 0.944851, 2.992152],
    [0.010363, 4.945624, 0.039183],
    [0.000128, 3.133291, 1.866520],
]
RELEASED = [0.364045, 0.270603, 0.045548, 0.073702, 0.059298, 0.029884, 0.597063, 0.074274, 0.109288]


@pytest.fixture(scope="module")
def pairs():
    return candidate_pairs(COORDINATES, CONFIG)


@pytest.fixture(scope="module")
def slabs(pairs):
    return Slabs(COORDINATES, *pairs)


def smoothed(values, pairs, weights, *, edges_only=False):
    weights = torch.as_tensor(weights, dtype=torch.float64)
    return smooth(values, COORDINATES, *pairs, weights, strength=0.4, edges_only=edges_only, tol=1e-12).numpy()


def objective(slabs, weights, cost):
    log_det, _, _ = slabs.solve(torch.tensor(weights, dtype=torch.float64), scale=4.0)
    return 2 * 3 * float(np.dot(cost, weights)) - log_det


def test_candidate_pairs(pairs):
    assert list(zip(*(end.tolist() for end in pairs), strict=True)) == PAIRS


def test_bandwidths_and_dissimilarities(pairs):
    features = standardised(torch.tensor(FEATURES), None, generator=torch.Generator())
    cost, sigma = dissimilarities(features, *pairs, perplexity=2.5, margin=0.001)
    np.testing.assert_allclose(sigma, SIGMA, atol=1e-6)
    np.testing.assert_allclose(cost, S, atol=1e-6)
    # (1 - mean probability) ** (n / 7) of the first two spots, from the two columns in the sheet.
    row, col = torch.tensor([0]), torch.tensor([1])
    cost, _ = dissimilarities(features, row, col, perplexity=2.5, margin=0.001)
    assert cost.item() == pytest.approx((1 - (0.702583 + 0.516246) / 2) ** (6 / 7), abs=1e-6)


def test_gradient_at_the_start(pairs, slabs):
    row, col = pairs
    _, diagonal, on_edges = slabs.solve(torch.full((9,), 0.5, dtype=torch.float64), scale=4.0)
    cost = torch.tensor(S, dtype=torch.float64)
    gradient = 2 * 3 * cost - 2 * 2 * (diagonal[row] + diagonal[col] - 2 * on_edges)
    # The sheet lists three of the nine, for 0-1, 1-2 and 0-3; six digits of the dissimilarities allow for 3e-6.
    np.testing.assert_allclose(gradient[[0, 2, 1]], [1.662908, 4.711529, 2.076667], atol=3.5e-6)
    # What the released code supplies holds half of the first term.
    np.testing.assert_allclose((gradient - 3 * cost)[[0, 2, 1]], [0.322727, 1.847037, 0.509083], atol=2e-6)


def test_optimum_and_smoothing_over_it(pairs, slabs):
    weights, history = weigh(slabs, *pairs, torch.tensor(S, dtype=torch.float64), CONFIG, progress=False)
    assert history[-1] == pytest.approx(-1.300270, abs=1e-6)
    assert history[-1] <= objective(slabs, BEST, S) + 1e-9
    np.testing.assert_allclose(weights, BEST, atol=5e-6)
    np.testing.assert_allclose(smoothed(E, pairs, weights), SMOOTHED, atol=3e-6)
    np.testing.assert_allclose(smoothed(E, pairs, BEST), SMOOTHED, atol=2e-6)
    row = smoothed(torch.eye(6, dtype=torch.float64), pairs, BEST)[0]
    np.testing.assert_allclose(row, [0.873244, 0.071223, 0.000001, 0.055121, 0.000406, 0.000005], atol=1e-6)


def test_the_released_weights(pairs, slabs):
    assert objective(slabs, RELEASED, S) == pytest.approx(-0.533422, abs=1e-5)
    weights = smoothed(torch.eye(6, dtype=torch.float64), pairs, RELEASED)
    np.testing.assert_allclose(weights[0, [0, 1, 3]], [0.815749, 0.098653, 0.078235], atol=1e-6)
    np.testing.assert_allclose(smoothed(E, pairs, RELEASED)[0], [1.091289, 0.110627, 2.883682], atol=2e-6)
    edges = smoothed(E, pairs, RELEASED, edges_only=True)[0]
    np.testing.assert_allclose(edges, [1.099385, 0.078815, 2.900615], atol=2e-6)
