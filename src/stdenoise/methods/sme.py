"""stLearn's SME: average a spot with the spots near it that look alike and express alike."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, ClassVar, Literal

import pandas as pd
import torch
from pydantic.dataclasses import dataclass

from stdenoise._base.config import STRICT, AtLeastTwo, Count, Positive, Switch
from stdenoise._base.random import torch_generator
from stdenoise.methods._base import Method, MethodInfo
from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.neighbors import neighborhoods
from stdenoise.spatial.results import Block
from stdenoise.stats.lowrank import principal_components

if TYPE_CHECKING:
    from torch import Tensor

    from stdenoise.spatial.spots import Spots

logger = logging.getLogger("stdenoise")

_WEIGHTS = ("physical_morphology_expression", "physical_expression", "physical_morphology", "physical")
# Three distances between spots, less a margin: an array has whole rings of neighbours at exactly three, which are out, and rounded
# coordinates would let some of them in. No ring of a hexagonal or square array lies between 2.83 and 3.
_AUTO_RADIUS = 2.9
_N_KEPT, _N_KEPT_PHYSICAL = 3, 6
_BLOCK_ENTRIES = 1 << 24


@dataclass(frozen=True, config=STRICT)
class SMEConfig:
    """Hyperparameters of SME; the defaults are those of the published code.

    Parameters
    ----------
    weights
        What the weight of a neighbour is made of: `"physical_morphology_expression"`, `"physical_expression"`,
        `"physical_morphology"` or `"physical"`. `"auto"` takes all three where image features are given, else
        `"physical_expression"`.
    radius
        Spots nearer than this, in units of the coordinates, can be averaged. `"auto"` is three times the median distance from
        a spot of the library to the nearest other one, on Visium three spot distances with 30 neighbours.
    n_neighbors_kept
        Spots that are averaged: those with the largest weights, the spot itself among them. `None` stands for 3. With
        `weights="physical"`, the nearest ones without the spot itself, and `None` stands for 6.
    n_components
        Principal components of expression, and of the image features where there are more of them.
    mode
        `"normalize"` replaces a value by its mean with the weighted average; `"impute"` replaces only zeros, by that average.
    clip_negative
        Take negative correlations of expression as 0. In the published code they can pass and produce negative values.
    """

    weights: Literal[
        "auto", "physical_morphology_expression", "physical_expression", "physical_morphology", "physical"
    ] = "auto"
    radius: Positive | Literal["auto"] = "auto"
    n_neighbors_kept: Count | None = None
    n_components: AtLeastTwo = 50
    mode: Literal["normalize", "impute"] = "normalize"
    clip_negative: Switch = True


class SME(Method):
    """Average log-normalised expression with that of near spots of similar image and expression (stLearn).

    Parameters
    ----------
    **params
        Fields of `SMEConfig`.

    References
    ----------
    Pham, Tan, Balderson et al., Nature Communications 14:7739, 2023; the published code is
    `BiomedicalMachineLearning/stLearn` on GitHub.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.SME(mode="impute").label
    "sme(mode='impute')"
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="sme",
        summary="mean over near spots of similar image and expression (stLearn)",
        needs=("coordinates",),
        scale="log1p",
        writes=("mean",),
        size="time grows with pairs of spots within the radius, memory with spots x genes of the output",
        reference="stLearn, Nature Communications 2023",
        licence="BSD-3-Clause",
        optional=("features",),
    )
    config_type = SMEConfig
    config: SMEConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Return the adjusted values."""
        config, generator = self.config, torch_generator(seed)
        parts = config.weights
        if parts == "auto":
            parts = "physical_expression" if not spots.has("features") else "physical_morphology_expression"
        graph, lengths = near_spots(spots, config.radius)
        if parts == "physical":
            weights = lengths.new_ones(graph.n_edges)
            keep = rank(graph, -lengths) < (config.n_neighbors_kept or _N_KEPT_PHYSICAL)
        else:
            morphology = expression = None
            if "morphology" in parts:
                if not spots.has("features"):
                    raise ValueError(f"weights={parts!r} needs image features; name their key with features_key=.")
                morphology = image_components(spots.features, config.n_components, generator)
            if "expression" in parts:
                # Their signs matter to a correlation: as in scikit-learn, the largest loading is positive.
                n_components = min(config.n_components, *spots.lognorm.shape)
                expression = principal_components(spots.lognorm, n_components, generator=generator).scores
            graph = graph.with_self_loops()
            weights = similarity(graph, morphology, expression, clip_negative=config.clip_negative)
            keep = most_similar(graph, weights, config.n_neighbors_kept or _N_KEPT)
        return Block(mean=adjust(average(graph, weights, keep), spots.lognorm, config.mode), scale="log1p")


def near_spots(spots: Spots, radius: float | str) -> tuple[SpatialGraph, Tensor]:
    """Join every spot to those of its library that are nearer than the radius and have counts."""
    if isinstance(radius, str):
        coordinates = spots.coordinates / spot_distance(spots.coordinates, spots.libraries)[:, None]
        limit = _AUTO_RADIUS
    else:
        coordinates, limit = spots.coordinates, radius
    whole, lengths = neighborhoods(coordinates, spots.libraries, radius=limit)
    # An empty spot is no observation of zeros.
    keep = (lengths < limit) & spots.nonempty[whole.col.long()]
    graph = _subgraph(whole, keep)
    n_libraries = 1 if spots.libraries is None else len(spots.libraries.unique())
    if graph.n_edges == 0 and n_libraries < graph.n_spots:
        warnings.warn(
            f"sme: no two spots are nearer than radius={radius!r}, and nothing is averaged; is it in the units of the "
            "coordinates?",
            UserWarning,
            stacklevel=2,
        )
    logger.info("sme: %.1f spots within the radius on average", graph.n_edges / graph.n_spots)
    return graph, lengths[keep]


def spot_distance(coordinates: Tensor, libraries: Tensor | None) -> Tensor:
    """Median distance between a place and the nearest other one in the library of each spot; 1 where there is one place only."""
    n = len(coordinates)
    codes = torch.zeros(n, dtype=torch.int64, device=coordinates.device) if libraries is None else libraries
    # Coincident spots are one place: their distance of 0 says nothing about the array.
    places = torch.cat([codes[:, None].to(coordinates.dtype), coordinates], dim=1).unique(dim=0)
    library = places[:, 0].long()
    graph, lengths = neighborhoods(places[:, 1:].contiguous(), library, k=1)
    median = pd.Series(lengths.cpu().numpy()).groupby(library[graph.row.long()].cpu().numpy()).median()
    of_spots = median.reindex(codes.cpu().numpy()).fillna(1.0).to_numpy(copy=True)
    return torch.from_numpy(of_spots).to(coordinates.device, coordinates.dtype)


def image_components(features: Tensor, n_components: int, generator: torch.Generator) -> Tensor:
    """Centre image features, and take their principal components where there are more than wanted; double precision.

    Without the centring, features that are all positive would be alike by their cosine.
    """
    if features.shape[1] > n_components:
        return principal_components(features, min(n_components, len(features)), generator=generator).scores
    features = features.double()
    return features - features.mean(0)


def similarity(
    graph: SpatialGraph, morphology: Tensor | None, expression: Tensor | None, *, clip_negative: bool
) -> Tensor:
    """Weights of the edges: cosine of the image components, as 0 where negative, times correlation of the expression components."""
    weights = torch.ones(graph.n_edges, dtype=torch.float64, device=graph.col.device)
    if morphology is not None:
        weights *= _cosine(graph, morphology.double()).clamp_(min=0)
    if expression is not None:
        correlation = _cosine(graph, expression.double() - expression.double().mean(1, keepdim=True))
        weights *= correlation.clamp_(min=0) if clip_negative else correlation
    weights[graph.row == graph.col] = 1
    return weights


def _cosine(graph: SpatialGraph, vectors: Tensor) -> Tensor:
    norm = vectors.norm(dim=1, keepdim=True)
    vectors = vectors / torch.where(norm > 0, norm, 1.0)
    pattern = graph.matrix(vectors.new_zeros(graph.n_edges))
    cosine: Tensor = torch.sparse.sampled_addmm(pattern, vectors, vectors.t(), beta=0.0).values()
    return cosine


def rank(graph: SpatialGraph, score: Tensor) -> Tensor:
    """Count, for each edge, the edges of the same spot with a larger score; equal ones come in the order of their senders."""
    row = graph.row.long()
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(row[order], stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - graph.crow.long()[row]
    return ranks


def most_similar(graph: SpatialGraph, weights: Tensor, k: int) -> Tensor:
    """Mark the `k` largest weights of every spot, the spot itself first.

    Spots that are too far away have weight 0 and come before negative weights, which remain in small data only.
    """
    row = graph.row.long()
    ranks = rank(graph, torch.where(row == graph.col, torch.inf, weights))
    n_far = graph.n_spots - graph.crow.diff().long()
    return ranks + torch.where(weights < 0, n_far[row], 0) < k


def average(graph: SpatialGraph, weights: Tensor, keep: Tensor) -> Tensor:
    """CSR matrix of the kept weights, each divided by their sum over its spot, or 0 where that is not positive."""
    kept = _subgraph(graph, keep)
    weights = weights[keep]
    total = kept.row_sum(weights)[kept.row.long()]
    return kept.matrix(torch.where(total > 0, weights / total, 0.0))


def _subgraph(graph: SpatialGraph, keep: Tensor) -> SpatialGraph:
    """Graph of the marked edges."""
    crow = torch.zeros_like(graph.crow)
    crow[1:] = torch.bincount(graph.row[keep], minlength=graph.n_spots).cumsum(0)
    return SpatialGraph(crow, graph.col[keep])


def adjust(matrix: Tensor, values: Tensor, mode: str) -> Tensor:
    """Bring expression nearer to the average over similar spots."""
    adjusted = values.to_dense()
    matrix = matrix.to(adjusted.dtype)
    # A block of genes at a time: no second dense copy of the values.
    for block in adjusted.split(max(1, _BLOCK_ENTRIES // len(adjusted)), dim=1):
        mean = matrix @ block.contiguous()
        if mode == "impute":
            block.copy_(torch.where(block == 0, mean, block))
        else:
            block.copy_(torch.where(mean == 0, block, (block + mean) / 2))
    return adjusted
