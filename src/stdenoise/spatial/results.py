"""What methods return, and how blocks of it are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

ARRAYS = ("mean", "dispersion", "dropout", "latent")

_BLOCK_ENTRIES = 2**22
"""Entries of a block of rows of a matrix that is kept as factors: 16 MB in single precision."""


@dataclass(frozen=True)
class Factors:
    """A matrix of spots x genes that is kept as a product, and expanded where its rows are needed.

    Parameters
    ----------
    left
        Shape `(n_spots, n_factors)`.
    right
        Shape `(n_factors, n_genes)`.
    row_scale
        Factor of each row, shape `(n_spots,)`; 1 if not given.
    finish
        What is done to rows of the product, in place or not, given these rows and their positions, before they are float32.
    """

    left: Tensor
    right: Tensor
    row_scale: Tensor | None = None
    finish: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of spots and of genes."""
        return len(self.left), self.right.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.left.device

    def __len__(self) -> int:
        """Number of spots."""
        return len(self.left)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Expand some rows, shape `(n_rows, n_genes)`, float32."""
        positions = torch.arange(len(self), device=self.device)[rows]
        left = self.left[rows]
        if self.row_scale is not None:
            left = self.row_scale[rows, None] * left
        product = left @ self.right
        return (product if self.finish is None else self.finish(product, positions)).float()

    def then(self, change: Callable[[Tensor, Tensor], Tensor]) -> Factors:
        """Return the same matrix, with something more done to the rows that are expanded."""
        before = self.finish

        def both(product: Tensor, positions: Tensor) -> Tensor:
            return change(product if before is None else before(product, positions).float(), positions)

        return replace(self, finish=both)


Array: TypeAlias = Tensor | Factors
"""Values of spots x genes. Both kinds have a shape and give rows by a slice or by positions."""


def row_blocks(array: Array) -> Iterator[tuple[slice, Tensor]]:
    """Rows of an array, a block at a time; of a tensor all at once, as they are there already."""
    n_rows, n_columns = array.shape
    height = n_rows if isinstance(array, Tensor) else max(1, _BLOCK_ENTRIES // max(1, n_columns))
    for start in range(0, n_rows, max(1, height)):
        rows = slice(start, min(start + height, n_rows))
        yield rows, array[rows]


@dataclass(frozen=True)
class Block:
    """Results of some spots; of all of them, what a method returns.

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

    mean: Array
    scale: Literal["counts", "log1p"]
    dispersion: Tensor | None = None
    dropout: Tensor | None = None
    latent: Tensor | None = None
    attention: tuple[Tensor, Tensor, Tensor] | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def expected(self, per_unit: Tensor | None = None) -> Array:
        """Expected counts, shape `(n_spots, n_genes)`.

        Zero inflation lowers the expectation: it is mean x (1 - dropout).

        Parameters
        ----------
        per_unit
            Counts of a spot that stand for one of its values before the logarithm, shape `(n_spots,)`: what turns means on the `log1p`
            scale back into counts.
        """
        if self.scale == "counts":
            if self.dropout is None:
                return self.mean
            return self.mean[:] * (1 - self.dropout)
        if per_unit is None:
            raise ValueError("the logarithm of normalised counts has no depth of its own; give it.")
        mean = self.mean
        factor = per_unit.to(dtype=torch.float32, device=mean.device)[:, None]
        if isinstance(mean, Factors):
            return mean.then(lambda values, rows: values.clamp(min=0).expm1() * factor[rows])
        return mean.clamp(min=0).expm1() * factor.to(mean.dtype)


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
        self._whole: dict[str, Any] = {}
        self._edges: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = []
        self._scale: Literal["counts", "log1p"] = "counts"

    def add(self, rows: Tensor, block: Block) -> None:
        """Add the results of spots at these positions; the attention of a block has columns for all spots there are."""
        self._scale = block.scale
        if block.attention is not None:
            self._edges.append((rows, block.attention))
        is_all = len(rows) == self._n_spots and bool((rows.diff() == 1).all())
        for name in ARRAYS:
            part: Array | None = getattr(block, name)
            if part is None:
                continue
            if is_all:
                is_there = self._device is None or part.device == self._device
                self._whole[name] = part if is_there or isinstance(part, Factors) else part.to(self._device)
                continue
            for where, values in row_blocks(part):
                if name not in self._whole:
                    shape = (self._n_spots, part.shape[1])
                    self._whole[name] = torch.empty(shape, dtype=values.dtype, device=self._device or values.device)
                target = self._whole[name]
                target[rows[where].to(target.device)] = values.to(target.device)

    def result(self, history: Mapping[str, Sequence[float]]) -> Block:
        """Return the whole, once each spot has been added."""
        attention = _join(self._edges, self._n_spots) if self._edges else None
        return Block(scale=self._scale, attention=attention, history=history, **self._whole)


def collect(
    blocks: Iterable[tuple[Tensor, Block]],
    n_spots: int,
    report: Mapping[str, Any],
    device: torch.device | None = None,
) -> Block:
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
