"""Package-wide defaults."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from stdenoise._base.checks import check_bool, near_match
from stdenoise._base.compute import Compute


@dataclass
class Settings:
    """Defaults used wherever a call does not say otherwise.

    Parameters
    ----------
    device
        Where tensors live: `"auto"` (a CUDA device when there is one, else the CPU) or any torch device string.
    progress
        Show progress bars: `True`, `False`, or `None` for only on a terminal.
    compute
        Memory, devices and threads.
    check_counts
        Refuse fractional and log-transformed values as raw counts. With `False` `stdenoise.tl.denoise` takes fractional values as they are.

    Examples
    --------
    >>> import stdenoise as st
    >>> with st.settings.override(progress=False):
    ...     st.settings.progress
    False
    """

    device: str = "auto"
    progress: bool | None = None
    compute: Compute = Compute()
    check_counts: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Accept only known settings of the right type."""
        names = [f.name for f in fields(self)]
        if name not in names:
            raise AttributeError(f"there is no setting {name!r}; settings are {names}.{near_match(name, names)}")
        if name == "device" and not isinstance(value, str):
            raise TypeError(f"device must be a string such as 'auto', 'cpu' or 'cuda', not {value!r}.")
        if name == "progress":
            _check_progress(value)
        if name == "compute" and not isinstance(value, Compute):
            raise TypeError(f"compute must be a stdenoise.Compute, not {value!r}.")
        if name == "check_counts":
            check_bool(name, value)
        object.__setattr__(self, name, value)

    @contextmanager
    def override(self, **values: Any) -> Iterator[Settings]:
        """Set values for the length of a `with` block."""
        before = {name: getattr(self, name, None) for name in values}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                if hasattr(self, name):
                    setattr(self, name, value)

    def show_progress(self, progress: bool | None) -> bool:
        """Resolve a call's `progress` argument."""
        _check_progress(progress)
        for choice in (progress, self.progress):
            if choice is not None:
                return choice
        return sys.stderr.isatty()


def _check_progress(value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"progress must be True, False or None, not {value!r}.")


settings = Settings()
