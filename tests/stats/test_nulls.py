import numpy as np
import pytest
from scipy import sparse, stats

from stdenoise.stats.nulls import permute_spots, redraw


def test_spots_move_within_their_library():
    libraries = np.array([0, 1, 0, 1, 1, 0, 2])
    order = permute_spots(libraries, np.random.default_rng(0))
    assert sorted(order) == list(range(7))
    np.testing.assert_array_equal(libraries[order], libraries)


def test_every_order_is_as_likely():
    rng = np.random.default_rng(1)
    seen = [tuple(permute_spots(np.zeros(3, dtype=int), rng)) for _ in range(3000)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_redrawn_counts_have_the_means_and_nothing_else():
    rng = np.random.default_rng(2)
    depth, profile = rng.lognormal(0, 0.4, 800), rng.gamma(1, 2, 30)
    structure = np.where(np.arange(800)[:, None] < 400, 2.0, 0.5) ** rng.choice([-1, 1], 30)
    counts = sparse.csr_matrix(rng.poisson(np.outer(depth, profile) * structure).astype(np.float32))
    drawn = redraw(counts, rng)
    assert drawn.dtype == np.float32
    mean = np.outer(np.asarray(counts.sum(1)).ravel(), np.asarray(counts.sum(0)).ravel()) / counts.sum()
    z = (drawn.toarray() - mean) / np.sqrt(mean)
    # Poisson around the outer product: residuals with mean 0, variance 1, and no correlation between genes.
    assert z.mean() == pytest.approx(0, abs=4 / np.sqrt(z.size))
    assert z.var() == pytest.approx(1, abs=0.05)
    correlation = np.corrcoef(z.T)[np.triu_indices(30, 1)]
    assert np.sqrt((correlation**2).mean()) == pytest.approx(1 / np.sqrt(800), rel=0.15)
    original = (counts.toarray() - mean) / np.sqrt(mean)
    assert np.median(np.abs(np.corrcoef(original.T)[np.triu_indices(30, 1)])) > 0.3


def test_empty_spots_and_genes_stay_empty():
    counts = sparse.csr_matrix(np.array([[0.0, 0, 0], [4, 0, 2], [1, 0, 3]]))
    drawn = redraw(counts, np.random.default_rng(0)).toarray()
    assert not drawn[0].any()
    assert not drawn[:, 1].any()
