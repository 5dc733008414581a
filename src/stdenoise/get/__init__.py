"""Results, and inputs, as other objects."""

from stdenoise.get._denoised import denoised
from stdenoise.get._pyg import pyg

__all__ = ["denoised", "pyg"]
