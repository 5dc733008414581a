"""DCA: deep count autoencoder."""

from stdenoise.methods.dca.config import DCAConfig
from stdenoise.methods.dca.method import DCA

__all__ = ["DCA", "DCAConfig"]
