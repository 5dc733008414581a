"""Every AnnData key that stdenoise reads or writes, in one place."""

from __future__ import annotations

from dataclasses import dataclass

SPATIAL = "spatial"
SPATIAL_FALLBACK = "X_spatial"
HIGHLY_VARIABLE = "highly_variable"
SCALES = "scales"
"""In `uns`: `"counts"` or `"log1p"` by the name of a layer, or `"X"`, where the user has said it."""
TRUE_MEAN = "true_mean"
"""Layer of simulated tissues: expected counts."""


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


class ResultKeys:
    """Keys of a denoised result.

    Parameters
    ----------
    key
        Prefix of the result, such as `"dusted"`.
    """

    def __init__(self, key: str) -> None:
        self.mean, self.dispersion, self.dropout = f"{key}_mean", f"{key}_dispersion", f"{key}_dropout"
        """In `layers` (all genes) or `obsm` (a gene subset)."""
        self.latent = f"X_{key}"
        """In `obsm`."""
        self.attention = f"{key}_attention"
        """In `obsp`."""
        self.modelled = f"{key}_modelled"
        """In `var`: whether a gene was modelled (gene subsets only)."""
        self.uns = key
        """In `uns`: provenance and history."""
