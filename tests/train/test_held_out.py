import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

from stdenoise.spatial.graph import select_rows, to_csr_tensor
from stdenoise.train.held_out import HeldOut


def counts_of(seed, n_spots=30, n_genes=8, depth=2.0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2 * depth, size=(n_spots, n_genes)))
    counts[rng.random(n_spots) < 0.1] = 0
    return to_csr_tensor(sparse.csr_matrix(counts), dtype=torch.float32)


def draw(seed):
    return torch.Generator().manual_seed(seed)


@given(
    seed=some.integers(0, 10_000),
    n_chosen=some.integers(1, 30),
    n_asked=some.integers(1, 30),
    fraction=some.sampled_from([0.01, 0.5, 1.0]),
)
def test_what_remains_and_what_is_held_out_add_up_to_the_counts(seed, n_chosen, n_asked, fraction):
    counts, rng = counts_of(seed), np.random.default_rng(seed)
    before = counts.to_dense().clone()
    chosen = torch.from_numpy(np.sort(rng.permutation(30)[:n_chosen]))
    asked = torch.from_numpy(rng.permutation(30)[:n_asked])
    held_out = HeldOut(counts, chosen, fraction, draw(seed))
    rows = select_rows(counts, asked)
    left = held_out.thin_counts(rows, asked)
    assert torch.equal(counts.to_dense(), before)
    assert torch.equal(rows.to_dense(), before[asked])
    assert (left.values() > 0).all()
    inside = torch.isin(asked, chosen)
    assert torch.equal(left.to_dense()[~inside], before[asked][~inside])
    taken = held_out.of(asked[inside])
    assert (taken.values() > 0).all()
    assert (taken.values() == taken.values().round()).all()
    assert torch.equal(left.to_dense()[inside] + taken.to_dense(), before[asked][inside])


@given(seed=some.integers(0, 10_000), dtype=some.sampled_from([torch.float32, torch.float64]))
def test_depths_are_lowered_by_the_share_where_molecules_were_taken(seed, dtype):
    rng = np.random.default_rng(seed)
    chosen = torch.from_numpy(np.sort(rng.permutation(30)[:11]))
    positions = torch.from_numpy(rng.permutation(30)[:20])
    depths = torch.from_numpy(rng.uniform(0.5, 2, 20)).to(dtype)
    thinned = HeldOut(counts_of(seed), chosen, 0.3, draw(0)).thin_size_factors(depths, positions)
    factor = np.where(np.isin(positions, chosen), 0.7, 1.0)
    np.testing.assert_allclose(thinned, depths.numpy() * factor, rtol=1e-6)
    assert thinned.dtype == dtype


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_the_share_is_near_the_fraction_whatever_the_count_and_drawn_by_the_seed(fraction):
    counts = counts_of(0, n_spots=400, n_genes=50, depth=10.0)
    every = torch.arange(400)
    taken, again, other = (HeldOut(counts, every, fraction, draw(i)).of(every).to_dense().numpy() for i in (1, 1, 2))
    assert np.array_equal(taken, again)
    assert not np.array_equal(taken, other)
    whole = counts.to_dense().numpy()
    for least, most in ((1, 3), (4, 20), (21, np.inf)):
        chosen = (whole >= least) & (whole <= most)
        n = whole[chosen].sum()
        # Five standard deviations of a binomial share.
        assert abs(taken[chosen].sum() / n - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / n)
        # Each entry is a binomial draw of its own.
        variance = np.mean((taken[chosen] - fraction * whole[chosen]) ** 2 / (whole[chosen]))
        assert variance == pytest.approx(fraction * (1 - fraction), rel=0.15)
