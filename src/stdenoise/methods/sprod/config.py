"""Hyperparameters of Sprod, their defaults and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass

from stdenoise._base.checks import check_choice, check_number


@dataclass(frozen=True)
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

    radius_ratio: float = 0.08
    radius: float | None = None
    perplexity: float = 250.0
    margin: float = 0.001
    capacity: float = 10.0
    lambda_scale: float = 1.0
    smoothing: float = 0.4
    edges_only: bool = False
    n_components: int | None = None
    pseudo_components: int = 25
    pseudo_clusters: int = 20
    tol: float = 1e-6
    max_iterations: int = 100
    return_graph: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("radius_ratio", "margin", "capacity", "lambda_scale"):
            check_number(name, getattr(self, name), above=0)
        if self.radius is not None:
            check_number("radius", self.radius, above=0)
        check_number("perplexity", self.perplexity, above=1)
        for name in ("smoothing", "tol"):
            check_number(name, getattr(self, name), minimum=0)
        for name in ("pseudo_components", "pseudo_clusters", "max_iterations"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        if self.n_components is not None:
            check_number("n_components", self.n_components, minimum=1, integer=True)
        for name in ("edges_only", "return_graph"):
            check_choice(name, getattr(self, name), [True, False])
