"""Every AnnData key that stdenoise reads or writes, in one place."""

from __future__ import annotations

from dataclasses import dataclass

SPATIAL = "spatial"
SPATIAL_FALLBACK = "X_spatial"
HIGHLY_VARIABLE = "highly_variable"


@dataclass(frozen=True)
class GraphKeys:
    """Keys of a spatial graph; squidpy's names."""

    key: str

    @property
    def connectivities(self) -> str:
        """Key in `obsp`: 1 for an edge."""
        return f"{self.key}_connectivities"

    @property
    def distances(self) -> str:
        """Key in `obsp`: length of an edge, in units of the coordinates."""
        return f"{self.key}_distances"

    @property
    def uns(self) -> str:
        """Key in `uns`: parameters and statistics."""
        return f"{self.key}_neighbors"


@dataclass(frozen=True)
class ResultKeys:
    """Keys of a denoised result."""

    key: str

    @property
    def mean(self) -> str:
        """Key in `layers` (all genes) or `obsm` (a gene subset)."""
        return f"{self.key}_mean"

    @property
    def dispersion(self) -> str:
        """Key in `layers` or `obsm`."""
        return f"{self.key}_dispersion"

    @property
    def dropout(self) -> str:
        """Key in `layers` or `obsm`."""
        return f"{self.key}_dropout"

    @property
    def latent(self) -> str:
        """Key in `obsm`."""
        return f"X_{self.key}"

    @property
    def attention(self) -> str:
        """Key in `obsp`."""
        return f"{self.key}_attention"

    @property
    def modelled(self) -> str:
        """Key in `var`: whether a gene was modelled (gene subsets only)."""
        return f"{self.key}_modelled"

    @property
    def uns(self) -> str:
        """Key in `uns`: provenance and history."""
        return self.key
