import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as h
from sklearn.decomposition import PCA

from stdenoise._base.random import torch_generator
from stdenoise.stats.lowrank import principal_components, truncated_svd


def drawn(seed, n, m, *, rank=6, noise=0.05):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, m)) * 3 + noise * rng.normal(size=(n, m))
    return values * (rng.random((n, m)) < 0.5)


@given(h.integers(0, 1000), h.integers(2, 15), h.integers(2, 15), h.booleans())
def test_small_matrices_are_decomposed_exactly(seed, n, m, sparse):
    values = drawn(seed, n, m)
    matrix = torch.tensor(values).to_sparse_csr() if sparse else torch.tensor(values)
    u, s, vt = truncated_svd(matrix, min(n, m), generator=torch_generator(seed))
    np.testing.assert_allclose(s, np.linalg.svd(values, compute_uv=False), atol=1e-9)
    np.testing.assert_allclose((u * s) @ vt, values, atol=1e-9)


def test_close_singular_values_are_told_apart():
    # The spectrum of noise: no gap anywhere. A plain randomised scheme depends on its start here.
    values, rank = np.random.default_rng(0).poisson(0.1, size=(900, 700)).astype(float), 20
    exact = np.linalg.svd(values, full_matrices=False)
    matrix, best = torch.tensor(values).to_sparse_csr(), (exact.U[:, :rank] * exact.S[:rank]) @ exact.Vh[:rank]
    u, s, vt = truncated_svd(matrix, rank, generator=torch_generator(0))
    np.testing.assert_allclose(s, exact.S[:rank], rtol=1e-8)
    assert np.linalg.norm(((u * s) @ vt).numpy() - best) < 1e-3 * np.linalg.norm(best)
    plain_u, plain_s, plain_vt = truncated_svd(matrix, rank, generator=torch_generator(0), n_iterations=10)
    assert np.linalg.norm(((plain_u * plain_s) @ plain_vt).numpy() - best) > 0.01 * np.linalg.norm(best)


def test_the_plain_scheme_finds_what_stands_out():
    values = drawn(0, 300, 200, noise=0)
    u, s, vt = truncated_svd(torch.tensor(values), 3, generator=torch_generator(0), n_iterations=20)
    exact = np.linalg.svd(values, full_matrices=False)
    np.testing.assert_allclose(s, exact.S[:3], rtol=1e-8)
    np.testing.assert_allclose((u * s) @ vt, (exact.U[:, :3] * exact.S[:3]) @ exact.Vh[:3], atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_components_equal_those_of_scikit_learn(sparse):
    values = drawn(1, 60, 14) + 2
    matrix = torch.tensor(values).to_sparse_csr() if sparse else torch.tensor(values)
    ours, again = (principal_components(matrix, 5, generator=torch_generator(3)) for _ in range(2))
    theirs = PCA(5, svd_solver="full").fit(values)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(ours.components.abs().numpy(), np.abs(theirs.components_), atol=1e-8)
    np.testing.assert_allclose(ours.scores.abs().numpy(), np.abs(theirs.transform(values)), atol=1e-8)
    assert (ours.components.gather(1, ours.components.abs().argmax(1, keepdim=True)) > 0).all()
    # The same seed gives the same bits.
    assert torch.equal(ours.scores, again.scores)


@pytest.mark.parametrize("rank", [0, 5])
def test_ranks_that_do_not_exist(rank):
    with pytest.raises(ValueError, match=f"rank={rank} .* 4 x 9"):
        truncated_svd(torch.ones(4, 9), rank, generator=torch_generator(0))
