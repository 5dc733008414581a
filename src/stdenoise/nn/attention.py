"""Graph attention with logistic scores (the STAGATE and DUSTED layer)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stdenoise.spatial.graph import SpatialGraph, aggregate


def xavier_normal(*shape: int, generator: torch.Generator, gain: float = 1.414) -> nn.Parameter:
    """Draw a parameter from a normal distribution with standard deviation `gain * sqrt(2 / (in + out))`.

    A vector of length `n` counts as `in + out = 2 n`, as the published layers store it as `(1, 1, n)`.
    """
    fan = sum(shape) if len(shape) > 1 else 2 * shape[0]
    return nn.Parameter(torch.randn(shape, generator=generator) * (gain * math.sqrt(2.0 / fan)))


class _AttentionWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: SpatialGraph, source: Tensor, target: Tensor) -> Tensor:
        row, col = graph.row, graph.col
        score = torch.sigmoid(source[col] + target[row])
        # Scores lie in (0, 1), so the softmax needs no maximum subtracted.
        weight = score.exp()
        weight /= graph.row_sum(weight)[row]
        ctx.graph = graph
        ctx.save_for_backward(score, weight)
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        (grad,) = grads
        score, weight = ctx.saved_tensors
        graph: SpatialGraph = ctx.graph
        d_score = weight * (grad - graph.row_sum(weight * grad)[graph.row])
        d_logit = d_score * score * (1 - score)
        return None, graph.col_sum(d_logit), graph.row_sum(d_logit)


def attention_weights(graph: SpatialGraph, source: Tensor, target: Tensor) -> Tensor:
    """Softmax over each spot's in-edges of `sigmoid(source_j + target_i)`.

    Parameters
    ----------
    graph
        The graph, `E` edges; every spot must have at least one in-edge (add self loops).
    source, target
        Scores of the spots that send, shape `(n_senders,)`, and of those that receive, shape `(n_spots,)`.

    Returns
    -------
    Edge weights, shape `(E,)`, summing to one over the in-edges of each spot.
    """
    return _AttentionWeights.apply(graph, source, target)  # type: ignore[no-any-return, no-untyped-call]


class GraphAttention(nn.Module):
    """Single-head graph attention without bias: `out_i = sum_j w_ij (x_j W)`.

    Parameters
    ----------
    n_in, n_out
        Widths of input and output.
    generator
        Source of the initial weights.

    Notes
    -----
    Aggregation is linear, so `A(xW) = (Ax)W` and the scores are `x (W u)`: `aggregate_first` works in the narrower of
    the two spaces and leaves the product with `W` to the caller.
    """

    def __init__(self, n_in: int, n_out: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = xavier_normal(n_in, n_out, generator=generator)
        self.source = xavier_normal(n_out, generator=generator)
        self.target = xavier_normal(n_out, generator=generator)

    def attend(self, graph: SpatialGraph, projected: Tensor) -> Tensor:
        """Edge weights from projected values `x W` of the senders, shape `(E,)`."""
        # All rows: the gradient of a part of them would be written into an array of zeros.
        return attention_weights(graph, projected @ self.source, (projected @ self.target)[: graph.n_spots])

    def forward(self, graph: SpatialGraph, x: Tensor) -> Tensor:
        """Map `(n_senders, n_in)` to `(n_spots, n_out)`."""
        projected = x @ self.weight
        return aggregate(graph, self.attend(graph, projected), projected)

    def aggregate_first(self, graph: SpatialGraph, x: Tensor) -> Tensor:
        """Return `A x`, shape `(n_spots, n_in)`; multiplied with `weight` it equals `forward`."""
        source, target = x @ (self.weight @ self.source), x @ (self.weight @ self.target)
        weights = attention_weights(graph, source, target[: graph.n_spots])
        return aggregate(graph, weights, x)
