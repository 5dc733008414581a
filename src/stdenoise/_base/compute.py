"""How work is done, as a user says it: memory, devices, checkpoints. None of it changes a result but for rounding."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

from stdenoise._base.checks import check_bool, check_choice, check_folder, check_number
from stdenoise._base.memory import read_memory

PRECISIONS = ("32-true", "bf16-mixed")
_CAPABILITY = {"memory": "patches", "devices": "devices", "strategy": "devices"}
"""What a method must be able to do for a field to have an effect."""


@dataclass(frozen=True)
class Compute:
    """With what a method is run.

    Parameters
    ----------
    memory
        Memory budget of a network, in GB or as text such as `"6 GB"`; on a GPU, of its own memory. A section that does not fit is
        processed in patches, which does not change the result. 60 % of the free memory if not given.
    devices
        GPUs, or processes on the CPU, that train a network together. Under `torchrun` and `srun` the processes there are work together in
        any case.
    strategy
        Multi-process strategy, passed to Lightning Fabric, for example `"ddp"`.
    precision
        `"32-true"`, or `"bf16-mixed"`: the widest products of DUSTED in bfloat16, for GPUs.
    threads
        Threads of torch on the CPU; those it has if not given.

    Raises
    ------
    ValueError, TypeError
        A value is not valid.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> st.tl.denoise(adata, "dusted", n_epochs=5, compute=st.Compute(memory="4 GB"))
    """

    memory: str | float | None = None
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is not valid."""
        if self.memory is not None:
            object.__setattr__(self, "memory", read_memory(self.memory))
        check_number("devices", self.devices, minimum=1, integer=True)
        if not isinstance(self.strategy, str):
            raise TypeError(f"strategy must be a name, not {self.strategy!r}.")
        check_choice("precision", self.precision, PRECISIONS)
        if self.threads is not None:
            check_number("threads", self.threads, minimum=1, integer=True)

    @property
    def gb(self) -> float | None:
        """Memory budget in GB."""
        return None if self.memory is None else float(self.memory)

    def without_effect(self, runs: Collection[str]) -> list[str]:
        """Names of the fields that were set, and for which a method can do too little."""
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        lacking = [name for name in given if _CAPABILITY.get(name, "") not in {*runs, ""}]
        return lacking + (["precision"] if self.precision == "bf16-mixed" and "bf16" not in runs else [])


@dataclass(frozen=True)
class Checkpoint:
    """Where a training is saved on its way.

    Parameters
    ----------
    path
        The file.
    minutes
        Time between two savings. An interruption saves too.
    resume
        Resume from the file if it exists; otherwise start from scratch.

    Raises
    ------
    ValueError, TypeError
        A value is not valid.
    FileNotFoundError
        There is no folder for the file.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.Checkpoint("dusted.ckpt", resume=True).minutes
    10.0
    """

    path: Path
    minutes: float = 10.0
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuse what is not valid."""
        path = Path(self.path)
        object.__setattr__(self, "path", path)
        check_number("minutes", self.minutes, minimum=0)
        check_bool("resume", self.resume)
        check_folder("checkpoint", path)
