"""Doing many pieces of work, each in a process of its own, within a budget of memory."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from stdenoise._base.device import usable_cores
from stdenoise.benchmark import _work
from stdenoise.benchmark._store import disk_full
from stdenoise.benchmark._work import DONE, FAILURE, NO_SPACE, Job

logger = logging.getLogger("stdenoise")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_PAUSE = 0.05
_STOP_SECONDS = 5.0


class Worker:
    """A process that does one piece of work; a fresh one each time, so that its peak memory is that of the work.

    Parameters
    ----------
    job
        What it does.
    folder
        Folder of the benchmark.
    threads
        How many threads it may use.
    """

    def __init__(self, job: Job, folder: Path, threads: int) -> None:
        self.job = job
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", _work.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            # Numeric libraries read the number of threads when they are imported.
            env={**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))},
        )
        request = {"job": job, "folder": str(folder.absolute()), "threads": threads}
        if self.process.stdin is not None:
            try:
                self.process.stdin.write((json.dumps(request) + "\n").encode())
                self.process.stdin.flush()
            except BrokenPipeError:
                logger.debug("a worker ended before it had read its work")

    def poll(self) -> int | None:
        """Return the exit code, or `None` while it works."""
        return self.process.poll()

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.close()

    def close(self) -> str:
        """Release its files, and return the end of what it said on standard error."""
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                logger.debug("a worker ended before it had read its work")
        self.errors.seek(0)
        text = self.errors.read().decode(errors="replace").strip()
        self.errors.close()
        return text.splitlines()[-1] if text else ""


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
    running: list[Worker] = []
    try:
        while waiting or running:
            for job in list(waiting):
                used = sum(estimate(worker.job) for worker in running)
                if len(running) < n_jobs and (budget is None or used + estimate(job) <= budget):
                    waiting.remove(job)
                    running.append(Worker(job, folder, threads))
                    on_change([worker.job["title"] for worker in running], 0)
            ended = [worker for worker in running if worker.poll() is not None]
            for worker in ended:
                running.remove(worker)
                _finish(worker, folder)
            if ended:
                on_change([worker.job["title"] for worker in running], len(ended))
            else:
                time.sleep(_PAUSE)
    finally:
        for worker in running:
            worker.stop()


def _finish(worker: Worker, folder: Path) -> None:
    code, said = worker.poll(), worker.close()
    if code == NO_SPACE:
        raise disk_full(folder)
    if code not in (DONE, FAILURE):
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        likely = ", as it is when memory runs out" if code == -9 else ""
        _work.fail(worker.job, folder, f"its process {how}{likely}{f': {said}' if said else ''}")


def n_cores() -> int:
    """Cores that this process may use, or fewer where `OMP_NUM_THREADS` says so."""
    cores = usable_cores()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) else cores
