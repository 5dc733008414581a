"""Denoise spatial transcriptomics counts, as an AnnData plugin for scanpy and squidpy pipelines."""

from importlib.metadata import version

from stdenoise import benchmark, datasets, get, methods, metrics, pl, pp, tl
from stdenoise._base.settings import settings

__all__ = ["benchmark", "datasets", "get", "methods", "metrics", "pl", "pp", "settings", "tl"]
__version__ = version("stdenoise")
