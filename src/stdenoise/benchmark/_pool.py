"""Doing many pieces of work, each in a process of its own, within a budget of memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

import torch
from loky import ProcessPoolExecutor
from loky.process_executor import BrokenProcessPool

from stdenoise._base.device import usable_cores
from stdenoise.benchmark import _work
from stdenoise.benchmark._work import Job

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_PAUSE = 0.5
"""Seconds between two looks at whether the parent is still there."""


def do_all(
    jobs: Iterable[Job],
    folder: Path,
    *,
    n_jobs: int,
    budget: float | None,
    estimate: Callable[[Job], float],
    on_change: Callable[[list[str], int], None],
) -> None:
    """Do every piece of work; one that fails, or whose process dies, is recorded and does not stop the others.

    Parameters
    ----------
    jobs
        What to do, in this order as far as memory allows.
    folder
        Folder of the benchmark.
    n_jobs
        Processes at a time; 0 does everything in this process.
    budget
        The estimates of what runs at a time sum up to at most this, in GB.
    estimate
        Memory of a piece of work, in GB.
    on_change
        Called with the titles of what runs and the number of pieces that ended since the last call.

    Raises
    ------
    DiskFull
        There is no space left; what runs is ended.
    """
    waiting = list(jobs)
    if n_jobs == 0:
        for job in waiting:
            on_change([job["title"]], 0)
            _work.perform(job, folder, isolated=False)
            on_change([], 1)
        return
    threads = max(1, n_cores() // n_jobs)
    running: dict[Future[None], tuple[Job, ProcessPoolExecutor]] = {}

    def titles() -> list[str]:
        return [job["title"] for job, _ in running.values()]

    try:
        while waiting or running:
            for job in list(waiting):
                used = sum(estimate(other) for other, _ in running.values())
                if len(running) < n_jobs and (budget is None or used + estimate(job) <= budget):
                    waiting.remove(job)
                    # A fresh process each time, so that its peak memory is that of the work. Numeric libraries read the number of
                    # threads when they are imported.
                    executor = ProcessPoolExecutor(1, env=dict.fromkeys(_THREAD_VARIABLES, str(threads)))
                    running[executor.submit(_perform, job, folder.absolute(), threads, os.getpid())] = job, executor
                    on_change(titles(), 0)
            ended = wait(running, return_when=FIRST_COMPLETED).done
            for future in ended:
                job, executor = running.pop(future)
                executor.shutdown()
                try:
                    future.result()
                except BrokenProcessPool as error:
                    _work.fail(job, folder, f"its process died: {' '.join(str(error).split())}")
            on_change(titles(), len(ended))
    finally:
        for _, executor in running.values():
            executor.shutdown(kill_workers=True)


def _perform(job: Job, folder: Path, threads: int, parent: int) -> None:
    """Do a piece of work, in a process of its own."""
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    _work.perform(job, folder, isolated=True)


def _exit_with(parent: int) -> None:
    """End when the process that started this one is gone, however it went: nobody waits for the work any more."""
    while os.getppid() == parent:
        time.sleep(_PAUSE)
    os._exit(1)


def n_cores() -> int:
    """Cores that this process may use, or fewer where `OMP_NUM_THREADS` says so."""
    cores = usable_cores()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) else cores
