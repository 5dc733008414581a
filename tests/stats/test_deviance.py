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


def score(expected, observed, *, depth=None, profile=None, dispersion=None, **arguments):
    n_spots, n_genes = observed.shape
    return count_deviance(
        expected,
        observed,
        depth=np.ones(n_spots) if depth is None else depth,
        profile=np.full(n_genes, 0.1) if profile is None else profile,
        dispersion=np.full(n_genes, 2.0) if dispersion is None else dispersion,
        **arguments,
    )


@given(h.integers(0, 1000), h.floats(0.05, 0.95))
def test_thinning_splits_every_count(seed, fraction):
    counts, _ = example(seed)
    rest, held_out = thin(counts, fraction, np.random.default_rng(seed))
    assert (rest + held_out != counts).nnz == 0
    assert (rest.data > 0).all()
    assert (held_out.data > 0).all()


def test_thinning_is_binomial():
    counts = sparse.csr_matrix(np.full((200, 200), 20.0))
    _, held_out = thin(counts, 0.3, np.random.default_rng(0))
    drawn = held_out.toarray().ravel()
    expected = stats.binom(20, 0.3)
    assert drawn.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / 200)
    observed = np.bincount(drawn.astype(int), minlength=21)[2:11]
    assert (
        stats.chisquare(
            observed, expected.pmf(np.arange(2, 11)) / expected.pmf(np.arange(2, 11)).sum() * observed.sum()
        ).pvalue
        > 1e-3
    )


def test_thinned_parts_of_poisson_counts_are_independent():
    counts = sparse.csr_matrix(np.random.default_rng(1).poisson(10, (300, 300)).astype(float))
    rest, held_out = (part.toarray().ravel() for part in thin(counts, 0.2, np.random.default_rng(0)))
    assert abs(np.corrcoef(rest, held_out)[0, 1]) < 4 / 300


def test_thinning_leaves_its_input_alone():
    counts, _ = example(0)
    before = counts.copy()
    thin(counts, 0.5, np.random.default_rng(0))
    assert (counts != before).nnz == 0


@pytest.mark.parametrize("block_entries", [1, 50, 10**6])
def test_poisson_deviance_equals_scikit_learn(block_entries):
    y, mu = example(2)
    result = score(mu, y, block_entries=block_entries)
    assert result.poisson == pytest.approx(mean_poisson_deviance(y.toarray().ravel(), mu.numpy().ravel()), rel=1e-12)
    assert result.floored == 0


def test_negative_binomial_deviance_is_twice_the_log_likelihood_ratio():
    y, mu = example(3)
    theta = np.linspace(0.5, 9, 7)

    def loglik(mean):
        p = theta / (theta + mean)
        return stats.nbinom.logpmf(y.toarray(), theta, p)

    # The saturated model has its mean at the count; at 0 its likelihood is 1.
    saturated = np.where(y.toarray() > 0, loglik(np.maximum(y.toarray(), 1e-300)), 0)
    expected = 2 * (saturated - loglik(mu.numpy())).mean()
    assert score(mu, y, dispersion=theta).negative_binomial == pytest.approx(expected, rel=1e-9)


def test_deviance_of_the_counts_themselves_is_zero():
    y, _ = example(4)
    dense = torch.tensor(y.toarray() + 0.0)
    perfect = score(dense, y, profile=np.zeros(7))
    assert perfect.poisson == pytest.approx(0, abs=1e-12)
    assert perfect.negative_binomial == pytest.approx(0, abs=1e-12)


def test_the_truth_beats_every_other_prediction():
    rng = np.random.default_rng(5)
    truth = rng.gamma(1, 1, (300, 20))
    y = sparse.csr_matrix(rng.poisson(truth).astype(float))
    best = score(torch.tensor(truth), y).poisson
    for factor in (0.7, 1.4):
        assert score(torch.tensor(truth * factor), y).poisson > best


def test_zero_predictions_are_raised_to_the_floor():
    y = sparse.csr_matrix(np.array([[2.0, 0.0]]))
    result = score(torch.zeros(1, 2), y, profile=np.array([0.5, 0.25]))
    low = FLOOR * np.array([0.5, 0.25])
    expected = 2 * (2 * np.log(2 / low[0]) - 2 + low[0] + low[1]) / 2
    assert result.poisson == pytest.approx(expected)
    assert result.floored == 1


def test_mean_profile_reproduces_the_gene_totals():
    y, _ = example(6)
    depth = y.toarray().sum(1)
    np.testing.assert_allclose(np.outer(depth, mean_profile(y, depth)).sum(0), y.toarray().sum(0))


def test_a_gene_without_counts_is_not_thought_impossible():
    y = sparse.csr_matrix(np.array([[1.0, 0.0], [3.0, 0.0]]))
    assert mean_profile(y, np.array([1.0, 1.0]))[1] == 0.25


def test_moment_dispersion_equals_a_dense_formula():
    y, _ = example(7, n_spots=200)
    depth = np.random.default_rng(0).gamma(3, 1, 200)
    profile = mean_profile(y, depth)
    mean = np.outer(depth, profile)
    excess = ((y.toarray() - mean) ** 2 - mean).sum(0)
    expected = np.where(excess > 0, (mean**2).sum(0) / excess, 1e4).clip(1e-2, 1e4)
    np.testing.assert_allclose(moment_dispersion(y, depth, profile), expected, rtol=1e-9)


def test_moment_dispersion_finds_the_dispersion():
    rng = np.random.default_rng(8)
    depth = rng.lognormal(0, 0.3, 4000)
    mean = np.outer(depth, [3.0, 6.0])
    theta = np.array([0.8, 5.0])
    y = sparse.csr_matrix(rng.poisson(mean * rng.gamma(theta, 1 / theta, mean.shape)).astype(float))
    np.testing.assert_allclose(moment_dispersion(y, depth, mean_profile(y, depth)), theta, rtol=0.15)


def test_poisson_counts_have_no_dispersion_to_speak_of():
    y = sparse.csr_matrix(np.random.default_rng(9).poisson(2, (5000, 3)).astype(float))
    assert (moment_dispersion(y, np.ones(5000), mean_profile(y, np.ones(5000))) > 30).all()
