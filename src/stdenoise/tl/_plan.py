"""How a method that works in patches is run within a given memory, decided before work starts."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from stdenoise._base.memory import free_gb
from stdenoise.methods._base import Method
from stdenoise.methods._network import Network

logger = logging.getLogger("stdenoise")

MANY_GENES = 5000
"""Above so many, all genes are a choice that is worth a word, where there is no GPU."""
# Of the speed of a dense product, what a training reaches; and an optimiser's step for one weight, which waits for the memory.
_EFFICIENCY, _UPDATE_SECONDS = 0.4, 8e-9
_DEFAULT_SHARE = 0.6
# Python with its libraries.
_BASE_GB = 0.5
# Below the first a patch is nothing but halo; rather than below the second, counts and results stay on disk.
_LEAST_SPOTS, _FEW_SPOTS = 64, 1024
_RADIUS = 4.0
"""Of the least patch, in hops: with a halo of so many it has four times the spots."""


@dataclass(frozen=True)
class Size:
    """Extent of a data set.

    Parameters
    ----------
    n_spots, n_genes
        Spots, and modelled genes.
    n_counts
        Non-zero counts.
    """

    n_spots: int
    n_genes: int
    n_counts: int


@dataclass(frozen=True)
class Plan:
    """How a network is run.

    Parameters
    ----------
    max_spots
        Spots that are worked on at a time; `None` for all of them.
    streamed
        Whether counts and results stay on disk.
    data_device
        Where the counts are.
    parts
        Estimated memory by part, in GB.
    budget
        Memory that may be used, in GB.
    """

    max_spots: int | None
    streamed: bool
    data_device: torch.device
    parts: dict[str, float]
    budget: float

    def __str__(self) -> str:
        """Say how, and what it takes."""
        how = "all spots at a time" if self.max_spots is None else f"{self.max_spots} spots at a time"
        where = "counts and results on disk" if self.streamed else f"counts on {self.data_device}"
        return f"{how}, {where}; {_list(self.parts)} of {self.budget:.2f} GB"


def make_plan(
    denoiser: Method,
    size: Size,
    *,
    n_arrays: int,
    memory: float | None,
    device: torch.device,
    n_processes: int = 1,
    may_stream: bool,
    must_stream: bool = False,
) -> Plan:
    """Choose how to run a network.

    Parameters
    ----------
    denoiser
        The network.
    size
        Extent of the data.
    n_arrays
        Arrays of the result that have the size of the data.
    memory
        GB that a process may use, on a GPU of its own memory; 60 % of what is free if not given.
    device
        Where the network is.
    n_processes
        Processes on this machine, which share what is free.
    may_stream, must_stream
        Whether counts and results can, or have to, stay on disk.

    Raises
    ------
    MemoryError
        Nothing fits; with the estimates.
    """
    fixed, per_spot = denoiser.working_memory(size.n_genes, size.n_counts / size.n_spots)
    on_cpu = device.type == "cpu"
    host = free_gb("cpu") * _DEFAULT_SHARE / n_processes if memory is None or not on_cpu else memory
    budget = host if on_cpu else (memory if memory is not None else free_gb(str(device)) * _DEFAULT_SHARE)
    counts = 8 * size.n_counts / 1e9
    # What every spot takes: coordinates, edges, partitions.
    around = 600 * size.n_spots / 1e9
    results = 4 * n_arrays * size.n_spots * size.n_genes / 1e9
    network = {"network": fixed}
    resident = {"process": _BASE_GB, "spots": around}
    # The reader of an in-memory section holds its own copy of the counts.
    loaded = {**resident, "counts": 2 * counts, "results": results}
    # Spots of a compact patch with its halo, over those without it, at the least patch and far above it.
    halo = (1 + denoiser.n_hops / _RADIUS) ** 2
    least = {"work": per_spot * min(size.n_spots, _LEAST_SPOTS * halo)}
    short, limit, place = {**loaded, **network, **least}, host, "cpu"
    for streamed in (False, True):
        if (streamed and not may_stream) or (not streamed and must_stream):
            continue
        # On disk, one block of rows at a time.
        data = {**resident, "counts": min(counts, 0.25), "results": min(results, 0.1)} if streamed else loaded
        if sum(data.values()) > host:
            short, limit, place = ({**data, **network, **least} if on_cpu else data), host, "cpu"
            continue
        if on_cpu:
            parts, at_hand = {**data, **network}, budget - sum(data.values()) - fixed
        else:
            near = {"counts": counts} if not streamed and counts + fixed < budget / 2 else {}
            parts, at_hand = {**near, **network}, budget - sum(near.values()) - fixed
        data_device = device if not streamed and (on_cpu or "counts" in parts) else torch.device("cpu")
        if at_hand >= per_spot * size.n_spots:
            return _chosen(None, streamed, data_device, {**parts, "work": per_spot * size.n_spots}, budget)
        # Compact patches: with each spot less, the halo weighs more.
        most = int(at_hand / per_spot / halo) if per_spot else 0
        if most >= (_FEW_SPOTS if may_stream and not streamed else _LEAST_SPOTS):
            most = min(most, size.n_spots)
            return _chosen(most, streamed, data_device, {**parts, "work": per_spot * most * halo}, budget)
        short, limit, place = {**parts, **least}, budget, str(device)
    more = "more memory, or " if place == str(device) else ""
    advice = "" if may_stream or place != "cpu" else " With out= and a .zarr path, counts and results stay on disk."
    raise MemoryError(
        f"{denoiser.info.name} on {size.n_spots} spots x {size.n_genes} genes needs about {sum(short.values()):.2f} GB on {place} "
        f"({_list(short)}), but may use {limit:.2f} GB; give {more}fewer genes.{advice}"
    )


def announce(denoiser: Network, size: Size, plan: Plan, device: torch.device) -> None:
    """Say what all genes cost on a CPU, where they are many: before the work, and where a user sees it."""
    if size.n_genes <= MANY_GENES or device.type != "cpu":
        return
    work = denoiser.training_work(size.n_spots, size.n_genes, size.n_counts)
    duration = ""
    if work is not None:
        flops, updates = work
        seconds = flops / (_EFFICIENCY * _flops_per_second()) + _UPDATE_SECONDS * updates
        duration = f" and, very roughly, {_minutes(seconds)}"
    logger.warning(
        "%s: all %d genes on the CPU take about %.1f GB%s. Time and memory follow the number of genes: genes='highly_variable', after "
        "sc.pp.highly_variable_genes, models fewer.",
        denoiser.info.name,
        size.n_genes,
        sum(plan.parts.values()),
        duration,
    )


def _flops_per_second() -> float:
    """Speed of a dense product of about the shape that networks have, measured."""
    left, right = torch.ones(512, 512), torch.ones(512, 2048)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * left.numel() * right.shape[1] / min(seconds)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _chosen(
    max_spots: int | None, streamed: bool, data_device: torch.device, parts: dict[str, float], budget: float
) -> Plan:
    plan = Plan(max_spots, streamed, data_device, parts, budget)
    logger.info("plan: %s", plan)
    return plan


def _list(parts: dict[str, float]) -> str:
    return " + ".join(f"{name} {gb:.2f}" for name, gb in parts.items())
