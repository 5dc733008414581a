"""Several processes that train one network together, by Lightning Fabric."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from stdenoise._base.device import started_by_launcher

T = TypeVar("T")

_START = "from stdenoise.train.devices import work; work()"
# Seconds for the step at hand and what is to be saved, once a process has been told to end.
_PATIENCE = 60


def join(device: torch.device, strategy: str) -> Any:
    """Return Fabric where a launcher has started this process as one of several, connected to the others; else `None`."""
    launched = started_by_launcher()
    if launched is None:
        return None
    from lightning_fabric import Fabric

    local, n_nodes = launched
    fabric = Fabric(
        accelerator="cpu" if device.type == "cpu" else "cuda",
        devices=local,
        num_nodes=n_nodes,
        strategy="ddp" if strategy == "auto" else strategy,
    )
    fabric.launch()
    # Its threads do not survive the end of Python otherwise, and abort the process now and then.
    atexit.register(_leave)
    return fabric


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def spawn(function: Callable[..., T], *args: Any, device: torch.device, n_devices: int, strategy: str) -> T:
    """Call a function in new processes, one per device, and return what the first of them returns.

    Parameters
    ----------
    function
        Takes Fabric, then the arguments. It and they can be pickled, and found by importing a module.
    device
        Its kind decides on which devices.
    n_devices
        Number of processes.
    strategy
        Of Fabric.

    Raises
    ------
    ChildProcessError
        A process has failed or was killed; the others are ended.
    """
    with tempfile.TemporaryDirectory(prefix="stdenoise-") as name:
        folder = Path(name)
        torch.save((device, strategy, function, args), folder / "work")
        environment = os.environ | _environment(device, n_devices)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in map(str, range(n_devices)):
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, name],
                    env=environment | {"RANK": rank, "LOCAL_RANK": rank},
                    # Tells when this process has ended, even if it could not say so.
                    stdin=subprocess.PIPE,
                    # Ctrl-C is for this process alone: it knows what to say.
                    start_new_session=True,
                )
                processes.append(process)
            _wait_for(processes, folder)
        finally:
            _end(processes)
        value: T = torch.load(folder / "result", weights_only=False)
    return value


def work() -> None:
    """Be one of several processes, as `torchrun` would start it: what `spawn` starts."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    try:
        # The tensors are in memory once, for all processes.
        device, strategy, function, args = torch.load(folder / "work", mmap=True, weights_only=False)
        value = function(join(device, strategy), *args)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        (folder / f"error-{rank}").write_text("".join(traceback.format_exception_only(error)).strip())
        raise
    if rank == "0":
        torch.save(value, folder / "result")


def _environment(device: torch.device, n_devices: int) -> dict[str, str]:
    """What all of several processes find in their environment."""
    variables = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(n_devices))
    variables |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    # What this process can import, they can.
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    variables |= {"TORCHELASTIC_RUN_ID": "stdenoise", "PYTHONPATH": path}
    if device.type == "cpu":
        # The cores are shared.
        variables |= {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // n_devices))}
    return variables


def _wait_for(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait for all processes, or for the first that does not end well.

    Once process 0 has ended well, the result is there: the others have `_PATIENCE` seconds to leave, as gloo may not let them.
    """
    whole: float | None = None
    while codes := {rank: code for rank, process in enumerate(processes) if (code := process.poll()) != 0}:
        failed = {rank: code for rank, code in codes.items() if code is not None}
        if failed:
            # Those that were killed have a negative code, and are why others failed.
            rank = min(failed, key=failed.__getitem__)
            errors = sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
            if failed[rank] > 0 and errors:
                raise ChildProcessError(f"a process of this training has failed: {errors[0].read_text()}")
            raise ChildProcessError(f"a process of this training has ended: process {rank} {_reason(failed[rank])}.")
        if 0 not in codes:
            whole = whole or time.monotonic()
            if time.monotonic() - whole > _PATIENCE:
                return
        time.sleep(0.05)


def _reason(code: int) -> str:
    if code > 0:
        return f"terminated with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"terminated with signal {name}" + (", as when memory runs out" if name == "SIGKILL" else "")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs; it may have something to save."""
    try:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """Wait for the other end of the pipe to be closed, by `_end` or with its process."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
