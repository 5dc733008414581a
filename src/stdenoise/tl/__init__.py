"""Tools: denoising, the choice of a method, and clustering."""

from stdenoise.tl._cluster import cluster
from stdenoise.tl._cross_validate import cross_validate
from stdenoise.tl._denoise import denoise

__all__ = ["cluster", "cross_validate", "denoise"]
