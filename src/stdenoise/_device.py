"""Resolution of device names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stdenoise._settings import settings

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> torch.device:
    """Turn `"auto"` or a torch device string into a device that is there.

    `"auto"` stands for `settings.device`, and where that is `"auto"` too, for CUDA when there is a device, else the CPU.
    """
    import torch

    if name == "auto":
        name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    valid = ["auto", "cpu", *(["cuda"] if n_cuda else []), *(f"cuda:{i}" for i in range(n_cuda))]
    if name not in valid:
        why = " (torch sees no CUDA device)" if str(name).startswith("cuda") and n_cuda == 0 else ""
        raise ValueError(f"device={name!r} is not available{why}; choose from {valid}.")
    return torch.device(name)


def started_by_launcher() -> tuple[int, int] | None:
    """Processes per machine and machines, where `torchrun` or `srun` has started this process as one of several."""
    environment = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} <= environment.keys():
        world, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
    # The batch script itself has all but the last of these.
    elif {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_STEP_NUM_TASKS"} <= environment.keys():
        world = int(environment["SLURM_NTASKS"])
        local = world // int(environment["SLURM_NNODES"])
    else:
        return None
    return (local, world // local) if world > 1 else None


def speaks_for_all() -> bool:
    """Whether this process is the only one, or the first of several."""
    return started_by_launcher() is None or os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
