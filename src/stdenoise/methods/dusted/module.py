"""The DUSTED network: gated graph-attention autoencoder with count heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdenoise.methods.dusted.config import DUSTEDConfig
from stdenoise.nn.attention import GraphAttention
from stdenoise.nn.channel import ChannelGate
from stdenoise.nn.counts import BLOCK_ENTRIES, CountBlock, activate, count_blocks, heads_loss
from stdenoise.spatial.graph import (
    SpatialGraph,
    aggregate,
    row_sum,
    select_rows,
    sparse_linear,
    transpose_csr,
    with_transpose,
    with_values,
)
from stdenoise.spatial.normalize import lognorm
from stdenoise.train.patches import Patch, Patches


@dataclass(frozen=True)
class Batch:
    """What one training step sees: a patch of tissue, and the spots of it that are scored.

    Parameters
    ----------
    x, x_transposed
        Log-normalised expression of the patch, CSR or dense, and its transpose.
    graph
        Edges of the patch, with a self loop on every spot.
    size_factors
        Of the core spots, shape `(n_core,)`.
    scored
        Scored spots of the patch.
    blocks
        Their counts.
    scale
        Factor on the summed loss.
    """

    x: Tensor
    x_transposed: Tensor
    graph: SpatialGraph
    size_factors: Tensor
    scored: Tensor | slice
    blocks: list[CountBlock]
    scale: float


class DUSTEDModule(nn.Module):
    """The network of DUSTED.

    Parameters
    ----------
    n_genes
        Number of genes.
    config
        Hyperparameters.
    generator
        Source of the initial weights.
    """

    gene_mean: Tensor
    gene_max: Tensor

    def __init__(self, n_genes: int, config: DUSTEDConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        self.alpha = config.alpha
        # Of the products with the heads' weights in training.
        self.product_dtype: torch.dtype | None = None
        # The pooled inputs of the gate belong to the data set as a whole, so that a patch is gated like the whole.
        self.register_buffer("gene_mean", torch.zeros(n_genes))
        self.register_buffer("gene_max", torch.zeros(n_genes))
        self.gate = ChannelGate(n_genes, config.gate_reduction, generator=generator) if config.gene_attention else None
        self.encoder = GraphAttention(n_genes, config.n_hidden, generator=generator)
        self.bottleneck = GraphAttention(config.n_hidden, config.n_latent, generator=generator)
        n_heads = 3 if config.likelihood == "zinb" else 2
        self.heads = nn.ModuleList(
            GraphAttention(config.n_hidden, n_genes, generator=generator) for _ in range(n_heads)
        )

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the latent, the decoded hidden layer and the attention of the encoder.

        Of a patch, latent `(n_spots, n_latent)` and attention are those of the spots within two and three hops of the core, and the
        hidden layer `(n_spots, n_hidden)` that of the spots within one: each layer leaves out what the next one does not need.
        """
        graph = batch.graph
        weight = self.encoder.weight
        if self.gate is not None:
            # (X * g) W = X (diag(g) W): the gate scales the weight, and X stays sparse and constant.
            weight = (1 + self.alpha * self.gate(self.gene_mean, self.gene_max))[:, None] * weight
        projected = sparse_linear(batch.x, batch.x_transposed, weight)
        outer, inner = graph.within(3), graph.within(1)
        attention = self.encoder.attend(outer, projected)
        latent = self.bottleneck(graph.within(2), F.elu(aggregate(outer, attention, projected)))
        # The decoder reuses the encoder's attention and the bottleneck's weight.
        hidden = F.elu(aggregate(inner, attention[: inner.n_edges], latent) @ self.bottleneck.weight.t())
        return latent, hidden, attention

    def loss(self, batch: Batch) -> Tensor:
        """Training loss of a batch, a scalar."""
        _, hidden, _ = self.encode(batch)
        inputs = [x[batch.scored] for x in self._head_inputs(batch, hidden)]
        weights = [head.weight for head in self._heads]
        size_factors = batch.size_factors[batch.scored]
        return heads_loss(inputs, weights, batch.blocks, size_factors, scale=batch.scale, dtype=self.product_dtype)

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return, for the core spots, latent and the list of mean, dispersion and, if any, dropout; and the attention of the encoder."""
        latent, hidden, attention = self.encode(batch)
        n_core, n_genes = len(batch.size_factors), batch.x.shape[1]
        inputs = self._head_inputs(batch, hidden)
        out = [hidden.new_empty(n_core, n_genes) for _ in inputs]
        height = max(1, BLOCK_ENTRIES // n_genes)
        for start in range(0, n_core, height):
            rows = slice(start, start + height)
            logits = [x[rows] @ head.weight for x, head in zip(inputs, self._heads, strict=True)]
            for whole, part in zip(out, activate(logits, batch.size_factors[rows]), strict=True):
                whole[rows] = part
        return latent[:n_core], attention, out

    def set_pooled(self, data: Patches) -> None:
        """Pool the log-normalised expression of a data set over its spots, as input of the gate."""
        total = torch.zeros(self.gene_mean.shape, dtype=torch.float64, device=self.gene_mean.device)
        self.gene_max.zero_()
        for counts in data.row_blocks():
            x = lognorm(counts).to(total.device)
            # Sorted sums: the same bits each time.
            total += row_sum(transpose_csr(with_values(x, x.values().double())))
            self.gene_max.scatter_reduce_(0, x.col_indices().long(), x.values(), "amax")
        self.gene_mean.copy_(total / data.n_spots)

    def _head_inputs(self, batch: Batch, hidden: Tensor) -> list[Tensor]:
        """What each head multiplies with its weight, for the core spots."""
        core = batch.graph.within(0)
        return [head.aggregate_first(core, hidden) for head in self._heads]

    @property
    def _heads(self) -> list[GraphAttention]:
        return list(self.heads)  # type: ignore[arg-type]


def make_batch(patch: Patch, *, per_entry: bool) -> Batch:
    """Make the batch of a patch.

    Parameters
    ----------
    patch
        Spots with their halo.
    per_entry
        Average the loss over spots and genes, instead of over spots only.
    """
    if patch.graph is None:
        raise ValueError("dusted needs a spatial graph.")
    n_genes = patch.counts.shape[1]
    x, x_transposed = with_transpose(lognorm(patch.counts))
    # A slice costs nothing.
    scored = slice(0, patch.n_core) if len(patch.scored) == patch.n_core else patch.scored
    return Batch(
        x=x,
        x_transposed=x_transposed,
        graph=patch.graph,
        size_factors=patch.size_factors[: patch.n_core],
        scored=scored,
        blocks=count_blocks(select_rows(patch.counts, patch.scored)),
        scale=1.0 / (patch.n_scored * (n_genes if per_entry else 1)),
    )
