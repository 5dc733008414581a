"""What a training step sees of a data set: mini-batches, blocks of a large section and shares of several devices are all patches.

A step has a batch of spots. It is cut in space into as many patches as devices and memory ask for, each with its halo; the losses of
the patches add up to the loss of the step, and so do their gradients. Neither the number of devices nor the memory changes a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from stdenoise.spatial.graph import SpatialGraph, select_rows
from stdenoise.spatial.spots import Spots
from stdenoise.spatial.tiles import Tiler, order_by_graph, partition
from stdenoise.train.held_out import HeldOut

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Patch:
    """Some spots of a data set, on the device that computes.

    Parameters
    ----------
    spots
        Positions in the data set: the core first, then the halo; shape `(n_patch,)`.
    n_core
        Size of the core.
    counts
        Counts, CSR, shape `(n_patch, n_genes)`.
    size_factors
        Shape `(n_patch,)`.
    scored
        Positions within the patch of those core spots that have counts, shape `(n_scored,)`.
    n_scored
        Scored spots of the whole step, of which this patch may be a part.
    graph
        Edges among the spots, with a self loop on each; `None` for methods without a graph.
    """

    spots: Tensor
    n_core: int
    counts: Tensor
    size_factors: Tensor
    scored: Tensor
    n_scored: int
    graph: SpatialGraph | None

    def core_edges(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In-edges of the core: row pointers, sources as positions in the data set, and their part of edge weights."""
        if self.graph is None:
            raise ValueError("there is no graph.")
        crow = self.graph.crow[: self.n_core + 1]
        return crow, self.spots[self.graph.col[: int(crow[-1])].long()], weights[: int(crow[-1])]


