from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as some

from stdenoise.nn.counts import EPS, activate, count_blocks, count_loss_, heads_loss


def case(seed, n_spots=7, n_genes=5, width=3, n_heads=3, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, n_heads, n_spots, max(width, n_genes), generator=generator, dtype=torch.float64)
    inputs = [draw[0, h, :, :width].clone().requires_grad_() for h in range(n_heads)]
    weights = [
        (spread * torch.randn(width, n_genes, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(n_heads)
    ]
    rate = torch.rand(n_spots, n_genes, generator=generator, dtype=torch.float64) * 2
    counts = torch.poisson(rate, generator=generator)
    size_factors = torch.rand(n_spots, generator=generator, dtype=torch.float64) + 0.5
    return inputs, weights, counts, size_factors


def plain_loss(inputs, weights, counts, size_factors):
    """The likelihood from torch's own distributions, with the published guard against the logarithm of zero."""
    logits = [x @ w for x, w in zip(inputs, weights, strict=True)]
    mu = size_factors[:, None] * logits[0].clamp(-11.512925, 13.815511).exp()
    guard = counts * ((mu + EPS).log() - mu.log())
    if len(inputs) == 1:
        return -(torch.distributions.Poisson(mu).log_prob(counts) + guard).sum()
    theta = F.softplus(logits[1]).clamp(1e-4, 1e4)
    log_nb = torch.distributions.NegativeBinomial(theta, logits=mu.log() - theta.log()).log_prob(counts) + guard
    if len(inputs) == 2:
        return -log_nb.sum()
    drop, keep = torch.sigmoid(logits[2]), torch.sigmoid(-logits[2])
    zero, positive = (drop + keep * log_nb.exp() + EPS).log(), (keep + EPS).log() + log_nb
    return -torch.where(counts > 0, positive, zero).sum()


@given(seed=some.integers(0, 10_000), n_heads=some.sampled_from([1, 2, 3]), spread=some.sampled_from([0.1, 1.0, 3.0]))
def test_loss_and_gradients_equal_torch_distributions(seed, n_heads, spread):
    inputs, weights, counts, size_factors = case(seed, n_heads=n_heads, spread=spread)
    ours = heads_loss(inputs, weights, count_blocks(counts.to_sparse_csr()), size_factors, scale=0.25)
    plain = 0.25 * plain_loss(inputs, weights, counts, size_factors)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(ours, [*inputs, *weights]), torch.autograd.grad(plain, [*inputs, *weights]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block_entries", [1, 11, 10**6])
def test_blocks_do_not_change_the_loss(block_entries):
    inputs, weights, counts, size_factors = case(1)
    whole = heads_loss(inputs, weights, count_blocks(counts.to_sparse_csr()), size_factors)
    blocks = count_blocks(counts.to_sparse_csr(), block_entries)
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == len(counts)
    torch.testing.assert_close(heads_loss(inputs, weights, blocks, size_factors), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(dtype):
    counts = torch.tensor([[0.0, 1.0, 50_000.0]], dtype=dtype)
    (block,) = count_blocks(counts.to_sparse_csr())
    for n_heads, signs in product((1, 2, 3), ([1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1])):
        for logit in (-200.0, -50.0, 50.0, 200.0):
            logits = [torch.full_like(counts, sign * logit) for sign in signs[:n_heads]]
            loss = count_loss_(logits, block, torch.ones(1, dtype=dtype))
            assert loss.isfinite()
            assert all(g.isfinite().all() for g in logits)
            # Beyond its clamp a mean does not answer to its logit.
            assert (logits[0] == 0).all()


def test_mean_scales_with_the_size_factor_after_the_clamp():
    logit = torch.tensor([[-100.0, 0.0, 100.0]])
    mean, _ = activate([logit, logit], torch.tensor([3.0]))
    torch.testing.assert_close(mean, torch.tensor([[3e-5, 3.0, 3e6]]))


def test_large_dispersion_keeps_its_precision_in_float32():
    # lgamma(y + theta) - lgamma(theta) at theta = 1e4 loses all digits of the loss in single precision.
    counts = torch.tensor([[3.0, 1.0, 0.0, 7.0]])
    logits = [torch.log(torch.tensor([[2.5, 1.5, 0.5, 6.0]])), torch.full((1, 4), 9000.0)]
    exact = [x.double() for x in logits]
    (block,), (exact_block,) = count_blocks(counts.to_sparse_csr()), count_blocks(counts.double().to_sparse_csr())
    ours = count_loss_(logits, block, torch.ones(1))
    truth = count_loss_(exact, exact_block, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits[1].double(), exact[1], rtol=1e-3, atol=1e-7)
