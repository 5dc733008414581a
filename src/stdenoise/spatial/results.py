"""What methods return, and how blocks of it are put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Denoised:
    """All that a method returns.

    Parameters
    ----------
    mean
        Denoised expression, shape `(n_spots, n_genes)`.
    scale
        Scale of the mean.
    dispersion, dropout
        Inverse dispersion and dropout probability, of the shape of the mean, where the model has them.
    latent
        Shape `(n_spots, n_latent)`.
    attention
        Row pointers, sources and weights of a CSR matrix of shape `(n_spots, n_spots)`.
    history
        Named values per epoch.
    """

    mean: Tensor
    scale: Literal["counts", "log1p"]
    dispersion: Tensor | None = None
    dropout: Tensor | None = None
    latent: Tensor | None = None
    attention: tuple[Tensor, Tensor, Tensor] | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)


def collect(
    blocks: Iterable[tuple[Tensor, Denoised]],
    n_spots: int,
    history: Mapping[str, Sequence[float]],
    device: torch.device | None = None,
) -> Denoised:
    """Put blocks of spots together.

    Parameters
    ----------
    blocks
        Positions of some spots, and their results; together each spot once. The attention of a block has a row for each of its
        spots, and columns for all spots there are.
    n_spots
        Number of spots.
    history
        Of the result.
    device
        Where the result goes.
    """
    whole: dict[str, Tensor] = {}
    edges: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = []
    scale: Literal["counts", "log1p"] = "counts"
    for rows, block in blocks:
        scale = block.scale
        if block.attention is not None:
            edges.append((rows, block.attention))
        for name in ("mean", "dispersion", "dropout", "latent"):
            part: Tensor | None = getattr(block, name)
            if part is None:
                continue
            if len(rows) == n_spots and bool((rows.diff() == 1).all()):
                whole[name] = part if device is None else part.to(device)
                continue
            if name not in whole:
                whole[name] = torch.empty(n_spots, part.shape[1], dtype=part.dtype, device=device or part.device)
            target = whole[name]
            target[rows.to(target.device)] = part.to(target.device)
    return Denoised(scale=scale, attention=_join(edges, n_spots) if edges else None, history=history, **whole)


def _join(edges: Sequence[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]], n_spots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Put blocks of rows of a CSR matrix together, in order."""
    row = torch.cat([rows.repeat_interleave(crow.diff()) for rows, (crow, _, _) in edges])
    order = row.argsort(stable=True)
    crow = torch.zeros(n_spots + 1, dtype=torch.int64, device=row.device)
    crow[1:] = torch.bincount(row, minlength=n_spots).cumsum(0)
    col, weights = (torch.cat([block[i] for _, block in edges])[order] for i in (1, 2))
    return crow, col, weights
