import numpy as np
import pytest
from scipy import sparse, stats

from stdenoise.stats.nulls import permute_spots, redraw


def test_spots_move_within_their_library_and_every_order_is_as_likely():
    libraries, rng = np.array([0, 1, 0, 1, 0, 2]), np.random.default_rng(1)
    drawn = np.array([permute_spots(libraries, rng) for _ in range(3000)])
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(6), (3000, 1)))
    np.testing.assert_array_equal(libraries[drawn], np.tile(libraries, (3000, 1)))
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 6 * 2
    assert stats.chisquare(counts).pvalue > 1e-3


def test_redrawn_counts_have_the_means_and_nothing_else():
    rng = np.random.default_rng(2)
    depth, profile = rng.lognormal(0, 0.4, 800), rng.gamma(1, 2, 30)
    structure = np.where(np.arange(800)[:, None] < 400, 2.0, 0.5) ** rng.choice([-1, 1], 30)
    values = rng.poisson(np.outer(depth, profile) * structure).astype(np.float32)
    values = np.pad(values, ((0, 1), (0, 1)))
    counts = sparse.csr_matrix(values)
    drawn = redraw(counts, rng)
    assert drawn.dtype == np.float32
    # An empty spot and an empty gene stay empty.
    drawn = drawn.toarray()
    assert not drawn[-1].any()
    assert not drawn[:, -1].any()
    mean = np.outer(values.sum(1), values.sum(0))[:-1, :-1] / counts.sum()
    z, original = ((x[:-1, :-1] - mean) / np.sqrt(mean) for x in (drawn, values))
    # Poisson around the outer product: residuals with mean 0, variance 1, and no correlation between genes.
    assert z.mean() == pytest.approx(0, abs=4 / np.sqrt(z.size))
    assert z.var() == pytest.approx(1, abs=0.05)
    correlation, before = (np.corrcoef(x.T)[np.triu_indices(30, 1)] for x in (z, original))
    assert np.sqrt((correlation**2).mean()) == pytest.approx(1 / np.sqrt(800), rel=0.15)
    assert np.median(np.abs(before)) > 0.3
