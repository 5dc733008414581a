import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy.spatial.distance import cdist

from stdenoise.stats import diffusion
from stdenoise.stats.diffusion import adaptive_kernel, diffuse_, diffusion_operator


def dense_kernel(points, knn, knn_max, decay, thresh):
    """The kernel from its definition, entry by entry."""
    n = len(points)
    distances = cdist(points, points)
    kernel = np.eye(n)
    for i in range(n):
        others = [j for j in np.argsort(distances[i], kind="stable") if j != i]
        bandwidth = max(distances[i, others[min(knn, n - 1) - 1]], np.finfo(float).eps) if others else 1.0
        for j in others[: knn if decay is None else knn_max]:
            weight = 1.0 if decay is None else np.exp(-((distances[i, j] / bandwidth) ** decay))
            kernel[i, j] = weight if weight >= thresh else 0.0
    return (kernel + kernel.T) / 2


@given(
    some.integers(0, 10**6),
    some.sampled_from([1, 2, 3, 30]),
    some.integers(1, 6),
    some.integers(0, 6),
    some.sampled_from([None, 0.5, 1, 2, 10]),
    some.sampled_from([0, 1e-4, 0.3]),
    some.sampled_from([0, 7]),
)
def test_the_kernel_equals_its_definition(seed, n, knn, more, decay, thresh, n_coincident):
    points = np.random.default_rng(seed).normal(size=(n, 3))
    points[:n_coincident] = points[-1]
    settings = {"knn": knn, "knn_max": knn + more, "decay": decay, "thresh": thresh}
    expected = dense_kernel(points, **settings)
    kernel = adaptive_kernel(torch.tensor(points), **settings)
    np.testing.assert_allclose(kernel.to_dense().numpy(), expected, atol=1e-12)
    operator = diffusion_operator(torch.tensor(points), **settings)
    np.testing.assert_allclose(operator.to_dense().numpy(), expected / expected.sum(axis=1, keepdims=True), atol=1e-12)
    # A point has so many neighbours of its own, and those that it is one of.
    assert operator.values().numel() <= n * (1 + 2 * (knn + more))
    assert operator.col_indices().dtype == torch.int32


@pytest.mark.parametrize(
    ("n_steps", "dtype", "atol"), [(0, torch.float64, 0), (5, torch.float64, 1e-12), (3, torch.float32, 1e-6)]
)
def test_diffusion_equals_the_power_of_the_operator(monkeypatch, n_steps, dtype, atol):
    monkeypatch.setattr(diffusion, "_BLOCK", 120)
    points = torch.tensor(np.random.default_rng(0).normal(size=(50, 3)))
    walk = diffusion_operator(points, knn=3, knn_max=9, decay=1, thresh=1e-4)
    values = torch.rand(50, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = torch.linalg.matrix_power(walk.to_dense().to(dtype), n_steps) @ values
    diffused = diffuse_(walk, values, n_steps)
    assert diffused is values
    torch.testing.assert_close(diffused, expected, rtol=0, atol=atol)
