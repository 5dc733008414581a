import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from stdenoise.methods.sprod import resistance
from stdenoise.methods.sprod.resistance import Slabs


def drawn(seed, n, radius, n_dims=2):
    rng = np.random.default_rng(seed)
    coordinates = torch.from_numpy(rng.uniform(0, 1, (n, n_dims)) * [3, 1, 1][:n_dims])
    near = torch.triu(torch.cdist(coordinates, coordinates) <= radius, 1)
    row, col = near.nonzero().T
    order = torch.from_numpy(rng.permutation(len(row)))
    weights = torch.from_numpy(rng.uniform(0, 1, len(row)) * (rng.uniform(size=len(row)) < 0.6))
    return coordinates, row[order], col[order], weights


def dense_inverse(n, row, col, weights, scale):
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix[row, col] = weights
    matrix = matrix + matrix.T
    q = torch.eye(n, dtype=torch.float64) + scale * (matrix.sum(1).diag() - matrix)
    return torch.logdet(q).item(), torch.linalg.inv(q)


@pytest.mark.parametrize("least", [1, 4, 64])
@given(
    seed=some.integers(0, 2**32),
    n=some.integers(1, 60),
    # At 0 there are no edges.
    radius=some.just(0.0) | some.floats(0, 1.5),
    scale=some.sampled_from([0.4, 4.0]),
    n_dims=some.sampled_from([2, 3]),
)
def test_equals_a_dense_inverse(least, seed, n, radius, scale, n_dims):
    coordinates, row, col, weights = drawn(seed, n, radius, n_dims)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resistance, "_MIN_SLAB", least)
        log_det, diagonal, on_edges = Slabs(coordinates, row, col).solve(weights, scale=scale)
    expected, inverse = dense_inverse(n, row, col, weights, scale)
    assert log_det == pytest.approx(expected, rel=1e-10, abs=1e-10)
    torch.testing.assert_close(diagonal, inverse.diagonal(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(on_edges, inverse[row, col], rtol=1e-9, atol=1e-12)


def test_a_long_section_is_cut_along_its_longest_axis_into_narrow_slabs(monkeypatch):
    coordinates, row, col, _ = drawn(0, 600, 0.2)
    for axes in ([0, 1], [1, 0]):
        slabs = Slabs(coordinates[:, axes].contiguous(), row, col)
        assert sum(slabs.widths) == 600
        assert len(slabs.widths) > 4
        # A slab is about as wide as the radius: a fifteenth of the section, 40 spots, less than the least there is.
        assert max(slabs.widths) == 64
    monkeypatch.setattr(resistance, "_MIN_SLAB", 1)
    assert max(Slabs(coordinates, row, col).widths) < 80
