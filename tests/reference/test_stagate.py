"""Worked numbers of the published STAGATE code, and a dense evaluation of its equations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse

from stdenoise.methods.stagate import STAGATEConfig
from stdenoise.methods.stagate.module import Batch, STAGATEModule
from stdenoise.nn.attention import GraphAttention
from stdenoise.spatial.graph import SpatialGraph
from stdenoise.train.loop import train
from stdenoise.train.run import Run

# The numbers have six digits after the point.
TOLERANCE = {torch.float64: 6e-7, torch.float32: 2e-6}
DTYPES = list(TOLERANCE)

PATH = sparse.diags_array([np.ones(3), np.ones(3)], offsets=[-1, 1]).tocsr()
LINKED = torch.tensor(PATH.toarray() + np.eye(4)) > 0
X = torch.tensor([[0, 1, 2, 0.5], [1.5, 0, 0.3, 0], [0.2, 2.2, 0, 1], [0, 0.4, 1.1, 3]], dtype=torch.float64)


def fill(a, b, *shape):
    k = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (0.1 * ((a * k + b) % 11 - 5)).reshape(shape)


def close(actual, expected, dtype=torch.float64):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=0, atol=TOLERANCE[dtype])


def dense_attention(projected, u, v, nonlinearity=torch.sigmoid):
    score = nonlinearity((projected @ u)[None, :] + (projected @ v)[:, None])
    return torch.softmax(score.masked_fill(~LINKED, -torch.inf), dim=1)


# -- One attention layer -----------------------------------------------------------------------------------------------

LAYER = {"weight": fill(3, 1, 4, 2), "source": torch.tensor([0.2, 0.4]), "target": torch.tensor([-0.4, 0.1])}
LAYER_WEIGHTS = [
    [0.515465, 0.484535, 0, 0],
    [0.331399, 0.311668, 0.356933, 0],
    [0, 0.322050, 0.370100, 0.307850],
    [0, 0, 0.544676, 0.455324],
]
LAYER_OUTPUT = [[-0.463195, 0.056186], [-0.062325, 0.243121], [0.222154, -0.233855], [0.655447, -0.276010]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_attention_layer(dtype):
    layer = GraphAttention(4, 2, generator=torch.Generator()).to(dtype)
    layer.load_state_dict(LAYER)
    close(layer.weight, [[-0.4, -0.1], [0.2, 0.5], [-0.3, 0], [0.3, -0.5]], dtype)
    graph, x = SpatialGraph.from_scipy(PATH).with_self_loops(), X.to(dtype)
    close(x @ layer.weight, [[-0.25, 0.25], [-0.69, -0.15], [0.66, 0.58], [0.65, -1.3]], dtype)
    close(graph.matrix(layer.attend(graph, x @ layer.weight).detach()).to_dense(), LAYER_WEIGHTS, dtype)
    close(layer(graph, x), LAYER_OUTPUT, dtype)


def test_scores_are_logistic_and_not_leaky():
    projected, u, v = X @ LAYER["weight"], LAYER["source"].double(), LAYER["target"].double()
    close(dense_attention(projected, u, v), LAYER_WEIGHTS)
    leaky = dense_attention(projected, u, v, lambda score: F.leaky_relu(score, 0.2))
    close(leaky[0], [0.547259, 0.452741, 0, 0])


# -- The network on four spots -----------------------------------------------------------------------------------------

WEIGHTS = {
    "encoder.weight": fill(2, 4, 4, 3),
    "encoder.source": fill(3, 5, 3),
    "encoder.target": fill(4, 6, 3),
    "bottleneck": fill(5, 7, 3, 2),
}
ATTENTION = [
    [0.494152, 0.505848, 0, 0],
    [0.324901, 0.332783, 0.342315, 0],
    [0, 0.331875, 0.340666, 0.327458],
    [0, 0, 0.509450, 0.490550],
]
LATENT = [[0.012743, 0.244942], [0.014635, 0.166772], [-0.093673, 0.345440], [-0.121287, 0.335772]]
RECONSTRUCTION = [
    [0.028808, -0.020168, 0.021807, 0.056814],
    [0.035952, -0.027195, 0.026466, 0.073896],
    [0.040562, -0.032646, 0.029053, 0.086598],
    [0.049134, -0.040777, 0.035015, 0.105609],
]
TRUE_TIE = [1.433085, 1.417516, 1.399775, 1.379865, 1.357797]
DOUBLE_UPDATE = [1.433085, 1.399921, 1.358431, 1.308994, 1.252390]


def four_spots(dtype=torch.float64):
    module = STAGATEModule(4, STAGATEConfig(n_hidden=3, n_latent=2), generator=torch.Generator()).to(dtype)
    module.load_state_dict(WEIGHTS)
    x = X.to(dtype)
    batch = Batch(
        x=x.to_sparse_csr(),
        x_transposed=x.t().to_sparse_csr(),
        square=X.square().sum(),
        graph=SpatialGraph.from_scipy(PATH).with_self_loops(),
        n_core=4,
        scored=slice(0, 4),
        scale=1 / 16,
    )
    return module, batch


def dense_loss(w1, u, v, w2, w3, w4):
    """Reconstruction and mean squared error with dense attention; `w3` and `w4` are the decoder's copies of W2 and W1."""
    projected = X @ w1
    attention = dense_attention(projected, u, v)
    latent = F.elu(attention @ projected) @ w2
    reconstruction = F.elu(attention @ latent @ w3.T) @ w4.T
    return reconstruction, F.mse_loss(reconstruction, X)


