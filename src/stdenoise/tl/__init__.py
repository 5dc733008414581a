"""Tools: denoising, and choosing how to denoise."""

from stdenoise.tl._cross_validate import cross_validate
from stdenoise.tl._denoise import denoise

__all__ = ["cross_validate", "denoise"]
