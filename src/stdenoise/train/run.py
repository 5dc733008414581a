"""How a training runs, apart from what it computes: devices, memory, precision, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from stdenoise.train.checkpoint import Checkpoint

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """Circumstances of a training; none of them changes its result but for rounding.

    Parameters
    ----------
    seed
        Source of all randomness.
    progress
        Show a progress bar on standard error.
    device
        Where the network is; that of the data if not given.
    max_spots
        Spots that are worked on at a time, at most.
    precision
        `"32-true"`, or `"bf16-mixed"`: the products with the widest weights in bfloat16.
    checkpoint
        Where the training is saved on its way.
    fabric
        Lightning Fabric, launched, where several processes work together.
    """

    seed: int = 0
    progress: bool = False
    device: torch.device | None = None
    max_spots: int | None = None
    precision: str = "32-true"
    checkpoint: Checkpoint | None = None
    fabric: Any = None

    @property
    def share(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        return (0, 1) if self.fabric is None else (self.fabric.global_rank, self.fabric.world_size)

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.share[0] == 0

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.share[1] > 1:
            self.fabric.barrier()

    def tell(self, value: T) -> T:
        """Return what the first process has as value."""
        if self.share[1] == 1:
            return value
        told: T = self.fabric.broadcast(value)
        return told

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.share[1] == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        try:
            flat = self.fabric.all_reduce(flat, reduce_op="sum")
        except RuntimeError as error:
            saved = (
                ""
                if self.checkpoint is None
                else f" {str(self.checkpoint.path)!r} holds what was done, if it was saved before;"
            )
            raise ConnectionError(
                f"another process of this run has ended or does not answer;{saved} run it again with resume to go on. ({error})"
            ) from error
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
