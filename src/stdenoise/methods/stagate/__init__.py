"""STAGATE: graph-attention autoencoder on log-normalised expression."""

from stdenoise.methods.stagate.config import STAGATEConfig
from stdenoise.methods.stagate.method import STAGATE

__all__ = ["STAGATE", "STAGATEConfig"]
