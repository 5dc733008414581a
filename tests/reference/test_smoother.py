"""Worked numbers of the published Smoother (package 1.1.0) on five spots and two genes."""

import numpy as np
import pytest
import torch
from scipy import sparse

from stdenoise._base.random import torch_generator
from stdenoise.methods.smoother import Smoother, edge_weights, precision
from stdenoise.spatial.graph import to_csr_tensor
from stdenoise.spatial.spots import Spots
from stdenoise.stats.solve import conjugate_gradients

COORDINATES = [[0, 0], [1, 0], [0, 1.1], [1.2, 1], [2.3, 2]]
Y = [[2.0, 0], [1, 1], [0, 3], [4, 0], [1, 2]]
# prior, further parameters, roughness of Y, minimiser
EXACT = [
    (
        {"prior": "icar", "rho": 0.9},
        5.17,
        [[1.385417, 0.625], [1.364583, 0.708333], [1.03125, 1.375], [2.052083, 0.625], [0.909091, 1.818182]],
    ),
    (
        {"prior": "isar", "rho": 0.9},
        4.1715,
        [[1.503823, 0.773179], [1.711524, 0.707019], [1.211524, 1.707019], [2.503823, 0.773179], [0.990099, 1.980198]],
    ),
    (
        {"prior": "car", "rho": 0.1},
        3.43,
        [[1.040404, 0.101010], [0.654040, 0.510101], [0.154040, 1.510101], [2.040404, 0.101010], [0.526316, 1.052632]],
    ),
    (
        {"prior": "icar", "rho": 0.99, "scale_by": "expression", "n_components": 0},
        0.871013,
        [[1.942746, 0.222855], [1.880582, 0.543453], [0, 2.970297], [3.114318, 0.222855], [0.990099, 1.980198]],
    ),
]
TRAINED = [[1.433835, 0.666888], [1.611154, 0.688305], [0.781408, 2.188517], [3.156622, 0.666888], [0.909091, 1.818184]]


def five_spots():
    y = torch.tensor(Y).to_sparse_csr()
    spots = Spots(
        counts=y,
        size_factors=torch.ones(5),
        median_total=1.0,
        nonempty=torch.ones(5, dtype=torch.bool),
        genes=("a", "b"),
        arrays={"coordinates": torch.tensor(COORDINATES, dtype=torch.float64)},
    )
    # The sheet works on these values as they are.
    vars(spots)["lognorm"] = y
    return spots


def smoother(**params):
    return Smoother(k=2, center=False, **params)


def precision_of(method):
    weights = edge_weights(five_spots(), method.config, generator=torch_generator(0))
    return weights.toarray(), precision(weights, method.config.prior, method.config.rho).toarray()


@pytest.mark.parametrize(("params", "roughness", "expected"), EXACT)
def test_minimisers_and_roughness_of_the_data(params, roughness, expected):
    method = smoother(**params)
    np.testing.assert_allclose(method.fit(five_spots(), seed=0, progress=False).mean, expected, atol=1e-6)
    _, q = precision_of(method)
    assert np.trace(np.transpose(Y) @ q @ Y) / 10 == pytest.approx(roughness, abs=1e-6)


def test_precision_of_icar_and_isar():
    _, q = precision_of(smoother(rho=0.9))
    off = -0.9
    expected = [[2, off, off, 0, 0], [off, 2, 0, off, 0], [off, 0, 2, off, 0], [0, off, off, 2, 0], [0, 0, 0, 0, 0.1]]
    np.testing.assert_allclose(q, expected, atol=1e-12)
    _, q = precision_of(smoother(prior="isar", rho=0.9))
    np.testing.assert_allclose(q[0], [1.405, -0.9, -0.9, 0.405, 0], atol=1e-12)
    assert q[4, 4] == pytest.approx(0.01)


def test_standardised_covariance():
    # Left out of the method, since it inverts a dense matrix; what the pieces give for it is checked all the same.
    _, q = precision_of(smoother(rho=0.9))
    scale = np.sqrt(np.diag(np.linalg.inv(q)))
    q = scale[:, None] * q * scale
    np.testing.assert_allclose(np.diag(q), [3.131578] * 4 + [1], atol=1e-6)
    assert q[0, 1] == pytest.approx(-1.409210, abs=1e-6)
    # The published number is in single precision.
    assert np.trace(np.transpose(Y) @ q @ Y) / 10 == pytest.approx(8.516840, rel=5e-7)
    system = to_csr_tensor(sparse.csr_matrix(np.eye(5) + q), dtype=torch.float64)
    solution = conjugate_gradients(system, torch.tensor(Y, dtype=torch.float64), tol=1e-10)
    np.testing.assert_allclose(solution[0], [1.270483, 0.617638], atol=1e-6)


def test_expression_scaling_without_components():
    weights, _ = precision_of(smoother(scale_by="expression", n_components=0))
    half = np.sqrt(0.5)
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = expected[1, 3] = expected[3, 1] = half
    expected[2, 2] = expected[4, 4] = 1
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_the_published_training_stops_short():
    result = smoother(rho=0.9, compat="reference").fit(five_spots(), seed=0, progress=False)
    np.testing.assert_allclose(result.mean, TRAINED, atol=5e-6)
    assert len(result.history["loss"]) == 1000
    far = np.abs(result.mean.numpy() - EXACT[0][2]).max()
    assert far == pytest.approx(1.10, abs=0.01)
