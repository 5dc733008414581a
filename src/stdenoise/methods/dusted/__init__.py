"""DUSTED: dual-attention denoising of spatial transcriptomics."""

from stdenoise.methods.dusted.config import DUSTEDConfig
from stdenoise.methods.dusted.method import DUSTED

__all__ = ["DUSTED", "DUSTEDConfig"]
