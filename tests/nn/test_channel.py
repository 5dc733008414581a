import pytest
import torch
from torch import nn

from stdenoise.nn.channel import ChannelGate


@pytest.mark.parametrize(("n_genes", "width"), [(64, 4), (100, 6), (15, 1), (1, 1)])
def test_width_and_range(n_genes, width):
    gate = ChannelGate(n_genes, 16, generator=torch.Generator().manual_seed(0))
    assert gate.squeeze.weight.shape == (width, n_genes)
    out = gate(torch.linspace(0, 1, n_genes), torch.linspace(5, 0, n_genes))
    assert out.shape == (n_genes,)
    assert ((out > 0) & (out < 1)).all()


def test_equals_two_separate_passes():
    gate = ChannelGate(32, 8, generator=torch.Generator().manual_seed(0))
    mlp = nn.Sequential(gate.squeeze, nn.ReLU(), gate.excite)
    mean, maximum = torch.rand(2, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gate(mean, maximum), torch.sigmoid(mlp(mean) + mlp(maximum)))


def test_initial_weights_have_the_range_of_torch_linear_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    gate = ChannelGate(400, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    for layer in (gate.squeeze, gate.excite):
        bound = layer.in_features**-0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.abs().max() <= bound
