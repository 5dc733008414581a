"""Sprod: smoothing over a learned graph of spots that are near in space and alike in features."""

from stdenoise.methods.sprod.config import SprodConfig
from stdenoise.methods.sprod.method import Sprod

__all__ = ["Sprod", "SprodConfig"]
