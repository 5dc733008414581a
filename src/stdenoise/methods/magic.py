"""MAGIC: diffusion of expression over a graph of similar profiles."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from stdenoise._base.config import STRICT, Count, NonNegative, Positive
from stdenoise._base.random import torch_generator
from stdenoise.methods._base import Method, MethodInfo
from stdenoise.spatial.graph import with_values
from stdenoise.spatial.results import Block
from stdenoise.stats.diffusion import diffuse_, diffusion_operator
from stdenoise.stats.lowrank import principal_components

if TYPE_CHECKING:
    from torch import Tensor

    from stdenoise.spatial.spots import Spots

logger = logging.getLogger("stdenoise")

# The automatic number of steps looks at so many genes, and is reached when two steps differ by less than this.
_GENES_COMPARED = 500
_CONVERGED = 1e-3


@dataclass(frozen=True, config=STRICT)
class MAGICConfig:
    """Hyperparameters of MAGIC; the defaults are those of version 3.0.0 of the authors' package.

    Parameters
    ----------
    knn
        The bandwidth of a spot is the distance to its `knn`-th most similar other spot.
    knn_max
        Number of similar spots that a spot looks at; `None` for `3 * knn`.
    decay
        How steeply similarity falls with distance; `None` for equal weights of the `knn` most similar spots.
    t
        Number of diffusion steps, or `"auto"`: one more than the number after which the values hardly change.
    n_pca
        Principal components that similarity is measured in; `None` for the genes themselves, which are also taken where
        there are no more genes than this.
    thresh
        Smaller similarities become 0.
    t_max
        Largest automatic number of steps.
    solver
        `"exact"` diffuses every gene; `"approximate"` diffuses the principal components and maps them back, which is
        faster for many genes. What then falls below 0 becomes 0.
    transform
        What is diffused: `"sqrt"`, the square root of counts per 10 000, as the authors advise, squared afterwards; or
        `"log1p"`, the log-normalised values.
    """

    knn: Count = 5
    knn_max: Count | None = None
    decay: Positive | None = 1
    t: Count | Literal["auto"] = 3
    n_pca: Count | None = 100
    thresh: NonNegative = 1e-4
    t_max: Count = 20
    solver: Literal["exact", "approximate"] = "exact"
    transform: Literal["sqrt", "log1p"] = "sqrt"

    def __post_init__(self) -> None:
        """Refuse values that do not go together."""
        if self.knn_max is not None and self.knn_max < self.knn:
            raise ValueError(f"knn_max={self.knn_max} must not lie below knn={self.knn}.")


class MAGIC(Method):
    """Replace every profile by a weighted mean of similar ones: a few steps of a random walk between them.

    Coordinates and libraries play no role.

    Parameters
    ----------
    **params
        Fields of `MAGICConfig`.

    References
    ----------
    van Dijk et al., Cell 2018.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=61, n_genes=12)
    >>> st.tl.denoise(adata, st.methods.MAGIC(t=2))
    >>> adata.layers["magic_mean"].shape
    (61, 12)
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="magic",
        summary="diffusion over a graph of similar profiles, without coordinates",
        needs=(),
        scale="log1p",
        writes=("mean",),
        size="time of the search grows with spots squared, memory with spots x genes of the output",
        reference="van Dijk et al., Cell 2018",
        licence="GPL-2.0",
    )
    config_type = MAGICConfig
    config: MAGICConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Return the diffused values."""
        config, generator = self.config, torch_generator(seed)
        expression = spots.lognorm
        if config.transform == "sqrt":
            normalised = spots.depth_normalized
            expression = with_values(normalised, normalised.values().sqrt().float())
        n_spots, n_genes = expression.shape
        knn_max = 3 * config.knn if config.knn_max is None else config.knn_max
        if knn_max > n_spots - 1:
            logger.info("magic: only %d spots, so that each looks at all others", n_spots)

        pca = None
        if config.n_pca is not None and config.n_pca < n_genes:
            pca = principal_components(expression, min(config.n_pca, n_spots), generator=generator)
        operator = diffusion_operator(
            expression.to_dense() if pca is None else pca.scores,
            knn=config.knn,
            knn_max=knn_max,
            decay=config.decay,
            thresh=config.thresh,
        )

        approximate = pca is not None and config.solver == "approximate"
        diffused = pca.scores if pca is not None and approximate else expression.to_dense()
        n_steps, history = config.t, {}
        if isinstance(n_steps, str):
            sample = diffused
            if not approximate and n_genes > _GENES_COMPARED:
                chosen = torch.randperm(n_genes, generator=generator)[:_GENES_COMPARED]
                sample = diffused[:, chosen.to(diffused.device)]
            n_steps, disparity = enough_steps(operator, sample, t_max=config.t_max)
            history = {"disparity": disparity}
            logger.info("magic: t=%d", n_steps)
        diffuse_(operator, diffused, n_steps, progress=progress, label=self.info.name)
        if pca is not None and approximate:
            diffused = torch.addmm(pca.mean.float(), diffused.float(), pca.components.float())
        mean = diffused.clamp_(min=0)
        if config.transform == "sqrt":
            mean = mean.square_().log1p_()
        return Block(mean=mean, scale="log1p", history=history)


def enough_steps(operator: Tensor, values: Tensor, *, t_max: int) -> tuple[int, list[float]]:
    """One step more than it takes until a step changes hardly anything but place, size and orientation of the values."""
    operator, values = operator.double(), values.double()
    disparity: list[float] = []
    while len(disparity) < t_max - 1:
        previous, values = values, operator @ values
        disparity.append(_procrustes(previous, values))
        if disparity[-1] < _CONVERGED:
            break
    return len(disparity) + 1, disparity


def _procrustes(one: Tensor, other: Tensor) -> float:
    """Sum of squared differences after the best shift, scaling and rotation, between 0 and 1."""
    one, other = one - one.mean(0), other - other.mean(0)
    size = one.norm() * other.norm()
    if size == 0:
        return 0.0
    return float(1 - (torch.linalg.svdvals(one.t() @ other).sum() / size) ** 2)
