"""The STAGATE network: a graph-attention autoencoder with tied weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdenoise.methods.stagate.config import STAGATEConfig
from stdenoise.nn.attention import GraphAttention, xavier_normal
from stdenoise.spatial.graph import SpatialGraph, aggregate, sparse_linear, with_transpose
from stdenoise.spatial.normalize import lognorm
from stdenoise.train.patches import Patch


@dataclass(frozen=True)
class Batch:
    """What a training step sees: a patch of tissue, and the spots of it that are scored.

    Parameters
    ----------
    x, x_transposed
        Log-normalised expression of the patch, CSR or dense, and its transpose.
    square
        Its sum of squares over the scored spots.
    graph
        Edges of the patch, with a self loop on every spot.
    n_core
        Spots of the patch without the halo.
    scored
        Scored spots of the patch.
    scale
        Factor on the summed loss.
    """

    x: Tensor
    x_transposed: Tensor
    square: Tensor
    graph: SpatialGraph
    n_core: int
    scored: Tensor | slice
    scale: float


class _TiedError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, projected: Tensor, weight: Tensor) -> Tensor:
        n_genes, n_hidden = weight.shape
        if 3 * n_genes > 2 * n_hidden:
            inner, outer = weight.t() @ weight, hidden.t() @ hidden
            square = _dot(inner, outer)
            ctx.save_for_backward(hidden, projected, weight, inner, outer)
        else:
            # Few genes: the reconstruction is smaller than the hidden layer, and three products with it cost less.
            product = hidden @ weight.t()
            square = _dot(product, product)
            ctx.save_for_backward(hidden, projected, weight, product)
        return square - 2 * _dot(hidden, projected)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, projected, weight, *products = ctx.saved_tensors
        if len(products) == 2:
            inner, outer = products
            d_hidden, d_weight = hidden @ inner, weight @ outer
        else:
            (product,) = products
            d_hidden, d_weight = product @ weight, product.t() @ hidden
        factor = (2 * grads[0]).to(hidden.dtype)
        return d_hidden.sub_(projected).mul_(factor), hidden * -factor, d_weight.mul_(factor)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of all entries: rows in the precision at hand, their sum in double, as the terms cancel in part."""
    return torch.bmm(a[:, None, :], b[:, :, None]).sum(dtype=torch.float64)


def tied_error(hidden: Tensor, projected: Tensor, weight: Tensor) -> Tensor:
    """Squared error of the reconstruction `R = H W^T` of `X`, less the squares of `X`, without an array of that size.

    The squares of `R` add up to the sum of `(H^T H) * (W^T W)`, and its products with `X` to that of `H * (X W)`.

    Parameters
    ----------
    hidden
        `H`, shape `(n_spots, n_hidden)`.
    projected
        `X W`, shape `(n_spots, n_hidden)`.
    weight
        `W`, shape `(n_genes, n_hidden)`.

    Returns
    -------
    A scalar in double precision. Its gradient with respect to `projected` carries that of `W` through `X W`.
    """
    return _TiedError.apply(hidden, projected, weight)  # type: ignore[no-any-return, no-untyped-call]


class STAGATEModule(nn.Module):
    """The network of STAGATE: two weights, each used on the way in and on the way out, and one attention.

    Parameters
    ----------
    n_genes
        Number of genes.
    config
        Hyperparameters.
    generator
        Source of the initial weights.
    """

    def __init__(self, n_genes: int, config: STAGATEConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = GraphAttention(n_genes, config.n_hidden, generator=generator)
        self.bottleneck = xavier_normal(config.n_hidden, config.n_latent, generator=generator)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the latent, shape `(n_spots, n_latent)`, the decoded hidden layer and `x W1`, both `(n_spots, n_hidden)`.

        Of a patch, the latent is that of the spots within one hop of the core, and the hidden layer that of the core.
        """
        projected = sparse_linear(batch.x, batch.x_transposed, self.encoder.weight)
        outer, core = batch.graph.within(1), batch.graph.within(0)
        attention = self.encoder.attend(outer, projected)
        latent = F.elu(aggregate(outer, attention, projected), inplace=True) @ self.bottleneck
        hidden = F.elu(aggregate(core, attention[: core.n_edges], latent) @ self.bottleneck.t(), inplace=True)
        return latent, hidden, projected

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the reconstruction over the scored spots and all genes, a scalar."""
        _, hidden, projected = self.encode(batch)
        error = tied_error(hidden[batch.scored], projected[batch.scored], self.encoder.weight)
        return (batch.square + error) * batch.scale

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return latent and reconstruction of the core spots, negative values set to zero, `(n_core, n_genes)`."""
        latent, hidden, _ = self.encode(batch)
        return latent[: batch.n_core], (hidden @ self.encoder.weight.t()).clamp_(min=0)


def make_batch(patch: Patch) -> Batch:
    """Make the batch of a patch: spots with their halo."""
    if patch.graph is None:
        raise ValueError("stagate needs a spatial graph.")
    sparse = lognorm(patch.counts)
    x, x_transposed = with_transpose(sparse)
    # Those that are not scored have no counts.
    core = sparse.values()[: int(sparse.crow_indices()[patch.n_core])]
    return Batch(
        x=x,
        x_transposed=x_transposed,
        square=core.double().square().sum(),
        graph=patch.graph,
        n_core=patch.n_core,
        # A slice costs nothing.
        scored=slice(0, patch.n_core) if len(patch.scored) == patch.n_core else patch.scored,
        scale=1.0 / (patch.n_scored * x.shape[1]),
    )
