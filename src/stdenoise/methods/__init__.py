"""Denoising methods: one room each, and the table of all of them."""

from stdenoise.methods._base import Denoiser, MethodInfo
from stdenoise.methods._registry import table
from stdenoise.methods.baselines import (
    GeneMean,
    NeighborMean,
    NeighborMeanConfig,
    PCAReconstruction,
    PCAReconstructionConfig,
    PoissonFactorization,
    PoissonFactorizationConfig,
    Raw,
)
from stdenoise.methods.dusted import DUSTED, DUSTEDConfig

__all__ = [
    "DUSTED",
    "DUSTEDConfig",
    "Denoiser",
    "GeneMean",
    "MethodInfo",
    "NeighborMean",
    "NeighborMeanConfig",
    "PCAReconstruction",
    "PCAReconstructionConfig",
    "PoissonFactorization",
    "PoissonFactorizationConfig",
    "Raw",
    "table",
]
