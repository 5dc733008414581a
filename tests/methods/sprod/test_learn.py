import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

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


def test_lambda_falls_until_spots_are_joined(caplog):
    slabs, row, col, cost = problem(2)
    cost = cost.clamp(min=0.5)
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        weights, _ = weigh(slabs, row, col, cost, SprodConfig(lambda_scale=1e4), progress=False)
    assert (weights > 0).any()
    lowered = float(caplog.text.split("lambda_scale lowered to ")[1].split(",")[0])
    least = float(cost.min())
    assert lowered * least < 20 <= lowered / 0.8 * least * 1.001


def test_what_is_not_as_asked_for_is_said(caplog):
    slabs, row, col, cost = problem(3)
    weigh(slabs, row, col, cost, SprodConfig(max_iterations=2, tol=0), progress=False)
    assert "not converged in 2 iterations" in caplog.text
    features = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    learn_graph(grid(4), features, SprodConfig(radius=1.0), progress=False)
    assert "perplexity lowered to 5" in caplog.text


def test_candidates_lie_within_the_radius():
    # In units of the coordinates; as a share of the smaller range that is not 0.
    assert len(candidate_pairs(grid(4), SprodConfig(radius=1.0))[0]) == 24
    coordinates = grid(6) * torch.tensor([3.0, 1.0])
    row, col = candidate_pairs(coordinates, SprodConfig(radius_ratio=0.2))
    assert (coordinates[row] - coordinates[col]).norm(dim=1).max() == 1.0
    assert len(row) == 6 * 5
    line = torch.tensor([[x, 0.0] for x in range(50)], dtype=torch.float64)
    assert len(candidate_pairs(line, SprodConfig())[0]) == 49 + 48 + 47


def test_radius_of_large_sections_keeps_the_number_of_candidates():
    points = torch.rand(12_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few, many = (len(candidate_pairs(points[:n], SprodConfig())[0]) / n for n in (5000, 12_000))
    assert many == pytest.approx(few, rel=0.1)
    assert few == pytest.approx(5000 * np.pi * 0.08**2 / 2, rel=0.1)
