"""Tools: denoising."""

from stdenoise.tl._denoise import denoise

__all__ = ["denoise"]
