"""Data sets to try things on."""

from stdenoise.datasets._tissue import tissue

__all__ = ["tissue"]
