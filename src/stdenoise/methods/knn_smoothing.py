"""kNN-smoothing: pool the counts of similar profiles, a few more in every round."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from stdenoise._base.config import STRICT, Count, NonNegative
from stdenoise._base.random import torch_generator
from stdenoise.methods._base import Method, MethodInfo
from stdenoise.spatial.neighbors import nearest_neighbors
from stdenoise.spatial.results import Block
from stdenoise.stats.lowrank import principal_components

if TYPE_CHECKING:
    from torch import Tensor

    from stdenoise.spatial.spots import Spots

logger = logging.getLogger("stdenoise")


@dataclass(frozen=True, config=STRICT)
class KNNSmoothingConfig:
    """Hyperparameters of kNN-smoothing; those of version 2.1 of the authors' Python code.

    Parameters
    ----------
    k
        Number of profiles that are pooled, the spot's own included. The authors set no default; 15 is in their examples.
        In their R and MATLAB versions the spot itself does not count: there, this is `k + 1`.
    d
        Number of principal components that similarity is measured in; fewer where there are fewer spots or genes.
    dither
        Width of the uniform noise added to every component, as a share of its range; 0 for none.
    output
        `"mean"`, the pooled profile scaled to the spot's own total, or `"sum"`, the plain sum of the pooled counts.
    """

    k: Count = 15
    d: Count = 10
    dither: NonNegative = 0.03
    output: Literal["mean", "sum"] = "mean"


class KNNSmoothing(Method):
    """Pool the counts of every spot with those of the spots most like it.

    The neighbours are found in rounds, from the profiles that the round before pooled: 2, 4, 8, ... up to `k` of them.
    Coordinates and libraries play no role.

    Parameters
    ----------
    **params
        Fields of `KNNSmoothingConfig`.

    References
    ----------
    Wagner, Yan and Yanai, bioRxiv 2017, doi:10.1101/217737.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=61, n_genes=12)
    >>> st.tl.denoise(adata, st.methods.KNNSmoothing(k=8, d=5))
    >>> adata.layers["knn_smoothing_mean"].shape
    (61, 12)
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="knn_smoothing",
        summary="sums of the counts of similar profiles, without coordinates",
        needs=(),
        scale="counts",
        writes=("mean",),
        size="time of the search grows with spots squared, memory with four times spots x genes",
        reference="Wagner et al., bioRxiv 2017",
        licence="none given",
    )
    config_type = KNNSmoothingConfig
    config: KNNSmoothingConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Return the pooled counts."""
        config, generator = self.config, torch_generator(seed)
        # Sums of a few sparse profiles are mostly full.
        counts = spots.counts.to_dense()
        k = min(config.k, len(counts))
        if k < config.k:
            logger.info("knn_smoothing: only %d spots, so that all are pooled", k)
        pooled = counts
        n_rounds = (k - 1).bit_length()
        for step in tqdm(range(1, n_rounds + 1), desc=self.info.name, unit="round", disable=not progress):
            near = similar(pooled, min(2**step, k), d=config.d, dither=config.dither, generator=generator)
            pooled = pool(counts, near)
        if config.output == "mean":
            total = pooled.sum(1)
            pooled = pooled * torch.where(total > 0, counts.sum(1) / total, 0.0)[:, None]
        return Block(mean=pooled, scale="counts")


def freeman_tukey(counts: Tensor) -> Tensor:
    """Scale profiles to the median total of those that are not empty, and stabilise their variance: `sqrt(x) + sqrt(x + 1)`."""
    total = counts.sum(1)
    if not (total > 0).any():
        return torch.ones_like(counts)
    factor = torch.where(total > 0, total[total > 0].double().quantile(0.5) / total, 0.0)
    scaled = counts * factor.to(counts.dtype)[:, None]
    return scaled.sqrt().add_(scaled.add_(1).sqrt_())


def similar(counts: Tensor, k: int, *, d: int, dither: float, generator: torch.Generator) -> Tensor:
    """Find the `k` most similar profiles of each, itself among them, shape `(n_spots, k)`."""
    n_spots, n_genes = counts.shape
    scores = principal_components(freeman_tukey(counts), min(d, n_genes, n_spots - 1), generator=generator).scores
    # Spots that pooled the same profiles are equal, and must tie: rounding errors may not tell them apart.
    unit = 1e-10 * scores.abs().max().clamp(min=1e-100)
    scores = (scores / unit).round() * unit
    if dither > 0:
        noise = torch.rand(scores.shape, generator=generator, dtype=scores.dtype).to(scores.device) - 0.5
        scores = scores + dither * (scores.amax(0) - scores.amin(0)) * noise
    return nearest_neighbors(scores, k, include_self=True)[0]


def pool(counts: Tensor, near: Tensor) -> Tensor:
    """Sum the counts of the chosen spots."""
    n_spots, k = near.shape
    crow = torch.arange(0, n_spots * k + 1, k, device=near.device)
    ones = counts.new_ones(n_spots * k)
    chosen = torch.sparse_csr_tensor(crow, near.sort(1).values.flatten(), ones, (n_spots, n_spots))
    return chosen @ counts
