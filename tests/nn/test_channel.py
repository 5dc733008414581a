import pytest
import torch
from torch import nn

from stdenoise.nn.channel import ChannelGate


@pytest.mark.parametrize(("n_genes", "reduction", "width"), [(64, 16, 4), (100, 16, 6), (15, 16, 1)])
def test_equals_two_separate_passes(n_genes, reduction, width):
    gate = ChannelGate(n_genes, reduction, generator=torch.Generator().manual_seed(0))
    assert gate.squeeze.weight.shape == (width, n_genes)
    mlp = nn.Sequential(gate.squeeze, nn.ReLU(), gate.excite)
    mean, maximum = torch.rand(2, n_genes, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gate(mean, maximum), torch.sigmoid(mlp(mean) + mlp(maximum)))


def test_initial_weights_have_the_range_of_torch_linear_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    gate = ChannelGate(400, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    for layer in (gate.squeeze, gate.excite):
        bound = layer.in_features**-0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.abs().max() <= bound
