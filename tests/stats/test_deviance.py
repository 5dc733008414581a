import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as h
from scipy import sparse, stats
from sklearn.metrics import mean_poisson_deviance

from stdenoise.stats.deviance import FLOOR, count_deviance, mean_profile, moment_dispersion, thin


def example(seed, n_spots=40, n_genes=7):
    rng = np.random.default_rng(seed)
    y = rng.poisson(rng.gamma(1, 2, (n_spots, n_genes)))
    mu = rng.gamma(2, 1, (n_spots, n_genes)) + 0.05
    return sparse.csr_matrix(y, dtype=np.float32), torch.tensor(mu)


def score(expected, observed, *, profile=None, dispersion=None, **arguments):
    n_spots, n_genes = observed.shape
    return count_deviance(
        expected,
        observed,
        spots=np.arange(n_spots),
        odds=1.0,
        depth=np.linspace(1, 2, n_spots),
        profile=np.full(n_genes, 0.1) if profile is None else profile,
        dispersion=np.full(n_genes, 2.0) if dispersion is None else dispersion,
        **arguments,
    )


@given(h.integers(0, 1000), h.floats(0.05, 0.95))
def test_thinning_splits_every_count_and_leaves_its_input_alone(seed, fraction):
    counts, _ = example(seed)
    before = counts.copy()
    rest, held_out = thin(counts, fraction, np.random.default_rng(seed))
    assert (counts != before).nnz == (rest + held_out != counts).nnz == 0
    assert (rest.data > 0).all()
    assert (held_out.data > 0).all()


def test_thinning_is_binomial_and_its_parts_of_poisson_counts_independent():
    _, held_out = thin(sparse.csr_matrix(np.full((200, 200), 20.0)), 0.3, np.random.default_rng(0))
    drawn, expected = held_out.toarray().ravel(), stats.binom(20, 0.3)
    assert drawn.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / 200)
    observed, share = np.bincount(drawn.astype(int), minlength=21)[2:11], expected.pmf(np.arange(2, 11))
    assert stats.chisquare(observed, share / share.sum() * observed.sum()).pvalue > 1e-3
    counts = sparse.csr_matrix(np.random.default_rng(1).poisson(10, (300, 300)).astype(float))
    rest, held_out = (part.toarray().ravel() for part in thin(counts, 0.2, np.random.default_rng(0)))
    assert abs(np.corrcoef(rest, held_out)[0, 1]) < 4 / 300


@pytest.mark.parametrize("block_entries", [1, 50, 10**6])
def test_deviances_equal_those_of_scikit_learn_and_scipy(block_entries):
    (y, mu), theta = example(2), np.linspace(0.5, 9, 7)
    result = score(mu, y, dispersion=theta, block_entries=block_entries)
    assert result.poisson == pytest.approx(mean_poisson_deviance(y.toarray().ravel(), mu.numpy().ravel()), rel=1e-12)
    assert result.floored == 0

    def loglik(mean):
        return stats.nbinom.logpmf(y.toarray(), theta, theta / (theta + mean))

    # The saturated model has its mean at the count; at 0 its likelihood is 1.
    saturated = np.where(y.toarray() > 0, loglik(np.maximum(y.toarray(), 1e-300)), 0)
    assert result.negative_binomial == pytest.approx(2 * (saturated - loglik(mu.numpy())).mean(), rel=1e-9)


def test_deviance_of_the_counts_themselves_is_zero():
    y, _ = example(4)
    perfect = score(torch.tensor(y.toarray() + 0.0), y, profile=np.zeros(7))
    assert (perfect.poisson, perfect.negative_binomial) == pytest.approx((0, 0), abs=1e-12)


def test_zero_predictions_are_raised_to_the_floor():
    y = np.array([[2.0, 0.0], [0.0, 3.0]])
    result = score(torch.tensor([[0.0, 4.0], [1.0, 0.0]]), sparse.csr_matrix(y), profile=np.array([0.5, 0.25]))
    # The depths of the two spots are 1 and 2.
    raised = np.array([[FLOOR * 0.5, 4.0], [1.0, FLOOR * 2 * 0.25]])
    assert result.poisson == pytest.approx(mean_poisson_deviance(y.ravel(), raised.ravel()))
    assert result.floored == 0.5


def test_mean_profile_reproduces_the_gene_totals_and_thinks_no_gene_impossible():
    y, _ = example(6)
    y = y.toarray()
    y[:, 3] = 0
    depth = y.sum(1)
    np.testing.assert_allclose(
        np.outer(depth, mean_profile(sparse.csr_matrix(y), depth)).sum(0), np.maximum(y.sum(0), 0.5)
    )


def test_moment_dispersion_equals_a_dense_formula_and_finds_the_dispersion():
    rng = np.random.default_rng(8)
    depth = rng.lognormal(0, 0.3, 4000)
    mean, theta = np.outer(depth, [3.0, 6.0, 2.0]), np.array([0.8, 5.0, 1e6])
    y = rng.poisson(mean * rng.gamma(theta, 1 / theta, mean.shape)).astype(float)
    # A last gene with less variance than Poisson counts.
    y = np.column_stack([y, np.full(4000, 3.0)])
    profile = mean_profile(sparse.csr_matrix(y), depth)
    mean = np.outer(depth, profile)
    excess = ((y - mean) ** 2 - mean).sum(0)
    expected = np.where(excess > 0, (mean**2).sum(0) / excess, 1e4).clip(1e-2, 1e4)
    found = moment_dispersion(sparse.csr_matrix(y), depth, profile)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(found[:2], theta[:2], rtol=0.15)
    assert found[2] > 30
    assert found[3] == 1e4
