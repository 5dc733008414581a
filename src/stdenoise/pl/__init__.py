"""Plots: matplotlib in, axes out."""

from stdenoise.pl._compare import compare
from stdenoise.pl._history import history

__all__ = ["compare", "history"]
