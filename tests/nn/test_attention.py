import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from stdenoise.nn.attention import GraphAttention, xavier_normal
from stdenoise.spatial.graph import SpatialGraph


class PlainAttention(MessagePassing):
    """The layer as message passing: one message of full width per edge."""

    def __init__(self, layer):
        super().__init__(aggr="add", node_dim=0)
        self.layer = layer

    def forward(self, x, edge_index):
        projected = x @ self.layer.weight
        return self.propagate(
            edge_index,
            x=projected,
            source=projected @ self.layer.source,
            target=projected @ self.layer.target,
            size=(len(x), len(x)),
        )

    def message(self, x_j, source_j, target_i, index, size_i):
        score = torch.sigmoid(source_j + target_i)
        return softmax(score, index, num_nodes=size_i)[:, None] * x_j


def random_graph(seed, n_spots, density):
    adjacency = sparse.random_array((n_spots, n_spots), density=density, random_state=seed).tocsr()
    return SpatialGraph.from_scipy(adjacency).with_self_loops()


def layer_and_input(seed, n_spots, n_in=4, n_out=3):
    generator = torch.Generator().manual_seed(seed)
    layer = GraphAttention(n_in, n_out, generator=generator).double()
    x = torch.randn(n_spots, n_in, generator=generator, dtype=torch.float64).requires_grad_()
    return layer, x


@given(seed=some.integers(0, 10_000), n_spots=some.integers(1, 20), density=some.sampled_from([0.0, 0.1, 0.6]))
def test_equals_message_passing(seed, n_spots, density):
    graph = random_graph(seed, n_spots, density)
    layer, x = layer_and_input(seed, n_spots)
    # Up to scores at which the logistic function is flat.
    with torch.no_grad():
        layer.source.mul_(10 ** (seed % 3 - 1))
    ours = layer(graph, x)
    plain = PlainAttention(layer)(x, torch.stack([graph.col.long(), graph.row.long()]))
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.aggregate_first(graph, x) @ layer.weight, plain, rtol=1e-10, atol=1e-12)
    leaves = [x, *layer.parameters()]
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((ours * probe).sum(), leaves),
        torch.autograd.grad((plain * probe).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("shape", "expected"), [((400, 100), 1.414 * (2 / 500) ** 0.5), ((512,), 1.414 / 512**0.5)])
def test_initial_spread(shape, expected):
    drawn = torch.cat(
        [xavier_normal(*shape, generator=torch.Generator().manual_seed(i)).detach().flatten() for i in range(40)]
    )
    assert drawn.std().item() == pytest.approx(expected, rel=0.03)
    assert abs(drawn.mean().item()) < 0.03 * expected
