"""Randomness is an argument: seeds become generators, and nothing seeds a global one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stdenoise._base.checks import check_number

if TYPE_CHECKING:
    import torch


def check_seed(seed: int) -> None:
    """Raise unless the seed is an integer that torch and numpy both take."""
    check_number("seed", seed, minimum=0, integer=True)
    if seed >= 2**63:
        raise ValueError(f"seed must be an integer below 2**63, not {seed!r}.")


def torch_generator(seed: int) -> torch.Generator:
    """Make a CPU generator; weights are drawn on the CPU, so that every device starts from the same ones."""
    import torch

    return torch.Generator().manual_seed(int(seed))