class Patches:
    """Cuts a data set into patches.

    Parameters
    ----------
    spots
        The data set.
    n_hops
        How many hops a network sees; 0 for one that takes each spot on its own.
    device
        Where patches go; the device of the spots if not given.
    max_spots
        Spots of a patch, halo not counted, at most; all of them if not given.
    share
        Rank of this process and number of processes: each gets its part of every step.
    """

    def __init__(
        self,
        spots: Spots,
        *,
        n_hops: int = 0,
        device: torch.device | None = None,
        max_spots: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.spots = spots
        self.device = device or spots.counts.device
        self.n_spots = len(spots.size_factors)
        self.max_spots = min(max_spots or self.n_spots, self.n_spots)
        self.rank, self.world = share
        self._n_hops = n_hops
        self._tiler = Tiler(spots.graph, n_hops) if n_hops else None
        self._held_out: HeldOut | None = None
        self._libraries = None if spots.libraries is None else spots.libraries.cpu().numpy()
        self._nonempty = spots.nonempty.cpu().numpy()

    @cached_property
    def _coordinates(self) -> np.ndarray:
        """Where the spots are, or an order that keeps neighbours together."""
        if self.spots.has("coordinates"):
            return self.spots.coordinates.cpu().numpy()
        if self.spots.has("graph"):
            return order_by_graph(self.spots.graph)
        return np.arange(self.n_spots, dtype=np.float64)[:, None]

    @property
    def is_whole(self) -> bool:
        """Whether one patch holds all spots."""
        return self.max_spots >= self.n_spots and self.world == 1

    def without(self, held_out: HeldOut | None) -> Patches:
        """Return the same data set, less the held-out molecules."""
        other = object.__new__(type(self))
        vars(other).update(vars(self), _held_out=held_out)
        return other

    def steps(
        self,
        make: Callable[[Patch], Batch],
        batch_size: int | None,
        generator: torch.Generator,
        skip: int = 0,
        n_passes: int = 1,
    ) -> Iterator[list[Batch]]:
        """Pass over the data set, in random patches.

        Parameters
        ----------
        make
            Turns a patch into what a module takes.
        batch_size
            Spots per step, at most; all of them if not given.
        generator
            Source of the partition and of the order of the steps.
        skip
            Steps to leave out, at the beginning.
        n_passes
            Passes, each with patches of its own.

        Yields
        ------
        The batches of a step whose losses add up; this process's part of them, which may be none.
        """
        for _ in range(n_passes):
            if batch_size is None or batch_size >= self.n_spots:
                cores = [np.arange(self.n_spots)]
            else:
                rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
                cores = self._partition(batch_size, rng)
                rng.shuffle(cores)
            # Where all spots are empty there is no step, and no part of one.
            scored = [(core, n) for core in cores if (n := int(self._nonempty[core].sum()))]
            for core, n_scored in scored[skip:]:
                parts = [part for part in self._parts(core) if self._nonempty[part].any()]
                yield [make(self.patch(part, n_scored)) for part in parts]
            skip = max(0, skip - len(scored))

    def n_steps(self, batch_size: int | None) -> int:
        """Steps of a pass."""
        return 1 if batch_size is None else len(self._partition(batch_size))

    def sample(self, size: int, share: float, most: int, generator: torch.Generator) -> list[Tensor]:
        """Draw parts of this size, always from the same partition: a share of the spots, but not more than a number of them.

        At least one part; empty spots are left out.
        """
        parts = [part for part in self._partition(size) if self._nonempty[part].any()]
        n_parts = max(1, min(round(share * len(parts)), most // size))
        drawn = torch.randperm(len(parts), generator=generator)[:n_parts].tolist()
        return [torch.from_numpy(parts[i][self._nonempty[parts[i]]]) for i in sorted(drawn)]

    def cover(self) -> Iterator[Patch]:
        """Patches whose cores hold each spot once, always the same; this process's share of them."""
        parts = self._partition(-(-self.n_spots // self.world) if self.max_spots == self.n_spots else self.max_spots)
        for part in parts[self.rank :: self.world]:
            yield self.patch(part, int(self._nonempty.sum()))

    def row_blocks(self, entries: int = 2**24) -> Iterator[Tensor]:
        """Counts of all spots, as CSR tensors of consecutive rows with about this many entries."""
        counts = self.spots.counts
        height = max(1, entries * self.n_spots // max(1, len(counts.values())))
        for rows in torch.arange(self.n_spots, device=counts.device).split(height):
            yield self._rows(rows)

    def patch(self, core: np.ndarray, n_scored: int) -> Patch:
        """Return the patch around core spots, given by their positions, ascending."""
        tile = None if self._tiler is None else self._tiler.tile(core)
        positions = torch.from_numpy(core) if tile is None else tile.spots
        counts = self._rows(positions.to(self.spots.counts.device))
        size_factors = self.spots.size_factors[positions.to(self.spots.size_factors.device)]
        if self._held_out is not None:
            size_factors = self._held_out.thin_size_factors(size_factors, positions)
        return Patch(
            spots=positions.to(self.device),
            n_core=len(core),
            counts=counts.to(self.device),
            size_factors=size_factors.to(self.device),
            scored=torch.from_numpy(np.flatnonzero(self._nonempty[core])).to(self.device),
            n_scored=n_scored,
            graph=None if tile is None else tile.graph.to(self.device),
        )

    def _rows(self, positions: Tensor) -> Tensor:
        counts = self.spots.counts
        # All spots in another order are not the whole: a tile has its core first.
        is_whole = len(positions) == self.n_spots and bool((positions.diff() > 0).all())
        rows = counts if is_whole else select_rows(counts, positions)
        return rows if self._held_out is None else self._held_out.thin_counts(rows, positions)

    def _partition(self, size: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        if size >= self.n_spots:
            return [np.arange(self.n_spots)]
        return partition(self._coordinates, size, libraries=self._libraries, rng=rng)

    def _parts(self, core: np.ndarray) -> list[np.ndarray]:
        """Cut the core of a step among devices, and each device's part to the memory there is."""
        if self.world > 1:
            size = -(-len(core) // self.world)
            mine = self._cut(core, size)[self.rank : self.rank + 1]
        else:
            mine = [core]
        return [part for one in mine for part in self._cut(one, self.max_spots)]

    def _cut(self, core: np.ndarray, size: int) -> list[np.ndarray]:
        if len(core) <= size:
            return [core]
        return [core[part] for part in partition(self._coordinates[core], size)]


class Feed(Generic[Batch]):
    """The steps of an epoch, for the training loop; of a single whole batch, the same one each time.

    Parameters
    ----------
    data
        The data set; may be replaced between two epochs.
    make
        Turns a patch into what a module takes.
    batch_size
        Spots per step, at most; all of them if not given.
    generator
        Source of the partitions.
    least_steps
        Steps of an epoch, at least: where a pass has fewer, it is several passes.
    """

    def __init__(
        self,
        data: Patches,
        make: Callable[[Patch], Batch],
        batch_size: int | None,
        generator: torch.Generator,
        *,
        least_steps: int = 1,
    ) -> None:
        self.data, self.make, self.batch_size, self.generator = data, make, batch_size, generator
        n_steps = data.n_steps(batch_size)
        self._n_passes = max(1, round(least_steps / n_steps))
        self.n_steps = n_steps * self._n_passes
        self._whole: tuple[Patches, list[Batch]] | None = None

    def __call__(self, skip: int) -> Iterator[list[Batch]]:
        """Steps of the next epoch, without the first ones."""
        if self.data.is_whole and (self.batch_size is None or self.batch_size >= self.data.n_spots):
            if self._whole is None or self._whole[0] is not self.data:
                self._whole = self.data, next(self._steps(0))
            return iter(([self._whole[1]] * self._n_passes)[skip:])
        return self._steps(skip)

    def _steps(self, skip: int) -> Iterator[list[Batch]]:
        return self.data.steps(self.make, self.batch_size, self.generator, skip, self._n_passes)