def leaves():
    return [value.clone().requires_grad_() for value in WEIGHTS.values()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(dtype):
    module, batch = four_spots(dtype)
    projected = batch.x @ module.encoder.weight
    attention = module.encoder.attend(batch.graph, projected).detach()
    close(batch.graph.matrix(attention).to_dense(), ATTENTION, dtype)
    latent, mean = module.predict(batch)
    close(latent, LATENT, dtype)
    close(mean, np.maximum(RECONSTRUCTION, 0), dtype)
    _, hidden, _ = module.encode(batch)
    close(hidden @ module.encoder.weight.T, RECONSTRUCTION, dtype)
    close(module.loss(batch), TRUE_TIE[0], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_five_adam_steps(dtype):
    module, batch = four_spots(dtype)
    outcome = train(
        module,
        lambda: module.loss(batch),
        lr=1e-2,
        weight_decay=1e-4,
        clip=5.0,
        n_epochs=5,
        restore_best=False,
        run=Run(),
        description="test",
    )
    close(torch.tensor(outcome.history["loss"]), TRUE_TIE, dtype)


def test_gradients_equal_those_of_the_dense_evaluation():
    module, batch = four_spots()
    w1, u, v, w2 = parameters = leaves()
    reconstruction, dense = dense_loss(w1, u, v, w2, w2, w1)
    close(reconstruction, RECONSTRUCTION)
    loss = module.loss(batch)
    torch.testing.assert_close(loss, dense, rtol=0, atol=1e-14)
    loss.backward()
    dense.backward()
    ours = dict(module.named_parameters())
    for name, parameter in zip(WEIGHTS, parameters, strict=True):
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-10, atol=1e-14)


def test_the_published_copies_step_every_weight_twice():
    # The decoder's copies share the encoder's storage, and Adam keeps moments for both: what we do not do.
    w1, u, v, w2 = leaves()
    w3, w4 = (torch.nn.Parameter(w.detach()) for w in (w2, w1))
    parameters = [w1, u, v, w2, w3, w4]
    optimizer = torch.optim.Adam(parameters, lr=1e-2, weight_decay=1e-4)
    losses = []
    for _ in DOUBLE_UPDATE:
        optimizer.zero_grad()
        _, loss = dense_loss(*parameters)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert w1.data_ptr() == w4.data_ptr()
    close(torch.tensor(losses), DOUBLE_UPDATE)
    # Five steps of 0.01 move an entry by 0.05 at most.
    assert (w1.detach() - WEIGHTS["encoder.weight"]).abs().max() == pytest.approx(0.10, abs=0.01)


def test_parameter_count_and_initial_weights():
    module = STAGATEModule(3000, STAGATEConfig(), generator=torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in module.parameters()) == 1_536_000 + 15_360 + 1_024
    deviations = {name: p.std().item() for name, p in module.named_parameters()}
    assert deviations["encoder.weight"] == pytest.approx(1.414 * (2 / 3512) ** 0.5, rel=0.01)
    assert deviations["bottleneck"] == pytest.approx(1.414 * (2 / 542) ** 0.5, rel=0.03)
    assert deviations["encoder.source"] == pytest.approx(1.414 / 512**0.5, rel=0.15)
    assert deviations["encoder.target"] == pytest.approx(1.414 / 512**0.5, rel=0.15)
