"""Sprod as a method: from spots to smoothed expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from stdenoise._base.random import torch_generator
from stdenoise.methods._base import Method, MethodInfo
from stdenoise.methods.sprod.config import SprodConfig
from stdenoise.methods.sprod.features import memberships, standardised
from stdenoise.methods.sprod.learn import learn_graph
from stdenoise.methods.sprod.smooth import smooth, weighted_graph
from stdenoise.spatial.graph import select_rows
from stdenoise.spatial.results import Block

if TYPE_CHECKING:
    from torch import Tensor

    from stdenoise.spatial.spots import Spots

# Far below the single precision of the result.
_TOL = 1e-7


class Sprod(Method):
    """Laplacian smoothing over a learned graph of spots that are near in space and alike in image or expression features.

    Parameters
    ----------
    **params
        Fields of `SprodConfig`.

    References
    ----------
    Wang, Song, Wang et al., Nature Methods 19:950-958, 2022; the published code is `yunguan-wang/SPROD` on GitHub.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.Sprod(radius=150.0).label
    'sprod(radius=150.0)'
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sprod",
        summary="smoothing over a learned graph of spots near in space and alike in image or expression features",
        needs=("coordinates",),
        scale="log1p",
        writes=("mean",),
        size="time grows with the square of the spots, memory with spots^1.5 and with spots x genes of the output",
        reference="Sprod, Nature Methods 2022",
        licence="academic and research use only; this code is independent of it",
        optional=("features",),
    )
    config_type = SprodConfig
    config: SprodConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Learn the graph of each library and smooth over it."""
        parts = []
        history: dict[str, list[float]] = {"objective": []}
        for members in _libraries(spots):
            features = _features(spots, members, self.config, seed)
            learned = learn_graph(spots.coordinates[members], features, self.config, progress=progress)
            joined = learned.weights > 0
            parts.append((members[learned.row[joined]], members[learned.col[joined]], learned.weights[joined]))
            history["objective"] += learned.objective
        device = spots.coordinates.device
        none = torch.empty(0, dtype=torch.int64, device=device)
        parts.append((none, none, torch.empty(0, dtype=torch.float64, device=device)))
        row, col, weights = (torch.cat(part) for part in zip(*parts, strict=True))
        mean = smooth(
            spots.lognorm.to_dense(),
            spots.coordinates,
            row,
            col,
            weights,
            strength=self.config.smoothing,
            edges_only=self.config.edges_only,
            tol=_TOL,
        )
        # Weights of spots are never negative; their sums may be by rounding.
        return Block(
            mean=mean.clamp_(min=0),
            scale="log1p",
            attention=weighted_graph(row, col, weights, len(mean)) if self.config.return_graph else None,
            history=history,
        )


def _libraries(spots: Spots) -> list[Tensor]:
    """Spots of each library that has more than one."""
    codes = spots.libraries
    if codes is None:
        return [torch.arange(spots.counts.shape[0], device=spots.counts.device)] if spots.counts.shape[0] > 1 else []
    order = torch.argsort(codes, stable=True)
    sizes = torch.unique_consecutive(codes[order], return_counts=True)[1].tolist()
    return [members for members in order.split(sizes) if len(members) > 1]


def _features(spots: Spots, members: Tensor, config: SprodConfig, seed: int) -> Tensor:
    generator = torch_generator(seed)
    if not spots.has("features"):
        found = memberships(select_rows(spots.lognorm, members), config, seed=seed, generator=generator)
    else:
        found = spots.features[members]
    return standardised(found, config.n_components, generator=generator)
