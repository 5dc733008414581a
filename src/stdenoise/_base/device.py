"""Devices by name, and the processes and threads that compute on them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stdenoise._base.memory import control_groups
from stdenoise._base.settings import settings

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("stdenoise")


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


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, or what control groups allow (a container, a job of a cluster)."""
    # Neither Windows nor macOS has an affinity here.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for version, folder in control_groups("cpu"):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            share = int(quota) / int(period)
        except (OSError, ValueError):  # no such group here, or "max": no limit
            continue
        # Version 1 says -1 where there is no limit.
        if share > 0:
            cores = min(cores, math.ceil(share))
    return cores


@contextmanager
def keeping_threads() -> Iterator[None]:
    """Leave torch as many threads as it had, whatever a library does that is called meanwhile.

    The first parallel function of numba that a process calls starts numba's threads, and sets the number of threads of the
    OpenMP library that it shares with torch to that of the cores. With `OMP_NUM_THREADS=1` on two cores, torch had two threads
    after scanpy's `highly_variable_genes(flavor="seurat_v3")`, `normalize_total`, `scale`, `neighbors` or `morans_i`, and still
    one after scikit-learn's decompositions, mixtures, neighbours and scores, and scipy's trees: these need no guard. R's
    mclust and scvi-tools were not measured.
    """
    import torch

    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def warn_of_threads() -> None:
    """Warn when torch has more threads than this process has cores: they wait for each other."""
    import torch

    n_threads, cores = torch.get_num_threads(), usable_cores()
    if n_threads > cores:
        logger.warning(
            "torch computes in %d threads, but this process may use %d cores, which takes several times as long; "
            "call torch.set_num_threads(%d), or set OMP_NUM_THREADS=%d before Python starts",
            n_threads,
            *[cores] * 3,
        )


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
