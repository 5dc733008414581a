from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as some

from stdenoise.methods.stagate import STAGATE, STAGATEConfig
from stdenoise.methods.stagate.module import STAGATEModule, make_batch
from stdenoise.spatial.results import collect
from stdenoise.train.loop import train
from stdenoise.train.patches import Patches
from stdenoise.train.run import Run

SMALL = {"n_hidden": 8, "n_latent": 3, "n_epochs": 5, "lr": 1e-2}


def ring(n_spots):
    return np.roll(np.eye(n_spots), 1, 0) + np.roll(np.eye(n_spots), -1, 0)


def counts_of(n_spots, n_genes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 1.0, size=(n_spots, n_genes)))


@pytest.fixture(scope="session")
def trained(fit):
    return lambda counts, links, seed=0, **params: fit(STAGATE(**{**SMALL, **params}), counts, links=links, seed=seed)


def module_of(n_genes, seed=0, **params):
    return STAGATEModule(n_genes, STAGATEConfig(**{**SMALL, **params}), generator=torch.Generator().manual_seed(seed))


def batch_of(data, dtype=torch.float64):
    """The whole tissue as one patch."""
    (patch,) = Patches(replace(data, counts=data.counts.to(dtype)), n_hops=2).cover()
    return make_batch(patch)


def dense_loss(module, data):
    """Mean squared error over non-empty spots, with dense attention and the whole reconstruction."""
    counts = data.counts.to_dense().double()
    x = torch.log1p(1e4 * counts / counts.sum(1, keepdim=True).clamp(min=1)).to(module.bottleneck.dtype)
    linked = (data.graph.matrix(torch.ones(data.graph.n_edges)).to_dense() + torch.eye(len(x))) > 0
    projected = x @ module.encoder.weight
    score = torch.sigmoid((projected @ module.encoder.source)[None] + (projected @ module.encoder.target)[:, None])
    attention = torch.softmax(score.masked_fill(~linked, -torch.inf), dim=1)
    latent = F.elu(attention @ projected) @ module.bottleneck
    hidden = F.elu(attention @ latent @ module.bottleneck.T)
    return F.mse_loss((hidden @ module.encoder.weight.T)[data.nonempty], x[data.nonempty])


def loss_and_gradients(module, loss):
    return loss, torch.autograd.grad(loss, list(module.parameters()))


# -- The loss without the reconstruction -------------------------------------------------------------------------------


@given(
    n_spots=some.integers(1, 12),
    n_genes=some.integers(1, 12),
    n_hidden=some.integers(1, 12),
    share=some.sampled_from([0.05, 0.5, 1.0]),
    seed=some.integers(0, 1000),
)
def test_loss_and_gradients_equal_those_of_the_plain_formulation(spots_of, n_spots, n_genes, n_hidden, share, seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3, (n_spots, n_genes)) * (rng.random((n_spots, n_genes)) < share)
    counts[0, 0] += 1
    data = spots_of(counts, links=rng.random((n_spots, n_spots)) < 0.4)
    module = module_of(n_genes, seed, n_hidden=n_hidden).double()
    ours = loss_and_gradients(module, module.loss(batch_of(data)))
    plain = loss_and_gradients(module, dense_loss(module, data))
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n_genes", [300, 20], ids=["many genes", "few genes"])
def test_single_precision_suffices(spots_of, n_genes):
    # Two programmes only: a trained model reconstructs nearly all, so that the terms of the loss cancel.
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1, 3, (200, 2)) @ rng.gamma(1, 3, (2, n_genes)))
    data = spots_of(counts, links=ring(200))
    batch = batch_of(data, torch.float32)
    # torch 2.4 rounds the plain formulation so differently from order to order that one does not tell.
    orders = [data, *([spots_of(counts[::-1], links=ring(200))] if torch.__version__ < "2.5" else [])]
    for n_epochs in (1, 300):
        module = module_of(n_genes, n_hidden=64, n_latent=10)
        train(
            module,
            lambda module=module: module.loss(batch),
            lr=3e-3,
            weight_decay=1e-4,
            clip=5.0,
            n_epochs=n_epochs,
            restore_best=False,
            run=Run(),
            description="test",
        )
        loss, ours = loss_and_gradients(module, module.loss(batch))
        plain = [loss_and_gradients(module, dense_loss(module, spots))[1] for spots in orders]
        module.double()
        exact_loss, exact = loss_and_gradients(module, dense_loss(module, data))
        if n_epochs > 1:
            assert exact_loss < 0.05 * batch.square * batch.scale
        assert loss.item() == pytest.approx(exact_loss.item(), rel=2e-6)
        for gradient, *others, truth in zip(ours, *plain, exact, strict=True):
            # Near its minimum the gradient is a small difference, and the plain formulation rounds it off as well.
            allowed = max(1e-5 * truth.norm(), 5 * max((other - truth).norm() for other in others))
            assert (gradient - truth).norm() <= allowed


