"""How much memory there is, and how much this process has taken."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stdenoise._base.checks import check_number

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def read_memory(memory: str | float) -> float:
    """Read an amount of memory in GB.

    Raises
    ------
    ValueError, TypeError
        It is not a number above 0, with or without a unit.
    """
    value: Any = memory
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)?\s*", memory, flags=re.IGNORECASE)
        if match is None:
            raise ValueError(
                f"memory={memory!r} is not valid; give a number of GB, or a text such as '8 GB' or '500 MB'."
            )
        unit = (match[2] or "GB").upper()
        base = 1024 if "I" in unit else 1000
        value = float(match[1]) * base ** (" KMGT".index(unit[0])) / 1e9
    check_number("memory", value, above=0)
    return float(value)


def free_gb(device: str) -> float:
    """Memory that is free on a device, in GB.

    On the CPU it is what the system can give without swapping, or what is left to the control group of this process (a
    container, a job of a cluster) where that is less.

    Parameters
    ----------
    device
        `"cpu"`, `"cuda"` or `"cuda:<i>"`.

    Raises
    ------
    OSError
        The system does not say.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0] / 1e9
    return min([_system_free(), *_group_free()]) / 1e9


def peak_gb() -> float:
    """Largest resident memory of this process so far, in GB; NaN where the system does not say."""
    try:
        # getrusage would count what a parent held when it started this process.
        status = (_PROC / "self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _system_free() -> float:
    try:
        return int((_PROC / "meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import psutil

        return float(psutil.virtual_memory().available)
    except ImportError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        raise OSError("this system does not say how much memory is free; give it with memory=.") from None


def control_groups(controller: str) -> Iterator[tuple[int, Path]]:
    """Version of Linux' control groups, 1 or 2, and folder, of each group whose limits bind this process."""
    try:
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            version, root = 2, _CGROUPS
        elif controller in controllers.split(","):
            version, root = 1, _CGROUPS / controller
        else:
            continue
        # The limit of a group binds those in it; in a container its own group is at the root, whatever its name.
        group = root / name.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            yield version, folder


def _group_free() -> Iterator[float]:
    """What each control group with a limit leaves to this process, in bytes."""
    files = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    for version, folder in control_groups("memory"):
        *numbers, inactive = files[version]
        try:
            limit, used = (int((folder / file).read_text()) for file in numbers)
            # Pages of files are counted as used, and given back when memory runs short.
            cached = re.search(rf"^{inactive} (\d+)$", (folder / "memory.stat").read_text(), flags=re.MULTILINE)
        except (OSError, ValueError):  # no such group here, or "max": no limit
            continue
        yield max(0, limit - used + (int(cached[1]) if cached else 0))
