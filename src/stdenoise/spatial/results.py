"""What methods return, and how blocks of it are put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

ARRAYS = ("mean", "dispersion", "dropout", "latent")


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


class Collector:
    """Puts blocks of spots together.

    Parameters
    ----------
    n_spots
        Number of spots.
    device
        Where the result goes; where the first block is, if not given.
    """

    def __init__(self, n_spots: int, device: torch.device | None = None) -> None:
        self._n_spots, self._device = n_spots, device
        self._whole: dict[str, Tensor] = {}
        self._edges: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = []
        self._scale: Literal["counts", "log1p"] = "counts"

    def add(self, rows: Tensor, block: Denoised) -> None:
        """Add the results of spots at these positions; the attention of a block has columns for all spots there are."""
        self._scale = block.scale
        if block.attention is not None:
            self._edges.append((rows, block.attention))
        is_all = len(rows) == self._n_spots and bool((rows.diff() == 1).all())
        for name in ARRAYS:
            part: Tensor | None = getattr(block, name)
            if part is None:
                continue
            if is_all:
                self._whole[name] = part if self._device is None else part.to(self._device)
                continue
            if name not in self._whole:
                shape = (self._n_spots, part.shape[1])
                self._whole[name] = torch.empty(shape, dtype=part.dtype, device=self._device or part.device)
            target = self._whole[name]
            target[rows.to(target.device)] = part.to(target.device)

    def result(self, history: Mapping[str, Sequence[float]]) -> Denoised:
        """Return the whole, once each spot has been added."""
        attention = _join(self._edges, self._n_spots) if self._edges else None
        return Denoised(scale=self._scale, attention=attention, history=history, **self._whole)


def collect(
    blocks: Iterable[tuple[Tensor, Denoised]],
    n_spots: int,
    report: Mapping[str, Any],
    device: torch.device | None = None,
) -> Denoised:
    """Put blocks together, with the history that the report of the run has once all of them were made."""
    whole = Collector(n_spots, device)
    for rows, block in blocks:
        whole.add(rows, block)
    return whole.result(report.get("history", {}))


def _join(edges: Sequence[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]], n_spots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Put blocks of rows of a CSR matrix together, in order."""
    row = torch.cat([rows.repeat_interleave(crow.diff()) for rows, (crow, _, _) in edges])
    order = row.argsort(stable=True)
    crow = torch.zeros(n_spots + 1, dtype=torch.int64, device=row.device)
    crow[1:] = torch.bincount(row, minlength=n_spots).cumsum(0)
    col, weights = (torch.cat([block[i] for _, block in edges])[order] for i in (1, 2))
    return crow, col, weights
