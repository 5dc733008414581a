"""Gene channel attention: one gate per gene, from pooled expression."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelGate(nn.Module):
    """Gate in (0, 1) per gene from a shared two-layer network on the mean and the maximum over spots.

    Parameters
    ----------
    n_genes
        Number of genes.
    reduction
        The hidden layer has `max(1, n_genes // reduction)` units.
    generator
        Source of the initial weights.
    """

    def __init__(self, n_genes: int, reduction: int, *, generator: torch.Generator) -> None:
        super().__init__()
        width = max(1, n_genes // reduction)
        self.squeeze = _linear(n_genes, width, generator)
        self.excite = _linear(width, n_genes, generator)

    def forward(self, mean: Tensor, maximum: Tensor) -> Tensor:
        """Map pooled expression, two tensors of shape `(n_genes,)`, to the gate, shape `(n_genes,)`."""
        pooled = torch.stack([mean, maximum])
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))).sum(0))


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    # torch's default initialisation, but from our generator instead of the global one.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out)
    bound = n_in**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer
