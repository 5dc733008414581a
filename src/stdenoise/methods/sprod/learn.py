"""Learning the graph of one section: a convex problem in the weights of the candidate pairs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import Bounds, minimize
from torch import Tensor
from tqdm import tqdm

from stdenoise.methods.sprod.affinity import dissimilarities
from stdenoise.methods.sprod.config import SprodConfig
from stdenoise.methods.sprod.resistance import Slabs
from stdenoise.spatial.neighbors import neighborhoods

logger = logging.getLogger("stdenoise")

_LAPLACIAN = 4.0
"""Factor of the Laplacian within the log-determinant."""
_MOST_SPOTS = 5000
"""Largest batch of the published code."""


@dataclass(frozen=True)
class LearnedGraph:
    """Weights of the candidate pairs of a section.

    Parameters
    ----------
    row, col
        The two spots of each pair, each of shape `(n_pairs,)`; `row < col`.
    weights
        Between 0 and 1, shape `(n_pairs,)`, double precision.
    objective
        Value before each iteration and at the end.
    """

    row: Tensor
    col: Tensor
    weights: Tensor
    objective: list[float]


def candidate_pairs(coordinates: Tensor, config: SprodConfig) -> tuple[Tensor, Tensor]:
    """Pairs of spots within the radius, each once."""
    radius = config.radius
    if radius is None:
        ranges = coordinates.amax(0) - coordinates.amin(0)
        # Spots on a line have one range only.
        ranges = ranges[ranges > 0]
        shrink = min(1.0, (_MOST_SPOTS / len(coordinates)) ** 0.5)
        radius = config.radius_ratio * shrink * float(ranges.min()) if len(ranges) else 0.0
    graph, _ = neighborhoods(coordinates, None, radius=radius)
    once = graph.row < graph.col
    logger.info("sprod: %d candidate pairs within %.4g of %d spots", int(once.sum()), radius, len(coordinates))
    return graph.row[once].long(), graph.col[once].long()


def learn_graph(coordinates: Tensor, features: Tensor, config: SprodConfig, *, progress: bool) -> LearnedGraph:
    """Weigh the candidate pairs: dissimilar spots cost, connections pay."""
    row, col = candidate_pairs(coordinates, config)
    if not len(row):
        return LearnedGraph(row, col, features.new_empty(0), [])
    perplexity = min(config.perplexity, (len(features) - 1) / 3)
    if perplexity < config.perplexity:
        logger.warning("sprod: perplexity lowered to %.3g, a third of the other spots", perplexity)
    cost, _ = dissimilarities(features, row, col, perplexity=perplexity, margin=config.margin)
    weights, objective = weigh(Slabs(coordinates, row, col), row, col, cost, config, progress=progress)
    logger.info("sprod: %d of %d pairs are joined", int((weights > 0).sum()), len(row))
    return LearnedGraph(row, col, weights, objective)


def weigh(
    slabs: Slabs, row: Tensor, col: Tensor, cost: Tensor, config: SprodConfig, *, progress: bool
) -> tuple[Tensor, list[float]]:
    """Minimise `2 lambda <cost, weights> - capacity / 2 log det(I + 4 L)` over weights between 0 and 1."""
    penalty = config.lambda_scale
    # With all weights at 0 a resistance is 2, and no weight grows if every pair costs more than it gains.
    while penalty * float(cost.min()) >= 2 * config.capacity:
        penalty *= 0.8
    if penalty < config.lambda_scale:
        logger.info("sprod: lambda_scale lowered to %.4g, since no spots would be joined", penalty)
    objective: list[float] = []

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(x).to(cost.device)
        log_det, diagonal, on_edges = slabs.solve(weights, scale=_LAPLACIAN)
        resistance = diagonal[row] + diagonal[col] - 2 * on_edges
        value = 2 * penalty * float(cost @ weights) - config.capacity / 2 * log_det
        if not objective:
            objective.append(value)
        return value, (2 * penalty * cost - 2 * config.capacity * resistance).cpu().numpy()

    with tqdm(total=config.max_iterations, desc="sprod", unit="iteration", disable=not progress) as bar:

        def show(intermediate_result: object) -> None:
            objective.append(float(intermediate_result.fun))  # type: ignore[attr-defined]
            bar.set_postfix(objective=f"{objective[-1]:.6g}", refresh=False)
            bar.update()

        found = minimize(
            value_and_gradient,
            np.full(len(cost), 0.5),
            jac=True,
            method="L-BFGS-B",
            bounds=Bounds(np.zeros(len(cost)), np.ones(len(cost))),
            callback=show,
            options={"maxiter": config.max_iterations, "ftol": config.tol, "gtol": 0.0, "maxfun": 10**6},
        )
    if not np.isfinite(found.fun):
        raise FloatingPointError(f"sprod: the objective is {found.fun}; are coordinates and features finite?")
    if found.nit >= config.max_iterations:
        logger.warning("sprod: the graph has not converged in %d iterations", config.max_iterations)
    return torch.from_numpy(found.x).to(cost.device), objective
