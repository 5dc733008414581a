"""From what a user says of memory, devices and checkpoints to a run: decided once, before work starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stdenoise._base.compute import Checkpoint, Compute
from stdenoise._base.device import (
    keeping_threads,
    speaks_for_all,
    started_by_launcher,
    warn_of_threads,
)
from stdenoise._base.paths import SCRATCH, check_replaceable, remove_scratch
from stdenoise._base.settings import settings
from stdenoise._io.section import Section
from stdenoise.methods._base import Method
from stdenoise.methods._registry import registered
from stdenoise.spatial.spots import Spots
from stdenoise.tl._plan import Plan, Size, announce, make_plan
from stdenoise.train.devices import join
from stdenoise.train.run import Run


def check_compute(
    compute: Compute | None, checkpoint: Checkpoint | str | Path | None, method: Method
) -> tuple[Compute, Checkpoint | None]:
    """Return what a user says of memory, devices and checkpoints; raise where the method has no use for it.

    What `settings.compute` says beyond the method's abilities is left aside: it is for all methods.
    """
    if not isinstance(compute, Compute | None):
        raise TypeError(f"compute must be a stdenoise.Compute, not {compute!r}.")
    if isinstance(checkpoint, str | Path):
        checkpoint = Checkpoint(Path(checkpoint))
    if not isinstance(checkpoint, Checkpoint | None):
        raise TypeError(f"checkpoint must be a path or a stdenoise.Checkpoint, not {checkpoint!r}.")
    runs = method.info.runs
    useless = [] if compute is None else compute.without_effect(runs)
    if checkpoint is not None and "checkpoint" not in runs:
        useless.append("checkpoint")
    if useless:
        able = {name: _able(name) for name in useless}
        why = "; ".join(f"methods with {name}: {names}" for name, names in able.items())
        what = "a trained network" if method.genes is not None else method.info.name
        raise TypeError(f"{useless} have no effect for {what}; {why}.")
    if compute is None:
        compute = settings.compute
        defaults = Compute()
        compute = replace(compute, **{name: getattr(defaults, name) for name in compute.without_effect(runs)})
    return compute, checkpoint


def _able(name: str) -> list[str]:
    """Names of the methods for which a field of `Compute`, or a checkpoint, has an effect."""
    needed = {"memory": "patches", "precision": "bf16", "strategy": "devices"}.get(name, name)
    return [method for method, cls in registered().items() if needed in cls.info.runs]


@contextmanager
def open_run(
    compute: Compute,
    method: Method,
    section: Section,
    *,
    device: torch.device,
    seed: int,
    progress: bool,
    checkpoint: Checkpoint | None = None,
    arrays: Sequence[str] = (),
    scratch: Path | None = None,
) -> Iterator[Run]:
    """Decide how a method runs: in how many processes, within which memory, with counts in memory or on disk.

    Parameters
    ----------
    compute, checkpoint
        What the user says, checked.
    method, section
        What is run on what.
    device, seed, progress
        Where the method runs, and what is given to it.
    arrays
        Arrays of the result beside the mean.
    scratch
        Folder for counts and results that stay on disk, made where they do; `None` where they may not.
    """
    with ExitStack() as stack:
        stack.enter_context(keeping_threads())
        if compute.threads is not None:
            torch.set_num_threads(compute.threads)
        if device.type == "cpu":
            warn_of_threads()
        run = Run(
            seed=seed,
            progress=progress,
            device=device,
            data_device=device,
            compute=compute,
            saving=checkpoint,
            inspect=True,
        )
        if "devices" in method.info.runs:
            fabric = join(device, compute.strategy)
            if fabric is not None:
                run = replace(run, fabric=fabric, device=fabric.device, progress=progress and fabric.global_rank == 0)
        if "patches" in method.info.runs:
            # What is free differs from process to process: the first one decides for all.
            plan = run.tell(_plan(method, section, run, arrays, may_stay=scratch is not None))
            run = replace(run, max_spots=plan.max_spots, data_device=plan.data_device)
            if plan.streamed and scratch is not None:
                if run.fabric is None and compute.devices > 1:
                    # Fresh processes would be handed a copy of what is mapped from files.
                    raise ValueError(
                        f"devices={compute.devices} does not go with counts that stay on disk; start the processes with "
                        "torchrun, or give more memory."
                    )
                run = replace(run, scratch=stack.enter_context(_scratch_folder(Path(run.tell(str(scratch))), run)))
        yield run


def spots_of(section: Section, run: Run) -> Spots:
    """Return what methods see: in memory, or sorted into the folder of the run, once for all processes."""
    if run.scratch is None:
        return section.spots(run.data_device)
    if run.is_first:
        section.sort(run.scratch)
    run.wait()
    return section.sorted_spots(run.scratch)


def speaks(method: Method) -> bool:
    """Whether this process works: where a method cannot be shared among those that a launcher has started, only the first does."""
    return "devices" in method.info.runs or speaks_for_all()


def _plan(method: Any, section: Section, run: Run, arrays: Sequence[str], *, may_stay: bool) -> Plan:
    size = Size(*section.size)
    device = run.device or torch.device("cpu")
    plan = make_plan(
        method,
        size,
        n_arrays=len({"mean", *arrays} - {"latent"}),
        memory=run.compute.gb,
        device=device,
        n_processes=(started_by_launcher() or (1, 1))[0],
        may_stream=may_stay,
        must_stream=section.stays,
    )
    if section.positions is None and "checkpoint" in method.info.runs:
        announce(method, size, plan, device)
    return plan


@contextmanager
def _scratch_folder(folder: Path, run: Run) -> Iterator[Path]:
    """Make a folder, the same to all processes, and remove it at the end."""
    if run.is_first:
        check_replaceable(folder, SCRATCH)
        if folder.exists():
            # What a killed run has left.
            remove_scratch(folder)
        folder.mkdir()
    run.wait()
    try:
        yield folder
        run.wait()
    finally:
        if run.is_first:
            remove_scratch(folder)
