"""Hyperparameters of Sprod, their defaults and where each comes from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from stdenoise._base.config import STRICT, Count, NonNegative, Positive, Switch


@dataclass(frozen=True, config=STRICT)
class SprodConfig:
    """Hyperparameters of Sprod; "code" is the published code.

    Parameters
    ----------
    radius_ratio
        Pairs of spots may be joined within this share of the smaller range of the coordinates of a library (code: .08). In
        a library of more than 5000 spots the radius shrinks with the root of their number, so that a spot keeps as many
        candidates; the published code thins them instead, by random batches of at most 5000 spots.
    radius
        Radius in units of the coordinates, in place of `radius_ratio`.
    perplexity
        Effective number of spots that are like a spot in their features (code: 250); a third of the other spots where that is less.
    margin
        Accuracy of the bandwidths behind it, relative to the feature distances (code: .001).
    capacity
        Weight of the log-determinant, which rewards connections: K of the published code (10).
    lambda_scale
        Weight of the dissimilarity of joined spots: λ of the published code (1), whose gradient holds half of it. A
        value tuned there corresponds to something between half of it and it here.
    smoothing
        Strength of the smoothing over the learned graph (code: .4).
    edges_only
        Take a spot's value from itself and the spots it is joined to, not from theirs in turn: the code's option "diag".
    n_components
        Principal components of the z-scored features to compare; `None` for all (code).
    pseudo_components
        Without image features: principal components of expression that are clustered (code: 25).
    pseudo_clusters
        Without image features: clusters, whose memberships stand in for the features. The published code finds their number by a
        Dirichlet process.
    tol
        The graph is learned when an iteration lowers the objective by less than this share of it.
    max_iterations
        Iterations at most (code: 100).
    return_graph
        Also return the learned weights (spots x spots, sparse).
    """

    radius_ratio: Positive = 0.08
    radius: Positive | None = None
    perplexity: Annotated[Positive, Field(gt=1)] = 250.0
    margin: Positive = 0.001
    capacity: Positive = 10.0
    lambda_scale: Positive = 1.0
    smoothing: NonNegative = 0.4
    edges_only: Switch = False
    n_components: Count | None = None
    pseudo_components: Count = 25
    pseudo_clusters: Count = 20
    tol: NonNegative = 1e-6
    max_iterations: Count = 100
    return_graph: Switch = False
