"""Data sets: simulated sections, whose truth is known, and public ones."""

from stdenoise.datasets._load import load, registry
from stdenoise.datasets._simulate import simulate, simulated_benchmark, simulated_names
from stdenoise.datasets._tissue import tissue

__all__ = ["load", "registry", "simulate", "simulated_benchmark", "simulated_names", "tissue"]
