from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse

from stdenoise.methods.dca.batches import make_batch, standardization
from stdenoise.methods.dca.config import DCAConfig
from stdenoise.methods.dca.module import BatchNorm, DCAModule
from stdenoise.spatial.graph import to_csr_tensor
from stdenoise.spatial.spots import Spots
from stdenoise.train.patches import Patches

N_SPOTS, N_GENES = 20, 6
LIKELIHOODS = get_args(get_type_hints(DCAConfig)["likelihood"])
EPS = 1e-10


def make(likelihood, ridge=0.0, hidden=(5, 3, 4)):
    """A module with random parameters, biases and shifts too, and the take of a small data set."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.7, 3.0, size=(N_SPOTS, N_GENES)))
    size_factors = torch.tensor(rng.uniform(0.5, 2.0, size=N_SPOTS))
    data = Patches(
        Spots(
            counts=to_csr_tensor(sparse.csr_matrix(counts), dtype=torch.float64),
            size_factors=size_factors,
            median_total=1.0,
            nonempty=torch.ones(N_SPOTS, dtype=torch.bool),
            genes=tuple("abcdef"),
        )
    )
    statistics = standardization(data, N_SPOTS)

    def take(rows):
        return make_batch(data.patch(rows.numpy(), len(rows)), *statistics)

    draw = torch.Generator().manual_seed(1)
    module = DCAModule(N_GENES, DCAConfig(likelihood=likelihood, hidden=hidden, ridge=ridge), generator=draw).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.5)
    return module, take, torch.tensor(counts, dtype=torch.float64)


def dense(module, x, size_factors, *, training):
    """Latent, mean, dispersion and dropout, written out as the model is described."""
    layers, hidden = list(module.layers), x
    for number, (weight, norm) in enumerate(zip(layers, module.norms, strict=True)):
        linear = hidden @ weight
        if number == len(layers) // 2:
            latent = linear
        mean, variance = (
            (linear.mean(0), linear.var(0, correction=0)) if training else (norm.running_mean, norm.running_variance)
        )
        hidden = F.relu((linear - mean) / torch.sqrt(variance + 1e-3) + norm.shift)
    kind = module.likelihood

    def linear_of(head):
        return hidden @ head[:-1] + head[-1]

    mean = size_factors[:, None] * linear_of(module.mean).exp().clamp(1e-5, 1e6)
    out = [mean]
    if kind in ("nb", "zinb"):
        out.append(module.dispersion.exp().clamp(1e-3, 1e4).expand_as(mean))
    elif kind != "poisson":
        out.append(F.softplus(linear_of(module.dispersion)).clamp(1e-4, 1e4).expand_as(mean))
    if kind == "zinb-elempi":
        out.append(torch.sigmoid(linear_of(module.mean) * module.slope + module.offset))
    elif kind.startswith("zinb"):
        out.append(torch.sigmoid(linear_of(module.dropout)).expand_as(mean))
    return latent, out


def dense_loss(out, y, ridge):
    mean, *others = out
    if not others:
        return -torch.distributions.Poisson(mean).log_prob(y).mean()
    log_nb = torch.distributions.NegativeBinomial(others[0], logits=mean.log() - others[0].log()).log_prob(y)
    if len(others) == 1:
        return -log_nb.mean()
    drop = others[1]
    loss = -torch.where(y > 0, torch.log(1 - drop + EPS) + log_nb, torch.log(drop + (1 - drop) * log_nb.exp() + EPS))
    return (loss + ridge * drop**2).mean()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_it_equals_a_dense_evaluation(likelihood):
    ridge = 0.3 if likelihood.startswith("zinb") else 0.0
    module, take, y = make(likelihood, ridge)
    rows = torch.tensor([3, 17, 0, 9, 12])
    batch = take(rows)
    _, out = dense(module, batch.x, batch.size_factors, training=True)
    expected = dense_loss(out, y[rows], ridge)
    loss = module.loss(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)
    parameters = list(module.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-9)

    for norm in module.norms:
        norm.running_mean += 0.3
        norm.running_variance *= 2
    batch = take(torch.arange(N_SPOTS))
    torch.testing.assert_close(module.predict(batch), dense(module, batch.x, batch.size_factors, training=False))


@pytest.mark.parametrize("hidden", [(4,), (4, 3), (6, 5, 3, 5, 6)])
def test_the_latent_is_the_middle_layer_before_its_normalisation(hidden):
    module, take, _ = make("nb", hidden=hidden)
    latent, _ = module.predict(take(torch.arange(N_SPOTS)))
    assert latent.shape == (N_SPOTS, hidden[len(hidden) // 2])
    assert (latent < 0).any()
    if len(hidden) == 1:
        torch.testing.assert_close(latent, take(torch.arange(N_SPOTS)).x @ module.layers[0])


def test_batch_norm_keeps_running_averages_of_mean_and_biased_variance():
    norm = BatchNorm(3).double()
    draw = torch.Generator().manual_seed(0)
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for _ in range(5):
        x = 2 + 3 * torch.randn(7, 3, generator=draw, dtype=torch.float64)
        norm(x)
        mean = 0.99 * mean + 0.01 * x.mean(0)
        variance = 0.99 * variance + 0.01 * x.var(0, correction=0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_variance, variance)
    assert [name for name, _ in norm.named_parameters()] == ["shift"]
    before = norm.running_mean.clone()
    norm.eval()
    torch.testing.assert_close(norm(x), (x - mean) / torch.sqrt(variance + 1e-3))
    assert torch.equal(norm.running_mean, before)


def test_initial_weights():
    module = DCAModule(300, DCAConfig(likelihood="zinb-elempi"), generator=torch.Generator().manual_seed(0))
    for weight, fans in [(module.layers[0], 364), (module.layers[1], 96), (module.mean[:-1], 364), (module.slope, 600)]:
        limit = np.sqrt(6 / fans)
        assert 0.98 * limit < weight.abs().max() <= limit
        assert weight.mean().abs() < 0.1 * limit
    for start in (module.mean[-1], module.dispersion[-1], module.offset, *(norm.shift for norm in module.norms)):
        assert (start == 0).all()
    gene_wise = DCAModule(300, DCAConfig(likelihood="nb"), generator=torch.Generator().manual_seed(0))
    assert (gene_wise.dispersion.exp() == 1).all()
