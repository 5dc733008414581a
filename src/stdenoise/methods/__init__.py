"""Denoising methods: one room each, and the table of all of them."""

from stdenoise.methods._base import Denoiser, MethodInfo
from stdenoise.methods._registry import table
from stdenoise.methods.alra import ALRA, ALRAConfig
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
from stdenoise.methods.dca import DCA, DCAConfig
from stdenoise.methods.dusted import DUSTED, DUSTEDConfig
from stdenoise.methods.knn_smoothing import KNNSmoothing, KNNSmoothingConfig
from stdenoise.methods.magic import MAGIC, MAGICConfig
from stdenoise.methods.scvi import SCVI, SCVIConfig
from stdenoise.methods.sme import SME, SMEConfig
from stdenoise.methods.smoother import Smoother, SmootherConfig
from stdenoise.methods.sprod import Sprod, SprodConfig
from stdenoise.methods.stagate import STAGATE, STAGATEConfig

__all__ = [
    "Smoother",
    "SmootherConfig",
    "Sprod",
    "SprodConfig",
    "SME",
    "SMEConfig",
    "DCA",
    "DCAConfig",
    "SCVI",
    "SCVIConfig",
    "ALRA",
    "ALRAConfig",
    "KNNSmoothing",
    "KNNSmoothingConfig",
    "MAGIC",
    "MAGICConfig",
    "STAGATE",
    "STAGATEConfig",
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
