"""What methods read of a section beside its counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Inputs:
    """What one or several methods read, of `"graph"`, `"coordinates"` and `"features"`.

    Parameters
    ----------
    needed, read
        What at least one of them needs, and what at least one reads where there is any.
    names
        The methods.
    readers
        Gives the names of all methods that read something.
    """

    needed: frozenset[str]
    read: frozenset[str]
    names: tuple[str, ...]
    readers: Callable[[str], Sequence[str]]

    def why_not(self, what: str) -> str:
        """Say which methods do not read it, and which do."""
        reads = "reads" if len(self.names) == 1 else "read"
        return f"for {', '.join(self.names)}, which {reads} no {what}; methods that do: {list(self.readers(what))}"
