"""The features that Sprod compares: those of an image, or memberships in clusters of expression."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from stdenoise.methods.sprod.config import SprodConfig
from stdenoise.stats.lowrank import principal_components


def standardised(features: Tensor, n_components: int | None, *, generator: torch.Generator) -> Tensor:
    """Z-scored columns in double precision, constant ones as zeros; or their principal components."""
    features = features.double()
    centred = features - features.mean(0)
    spread = centred.std(0)
    # A constant column has a spread of rounding errors only.
    scored = centred / torch.where(spread > 1e-12 * features.abs().amax(0), spread, torch.inf)
    if n_components is None or n_components >= min(scored.shape):
        return scored
    return principal_components(scored, n_components, generator=generator).scores


def memberships(lognorm: Tensor, config: SprodConfig, *, seed: int, generator: torch.Generator) -> Tensor:
    """Soft memberships in clusters of expression: a Gaussian mixture with one covariance on principal components."""
    n_spots, n_genes = lognorm.shape
    rank = min(config.pseudo_components, n_spots, n_genes)
    scores = principal_components(lognorm, rank, generator=generator).scores.cpu().numpy()
    # Equal spots differ by rounding errors; they are one point for the start of the mixture.
    scores = scores.round(6 - int(np.ceil(np.log10(max(np.abs(scores).max(), 1e-6)))))
    n_clusters = min(config.pseudo_clusters, len(np.unique(scores, axis=0)))
    mixture = GaussianMixture(n_clusters, covariance_type="tied", max_iter=500, random_state=seed % 2**32)
    return torch.from_numpy(mixture.fit(scores).predict_proba(scores)).to(lognorm.device)