# -- The network -------------------------------------------------------------------------------------------------------


def test_a_spot_feels_two_hops_and_no_more(spots_of):
    counts = counts_of(30, 8)
    changed = counts.copy()
    changed[0] = changed[0][::-1] + 1
    module = module_of(8)
    (latent, mean), (other_latent, other_mean) = (
        module.predict(batch_of(spots_of(c, links=ring(30)), torch.float32)) for c in (counts, changed)
    )
    assert (latent != other_latent).any(1).nonzero().squeeze(1).tolist() == [0, 1, 29]
    assert (mean != other_mean).any(1).nonzero().squeeze(1).tolist() == [0, 1, 2, 28, 29]


def test_order_of_spots_does_not_matter(trained):
    counts, order = counts_of(30, 8), np.random.default_rng(1).permutation(30)
    straight = trained(counts, ring(30))
    shuffled = trained(counts[order], ring(30)[np.ix_(order, order)])
    torch.testing.assert_close(shuffled.mean, straight.mean[order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shuffled.latent, straight.latent[order], rtol=1e-3, atol=1e-4)


def test_an_empty_spot_is_filled_in_from_its_neighbours_and_not_scored(trained, spots_of):
    counts = np.tile([9, 0, 3, 1], (20, 1))
    counts[4] = 0
    result = trained(counts, ring(20), n_hidden=32, lr=3e-3, n_epochs=400)
    expected = spots_of(counts).lognorm.to_dense()[0]
    assert result.history["loss"][-1] < 0.1
    torch.testing.assert_close(result.mean[12], expected, rtol=0.1, atol=0.5)
    assert result.mean[4, 0] > 0.9 * expected[0]


# -- The method --------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_published_code():
    config = STAGATE().config
    assert (config.n_hidden, config.n_latent, config.n_epochs, config.batch_size) == (512, 30, 1000, None)
    assert (config.lr, config.weight_decay, config.clip, config.restore_best) == (1e-3, 1e-4, 5.0, False)


@pytest.mark.parametrize("batch_size", [None, 9])
def test_memory_does_not_change_what_is_computed(irregular, spots_of, batch_size):
    data = spots_of(irregular.X, links=irregular.obsp["spatial_connectivities"])
    method, results = STAGATE(**{**SMALL, "n_epochs": 3}, batch_size=batch_size), []
    for max_spots in (None, 1, 7):
        run = Run(max_spots=max_spots)
        model = method.train(data, run)
        results.append(collect(method.predict(model, data, run), 41, {"history": model.history}))
    whole, *others = results
    for parts in others:
        assert parts.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-5)
        torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(parts.latent, whole.latent, rtol=1e-3, atol=1e-4)


def test_steps_on_patches_learn_in_fewer_passes(trained):
    counts = counts_of(100, 20)
    full, patches = (trained(counts, ring(100), n_epochs=8, lr=3e-3, batch_size=n).history["loss"] for n in (None, 10))
    assert len(full) == len(patches) == 8
    assert patches[-1] < full[-1] < full[0]


def test_another_seed_gives_other_numbers(trained):
    first, other = (trained(counts_of(30, 8), ring(30), seed=seed) for seed in (4, 5))
    assert not torch.equal(first.mean, other.mean)


def test_restore_best_returns_the_weights_of_the_lowest_loss(trained):
    data, params = (counts_of(30, 8), ring(30)), {"lr": 0.3, "n_epochs": 11}
    losses = trained(*data, **params).history["loss"]
    best = int(np.argmin(losses))
    assert 0 < best < 10
    expected = trained(*data, lr=0.3, n_epochs=best).mean
    assert torch.equal(trained(*data, **params, restore_best=True).mean, expected)


def test_tiny_data(trained):
    for n_spots, n_genes in [(1, 1), (1, 5), (2, 1), (2, 5), (5, 1)]:
        for joined in (True, False):
            counts = np.full((n_spots, n_genes), 1_000_000)
            counts[-1, 0] = 1
            result = trained(counts, np.ones((n_spots, n_spots)) * joined)
            assert result.mean.shape == (n_spots, n_genes)
            assert result.mean.isfinite().all()
            assert result.latent.isfinite().all()


def test_divergence_is_an_error_with_advice(trained):
    with pytest.raises(FloatingPointError, match="stagate: .* below 5e\\+29"):
        trained(counts_of(30, 8), ring(30), lr=1e30)
