"""Resolution of device names."""

from __future__ import annotations

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
