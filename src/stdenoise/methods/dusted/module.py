"""The DUSTED network: gated graph-attention autoencoder with count heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stdenoise.graph.csr import SpatialGraph, aggregate, dense_if_full, select_rows, sparse_linear, transpose_csr
from stdenoise.methods.dusted.config import DUSTEDConfig
from stdenoise.nn.attention import GraphAttention
from stdenoise.nn.channel import ChannelGate
from stdenoise.nn.counts import BLOCK_ENTRIES, CountBlock, activate, count_blocks, heads_loss


@dataclass(frozen=True)
class Batch:
    """What one training step sees: a patch of tissue and the spots of it that are scored.

    The pooled gate inputs belong to the whole data set, so a patch gives the same gate as the full graph.
    """

    x: Tensor
    x_transposed: Tensor
    gene_mean: Tensor
    gene_max: Tensor
    graph: SpatialGraph
    size_factors: Tensor
    scored: Tensor | None
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

    def __init__(self, n_genes: int, config: DUSTEDConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        self.alpha = config.alpha
        self.gate = ChannelGate(n_genes, config.gate_reduction, generator=generator) if config.gene_attention else None
        self.encoder = GraphAttention(n_genes, config.n_hidden, generator=generator)
        self.bottleneck = GraphAttention(config.n_hidden, config.n_latent, generator=generator)
        n_heads = 3 if config.likelihood == "zinb" else 2
        self.heads = nn.ModuleList(
            GraphAttention(config.n_hidden, n_genes, generator=generator) for _ in range(n_heads)
        )

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the latent `(n_spots, n_latent)`, the decoded hidden layer `(n_spots, n_hidden)` and the attention."""
        graph = batch.graph
        weight = self.encoder.weight
        if self.gate is not None:
            # (X * g) W = X (diag(g) W): the gate scales the weight, and X stays sparse and constant.
            weight = (1 + self.alpha * self.gate(batch.gene_mean, batch.gene_max))[:, None] * weight
        projected = sparse_linear(batch.x, batch.x_transposed, weight)
        attention = self.encoder.attend(graph, projected)
        latent = self.bottleneck(graph, F.elu(aggregate(graph, attention, projected)))
        # The decoder reuses the encoder's attention and the bottleneck's weight.
        hidden = F.elu(aggregate(graph, attention, latent) @ self.bottleneck.weight.t())
        return latent, hidden, attention

    def loss(self, batch: Batch) -> Tensor:
        """Training loss of a batch, a scalar."""
        _, hidden, _ = self.encode(batch)
        inputs = [head.aggregate_first(batch.graph, hidden) for head in self._heads]
        size_factors = batch.size_factors
        if batch.scored is not None:
            inputs = [x[batch.scored] for x in inputs]
            size_factors = size_factors[batch.scored]
        return heads_loss(inputs, [head.weight for head in self._heads], batch.blocks, size_factors, scale=batch.scale)

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return latent, attention, and the list of mean, dispersion and, if any, dropout, each `(n_spots, n_genes)`."""
        latent, hidden, attention = self.encode(batch)
        inputs = [head.aggregate_first(batch.graph, hidden) for head in self._heads]
        n_spots, n_genes = batch.x.shape
        out = [hidden.new_empty(n_spots, n_genes) for _ in inputs]
        height = max(1, BLOCK_ENTRIES // n_genes)
        for start in range(0, n_spots, height):
            rows = slice(start, start + height)
            logits = [x[rows] @ head.weight for x, head in zip(inputs, self._heads, strict=True)]
            for whole, part in zip(out, activate(logits, batch.size_factors[rows]), strict=True):
                whole[rows] = part
        return latent, attention, out

    @property
    def _heads(self) -> list[GraphAttention]:
        return list(self.heads)  # type: ignore[arg-type]


def make_batch(
    x: Tensor, counts: Tensor, size_factors: Tensor, graph: SpatialGraph, scored: Tensor, *, per_entry: bool
) -> Batch:
    """Make the batch of a whole data set.

    Parameters
    ----------
    x, counts
        Log-normalised expression and counts, CSR tensors of shape `(n_spots, n_genes)`.
    size_factors
        Shape `(n_spots,)`.
    graph
        Spatial graph without self loops.
    scored
        Boolean, shape `(n_spots,)`: spots that enter the loss.
    per_entry
        Average the loss over spots and genes, instead of over spots only.
    """
    n_spots, n_genes = x.shape
    x_transposed = transpose_csr(x)
    ones = x.values().new_ones(n_spots, 1)
    gene_max = x.values().new_zeros(n_genes)
    gene_max.scatter_reduce_(0, x.col_indices().long(), x.values(), "amax")
    gene_mean = (x_transposed @ ones).squeeze(1) / n_spots
    x, x_transposed = dense_if_full(x, x_transposed)
    n_scored = int(scored.sum())
    rows = None if n_scored == n_spots else scored.nonzero().squeeze(1)
    return Batch(
        x=x,
        x_transposed=x_transposed,
        gene_mean=gene_mean,
        gene_max=gene_max,
        graph=graph.with_self_loops(),
        size_factors=size_factors,
        scored=rows,
        blocks=count_blocks(counts if rows is None else select_rows(counts, rows)),
        scale=1.0 / (n_scored * (n_genes if per_entry else 1)),
    )
