"""How a method runs, apart from what it computes: devices, memory, precision, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from stdenoise._base.compute import Checkpoint as Saving
from stdenoise._base.compute import Compute
from stdenoise.train.checkpoint import Checkpoint

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """Circumstances of a run; none of them changes its result but for rounding.

    Parameters
    ----------
    seed
        Source of all randomness.
    progress
        Show a progress bar on standard error.
    device
        Where the network is; that of the data if not given.
    data_device
        Where the counts are.
    max_spots
        Spots that are worked on at a time, at most.
    scratch
        Folder for counts and results that stay on disk; `None` where they are in memory.
    compute, saving
        What the user said of devices and checkpoints.
    checkpoint
        Where the training is saved on its way.
    fabric
        Lightning Fabric, launched, where several processes work together.
    inspect
        Look at the result of a network, and warn where it may have lost the tissue.
    report
        What a method has to say of a run beside its result: history, how the training ended, what the look at the result found.
    """

    seed: int = 0
    progress: bool = False
    device: torch.device | None = None
    data_device: torch.device = torch.device("cpu")
    max_spots: int | None = None
    scratch: Path | None = None
    compute: Compute = field(default_factory=Compute)
    saving: Saving | None = None
    checkpoint: Checkpoint | None = None
    fabric: Any = None
    inspect: bool = False
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """`"32-true"`, or `"bf16-mixed"`: the products with the widest weights in bfloat16."""
        return self.compute.precision

    @property
    def predicting(self) -> Run:
        """Of the prediction: in memory each process has the whole section, and predicts all of it."""
        return self if self.scratch is not None else replace(self, fabric=None)

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
