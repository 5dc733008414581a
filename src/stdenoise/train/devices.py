"""Several processes that train one network together, by Lightning Fabric."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from stdenoise._device import started_by_launcher

T = TypeVar("T")


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
    return fabric


def spawn(function: Callable[..., T], *args: Any, device: torch.device, n_devices: int, strategy: str) -> T:
    """Call a function in new processes, one per device, and return what the first of them returns.

    Parameters
    ----------
    function
        Takes Fabric, then the arguments. It and they can be pickled.
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
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
    from torch.multiprocessing.spawn import spawn as start

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        try:
            arguments = (n_devices, _free_port(), result, device, strategy, function, args)
            _wait_for(start(_work, arguments, nprocs=n_devices, join=False))
        except ProcessExitedException as error:
            raise ChildProcessError(f"a process of this training has ended: {error}.") from error
        except ProcessRaisedException as error:
            reason = str(error).strip().rsplit("\n", 1)[-1]
            raise ChildProcessError(f"a process of this training has failed: {reason}") from error
        # Through a file: shared memory ends with the process that made it.
        value: T = pickle.loads(result.read_bytes())
    return value


def _wait_for(context: Any) -> None:
    try:
        while not context.join():
            pass
    except KeyboardInterrupt:
        for process in context.processes:
            process.terminate()
        # They may have something to save.
        for process in context.processes:
            process.join()
        raise


def _work(
    rank: int,
    n_devices: int,
    port: int,
    result: Path,
    device: torch.device,
    strategy: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Be one of several processes, as `torchrun` would start it."""
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(n_devices))
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "stdenoise"}
    if device.type == "cpu":
        # The cores are shared.
        torch.set_num_threads(max(1, torch.get_num_threads() // n_devices))
    value = function(join(device, strategy), *args)
    if rank == 0:
        result.write_bytes(pickle.dumps(value))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
