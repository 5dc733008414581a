import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy.optimize import minimize

from stdenoise.methods.sprod.config import SprodConfig
from stdenoise.methods.sprod.learn import candidate_pairs, learn_graph, weigh
from stdenoise.methods.sprod.resistance import Slabs


def grid(n):
    return torch.tensor([[x, y] for x in range(n) for y in range(n)], dtype=torch.float64)


def problem(seed, n=5):
    coordinates = grid(n)
    row, col = candidate_pairs(coordinates, SprodConfig(radius=1.5))
    cost = torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, len(row)))
    return Slabs(coordinates, row, col), row, col, cost


def dense_objective(weights, row, col, cost, penalty, capacity):
    n = int(col.max()) + 1
    matrix = np.zeros((n, n))
    matrix[row, col] = weights
    matrix += matrix.T
    q = np.eye(n) + 4 * (np.diag(matrix.sum(1)) - matrix)
    inverse = np.linalg.inv(q)
    resistance = inverse[row, row] + inverse[col, col] - 2 * inverse[row, col]
    value = penalty * (matrix[row, col] * cost).sum() * 2 - capacity / 2 * np.linalg.slogdet(q)[1]
    return value, 2 * penalty * cost - 2 * capacity * resistance


@given(seed=some.integers(0, 2**32), penalty=some.floats(0.5, 10), capacity=some.floats(1, 20))
def test_the_optimum_fulfils_its_conditions(seed, penalty, capacity):
    slabs, row, col, cost = problem(seed)
    config = SprodConfig(lambda_scale=penalty, capacity=capacity, tol=1e-14, max_iterations=2000)
    weights, history = weigh(slabs, row, col, cost, config, progress=False)
    value, gradient = dense_objective(weights.numpy(), row.numpy(), col.numpy(), cost.numpy(), penalty, capacity)
    assert history[-1] == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert (np.diff(history) <= 1e-9).all()
    slack = 2e-3 * capacity
    between = (weights.numpy() > 0) & (weights.numpy() < 1)
    assert (np.abs(gradient[between]) < slack).all()
    assert (gradient[weights.numpy() == 0] > -slack).all()
    assert (gradient[weights.numpy() == 1] < slack).all()


def test_another_optimiser_finds_nothing_better():
    slabs, row, col, cost = problem(0, n=3)
    config = SprodConfig(lambda_scale=2.0, capacity=3.0, tol=1e-14, max_iterations=2000)
    _, history = weigh(slabs, row, col, cost, config, progress=False)
    other = minimize(
        lambda x: dense_objective(x, row.numpy(), col.numpy(), cost.numpy(), 2.0, 3.0)[0],
        np.full(len(row), 0.2),
        method="SLSQP",
        bounds=[(0, 1)] * len(row),
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert history[-1] == pytest.approx(other.fun, abs=1e-6)


def test_costly_pairs_are_let_go_and_free_ones_kept():
    slabs, row, col, _ = problem(1)
    cost = torch.where((row + col) % 2 == 0, 1.0, 0.0).double()
    weights, _ = weigh(slabs, row, col, cost, SprodConfig(lambda_scale=10.0), progress=False)
    assert (weights[cost == 0] == 1).all()
    assert weights[cost == 1].mean() < 0.3


def test_lambda_falls_until_spots_are_joined(caplog):
    slabs, row, col, cost = problem(2)
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        weights, _ = weigh(slabs, row, col, cost.clamp(min=0.5), SprodConfig(lambda_scale=1e4), progress=False)
    assert (weights > 0).any()
    assert "lambda_scale lowered" in caplog.text
    least = float(cost.clamp(min=0.5).min())
    lowered = float(caplog.text.split("lowered to ")[1].split(",")[0])
    assert lowered * least < 20 <= lowered / 0.8 * least * 1.001


def test_too_few_iterations_are_reported(caplog):
    slabs, row, col, cost = problem(3)
    weigh(slabs, row, col, cost, SprodConfig(max_iterations=2, tol=0), progress=False)
    assert "not converged in 2 iterations" in caplog.text


def test_radius_is_a_share_of_the_smaller_range():
    coordinates = grid(6) * torch.tensor([3.0, 1.0])
    row, col = candidate_pairs(coordinates, SprodConfig(radius_ratio=0.2))
    lengths = (coordinates[row] - coordinates[col]).norm(dim=1)
    assert lengths.max() == 1.0
    assert len(row) == 6 * 5


def test_radius_in_units_of_the_coordinates():
    row, _ = candidate_pairs(grid(4), SprodConfig(radius=1.0))
    assert len(row) == 24


def test_radius_of_large_sections_keeps_the_number_of_candidates():
    points = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few, many = (len(candidate_pairs(points[:n], SprodConfig())[0]) / n for n in (5000, 20_000))
    assert many == pytest.approx(few, rel=0.1)
    assert few == pytest.approx(5000 * np.pi * 0.08**2 / 2, rel=0.1)


def test_spots_on_a_line_have_a_radius():
    coordinates = torch.tensor([[x, 0.0] for x in range(50)], dtype=torch.float64)
    assert len(candidate_pairs(coordinates, SprodConfig())[0]) == 49 + 48 + 47


def test_perplexity_is_lowered_with_a_warning(caplog):
    features = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    learn_graph(grid(4), features, SprodConfig(radius=1.0), progress=False)
    assert "perplexity lowered to 5" in caplog.text


def test_no_candidates_no_weights():
    learned = learn_graph(grid(3), torch.zeros(9, 1, dtype=torch.float64), SprodConfig(radius=0.5), progress=False)
    assert len(learned.weights) == 0
    assert learned.objective == []


def test_unlike_spots_stay_apart():
    coordinates = grid(8)
    side = (coordinates[:, 0] >= 4).double()
    noise = 0.05 * torch.randn(64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    learned = learn_graph(coordinates, side[:, None] + noise, SprodConfig(radius=1.5, lambda_scale=10), progress=False)
    across = side[learned.row] != side[learned.col]
    assert learned.weights[across].mean() < 0.1 * learned.weights[~across].mean()
