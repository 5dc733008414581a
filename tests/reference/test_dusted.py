"""Worked numbers of the published DUSTED code, and a dense evaluation of its equations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse

from stdenoise.methods.dusted.config import DUSTEDConfig
from stdenoise.methods.dusted.module import Batch, DUSTEDModule
from stdenoise.nn.counts import activate, count_blocks, count_loss_
from stdenoise.spatial.graph import SpatialGraph, aggregate
from stdenoise.train.loop import train
from stdenoise.train.run import Run

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
DTYPES = list(TOLERANCE)


def close(actual, expected, dtype=torch.float64):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=0, atol=TOLERANCE[dtype])


# -- Likelihood --------------------------------------------------------------------------------------------------------

Y = [[0.0, 1, 5], [2, 0, 0]]
MU = [[0.5, 1.2, 3], [1.5, 0.1, 2.5]]
THETA = [[1.0, 2, 0.5], [10, 0.3, 1.5]]
PI = [[0.2, 0.1, 0.05], [0.3, 0.6, 0.4]]
NB = [[0.405465, 1.227689, 3.145751], [1.464050, 0.086305, 1.471244]]
ZINB = [[0.310155, 1.333050, 3.197044], [1.820725, 0.033633, 0.620299]]


def likelihood(n_heads, dtype):
    """Logits, loss sum and gradients of the worked case."""
    mu, theta, pi, y = (torch.tensor(x, dtype=dtype) for x in (MU, THETA, PI, Y))
    logits = [mu.log(), theta.expm1().log(), pi.logit()][:n_heads]
    gradients = [x.clone() for x in logits]
    (block,) = count_blocks(y.to_sparse_csr())
    loss = count_loss_(gradients, block, torch.ones(2, dtype=dtype))
    slopes = [mu, torch.sigmoid(logits[1]), pi * (1 - pi)]
    return logits, loss, [g / slope for g, slope in zip(gradients, slopes, strict=False)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_likelihood_and_its_gradients(dtype):
    for n_heads, entries in ((2, NB), (3, ZINB)):
        logits, _, _ = likelihood(n_heads, dtype)
        for i, j in np.ndindex(2, 3):
            entry = [x[i : i + 1, j : j + 1].clone() for x in logits]
            (block,) = count_blocks(torch.tensor([[Y[i][j]]], dtype=dtype).to_sparse_csr())
            close(count_loss_(entry, block, torch.ones(1, dtype=dtype)), entries[i][j], dtype)
    _, loss, (d_mu, d_theta, d_pi) = likelihood(3, dtype)
    close(loss / 6, 1.219151, dtype)
    close(d_mu / 6, [[0.080808, 0.017361, -0.015873], [-0.048309, 0.047435, 0.016013]], dtype)
    close(d_theta / 6, [[0.008743, -0.015416, -0.176211], [-0.001278, 0.002383, 0.015194]], dtype)
    close(d_pi / 6, [[-0.075758, 0.185185, 0.175439], [0.238095, -0.014252, -0.238745]], dtype)
    _, loss, (d_mu, _) = likelihood(2, dtype)
    close(loss / 2, 3.900252, dtype)
    close(d_mu / 2, [[0.333333, 0.052083, -0.047619], [-0.144928, 0.375, 0.1875]], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(dtype):
    logit = torch.tensor([[-20, -3, -0.5, 0, 2, 15]], dtype=dtype)
    mean, dispersion, dropout = activate([logit, logit, logit], torch.ones(1, dtype=dtype))
    # The last mean is 1e6: six digits of it are 1 in its own scale.
    torch.testing.assert_close(
        mean.double(),
        torch.tensor([[1e-5, 0.0497871, 0.606531, 1, 7.38906, 1e6]], dtype=torch.float64),
        rtol=TOLERANCE[dtype],
        atol=1e-7,
    )
    torch.testing.assert_close(
        dispersion.double(),
        torch.tensor([[1e-4, 0.0485874, 0.474077, 0.693147, 2.12693, 15]], dtype=torch.float64),
        rtol=TOLERANCE[dtype] if dtype == torch.float32 else 2e-6,
        atol=1e-7,
    )
    close(dropout, 1 / (1 + np.exp(-np.array([[-20, -3, -0.5, 0, 2, 15]]))), dtype)


# -- The network on four spots -----------------------------------------------------------------------------------------

X4 = [[0, 1, 2, 0.5], [1.5, 0, 0.3, 0], [0.2, 2.2, 0, 1], [0, 0.4, 1.1, 3]]
Y4 = [[0.0, 1, 4, 1], [3, 0, 1, 0], [0, 5, 0, 2], [0, 1, 2, 9]]
S4 = [0.8, 1.2, 1, 1.5]
PATH = sparse.diags_array([np.ones(3), np.ones(3)], offsets=[-1, 1]).tocsr()

FIRST_LOSS = {"zinb": 2.183781, "nb": 7.644447}
LOSSES = {
    "zinb": [2.183781, 2.175116, 2.168204, 2.162505, 2.157638],
    "nb": [7.644447, 7.611185, 7.583591, 7.560382, 7.540753],
}
UNTIED_NORM = {"zinb": 0.200132, "nb": 0.804551}


def fill(a, b, shape):
    k = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (0.1 * ((a * k + b) % 11 - 5)).reshape(shape)


def parameters_in_order(module):
    layers = [module.encoder, module.bottleneck, *module.heads]
    gate = [module.gate.squeeze.weight, module.gate.squeeze.bias, module.gate.excite.weight, module.gate.excite.bias]
    return gate + [p for layer in layers for p in (layer.weight, layer.source, layer.target)]


def four_spots(likelihood, dtype=torch.float64):
    config = DUSTEDConfig(likelihood=likelihood, n_hidden=3, n_latent=2, gate_reduction=2)
    module = DUSTEDModule(4, config, generator=torch.Generator()).to(dtype)
    with torch.no_grad():
        for number, parameter in enumerate(parameters_in_order(module)):
            parameter.copy_(fill(2 + number % 7, number, parameter.shape))
    x = torch.tensor(X4, dtype=dtype)
    module.gene_mean.copy_(x.mean(0))
    module.gene_max.copy_(x.max(0).values)
    batch = Batch(
        x=x.to_sparse_csr(),
        x_transposed=x.t().to_sparse_csr(),
        graph=SpatialGraph.from_scipy(PATH).with_self_loops(),
        size_factors=torch.tensor(S4, dtype=dtype),
        scored=slice(0, 4),
        blocks=count_blocks(torch.tensor(Y4, dtype=dtype).to_sparse_csr()),
        scale=1 / 16 if likelihood == "zinb" else 1 / 4,
    )
    return module, batch


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(dtype):
    module, batch = four_spots("zinb", dtype)
    gate = module.gate(module.gene_mean, module.gene_max)
    close(gate, [0.402514, 0.643365, 0.348645, 0.602286], dtype)
    close((batch.x.to_dense() * (1 + 1.5 * gate))[0], [0, 1.965048, 3.045935, 0.951715], dtype)
    latent, hidden, attention = module.encode(batch)
    weights = [0.532733, 0.467267, 0.377704, 0.332935, 0.289361, 0.366595, 0.307232, 0.326172, 0.489053, 0.510947]
    close(attention, weights, dtype)
    gated = batch.x.to_dense() * (1 + 1.5 * gate)
    first = F.elu(aggregate(batch.graph, attention, gated @ module.encoder.weight))
    close(first[0], [-0.309267, 0.318682, 0.081409], dtype)
    close(hidden[0], [-0.215363, 0.318656, -0.002022], dtype)
    z = [[-0.314310, -0.346478], [-0.477855, -0.484498], [-0.702841, -0.709392], [-0.854157, -0.823580]]
    close(latent, z, dtype)
    predicted, _, (mean, dispersion, dropout) = module.predict(batch)
    assert torch.equal(predicted, latent)
    m = [
        [0.790728, 0.737161, 0.781537, 0.727134],
        [1.188947, 1.089052, 1.171683, 1.072019],
        [0.995149, 0.884670, 0.975821, 0.867539],
        [1.497356, 1.305856, 1.463592, 1.277671],
    ]
    close(mean, m, dtype)
    close(dispersion[0], [0.658694, 0.704916, 0.687327, 0.670045], dtype)
    close(dropout[0], [0.544209, 0.458697, 0.535496, 0.450001], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_five_adam_steps(dtype):
    for likelihood, losses in LOSSES.items():
        module, batch = four_spots(likelihood, dtype)
        outcome = train(
            module,
            lambda module=module, batch=batch: module.loss(batch),
            lr=1e-2,
            weight_decay=1e-4,
            clip=5.0,
            n_epochs=5,
            restore_best=False,
            run=Run(),
            description="test",
        )
        close(torch.tensor(outcome.history["loss"]), losses, dtype)
        if likelihood == "zinb":
            w2 = [0.200596, 0.388682, -0.454880, -0.254162, -0.149080, 0.050803]
            close(module.bottleneck.weight.flatten(), w2, dtype)


# -- The same network, evaluated densely from its equations ------------------------------------------------------------


def dense_loss(parameters, w3, likelihood):
    """Loss with dense attention, gene-space heads and the likelihood entry by entry; `w3` is the decoder's copy of W2."""
    w_a, b_a, w_b, b_b, w1, u1, v1, w2, u2, v2, *heads = parameters
    x, y = torch.tensor(X4, dtype=torch.float64), torch.tensor(Y4, dtype=torch.float64)
    s = torch.tensor(S4, dtype=torch.float64)
    linked = torch.tensor(PATH.toarray() + np.eye(4)) > 0

    def mlp(v):
        return w_b @ torch.relu(w_a @ v + b_a) + b_b

    def weights(projected, u, v):
        score = torch.sigmoid((projected @ u)[None, :] + (projected @ v)[:, None])
        return torch.softmax(score.masked_fill(~linked, -torch.inf), dim=1)

    gated = x * (1 + 1.5 * torch.sigmoid(mlp(x.mean(0)) + mlp(x.max(0).values)))
    a1 = weights(gated @ w1, u1, v1)
    h1 = F.elu(a1 @ (gated @ w1))
    z = weights(h1 @ w2, u2, v2) @ (h1 @ w2)
    h3 = F.elu(a1 @ (z @ w3.T))
    logits = [weights(h3 @ w, u, v) @ (h3 @ w) for w, u, v in zip(heads[::3], heads[1::3], heads[2::3], strict=True)]
    mu = s[:, None] * logits[0].exp().clamp(1e-5, 1e6)
    theta = F.softplus(logits[1]).clamp(1e-4, 1e4)
    log_nb = torch.distributions.NegativeBinomial(theta, logits=mu.log() - theta.log()).log_prob(y)
    if likelihood == "nb":
        return -log_nb.sum(1).mean()
    pi = torch.sigmoid(logits[2])
    return -torch.where(y > 0, torch.log(1 - pi) + log_nb, torch.log(pi + (1 - pi) * log_nb.exp())).mean()


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_gradients_equal_those_of_the_dense_evaluation(likelihood):
    module, batch = four_spots(likelihood)
    loss = module.loss(batch)
    loss.backward()
    leaves = [p.detach().clone().requires_grad_() for p in parameters_in_order(module)]
    w3 = leaves[7].detach().clone().requires_grad_()
    dense = dense_loss(leaves, w3, likelihood)
    dense.backward()
    close(loss, FIRST_LOSS[likelihood])
    torch.testing.assert_close(loss, dense, rtol=0, atol=1e-9)
    # The published code stores W2 and the decoder's copy apart; its norm counts the two gradients apart.
    norm = torch.sqrt(sum((p.grad**2).sum() for p in [*leaves, w3]))
    close(norm, UNTIED_NORM[likelihood])
    leaves[7].grad += w3.grad
    for ours, theirs in zip(parameters_in_order(module), leaves, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-10)


def test_parameter_count():
    # The published 7,320,015 count the decoder's copy of W2 and its two unused attention vectors.
    config = DUSTEDConfig()
    module = DUSTEDModule(3000, config, generator=torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in module.parameters()) == 7_320_015 - 512 * 30 - 2 * 512
