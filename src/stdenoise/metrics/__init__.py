"""Metrics: whether denoising worked."""

from stdenoise.metrics._autocorrelation import gearys_c, morans_i
from stdenoise.metrics._clustering import clustering
from stdenoise.metrics._gene_protein import gene_protein_correlation
from stdenoise.metrics._held_out import held_out
from stdenoise.metrics._intensity import spot_intensity
from stdenoise.metrics._masked_recovery import masked_recovery
from stdenoise.metrics._null_test import null_test
from stdenoise.metrics._reconstruction import reconstruction
from stdenoise.metrics._smoothing import smoothing

__all__ = [
    "clustering",
    "gearys_c",
    "gene_protein_correlation",
    "held_out",
    "masked_recovery",
    "morans_i",
    "null_test",
    "reconstruction",
    "smoothing",
    "spot_intensity",
]
