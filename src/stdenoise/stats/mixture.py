"""Gaussian mixture with one covariance for all clusters ("EEE"), fitted by expectation maximisation."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

logger = logging.getLogger("stdenoise")

TOLERANCE = 1e-5
"""The fit stops when the log-likelihood l changes by less than this share of 1 + |l|: the rule of mclust."""

MAX_ITERATIONS = 10_000
"""A safety net: fits of real sections stop after ten to a hundred iterations."""

N_STARTS = 2
"""Starts of a fit, of which the likeliest is kept. With two, fits of real sections are as likely as mclust's on average."""

_MAX_GROUPS = 400
_POINTS_PER_GROUP = 3
_LLOYD_STEPS = 10
_SINGULAR = 1e-9
_BLOCK = 2**22


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture of `G` clusters in `d` dimensions. Clusters are numbered by falling size.

    Parameters
    ----------
    labels
        Most probable cluster of each point, shape `(n,)`.
    weights
        Share of each cluster, shape `(G,)`.
    means
        Shape `(G, d)`.
    covariance
        Shared by all clusters, shape `(d, d)`.
    loglik
        Log-likelihood.
    n_iterations
        Iterations of the fit; -1 where unknown.
    """

    labels: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariance: np.ndarray
    loglik: float
    n_iterations: int

    @property
    def bic(self) -> float:
        """Bayesian information criterion in mclust's sign: twice the log-likelihood less a penalty, larger is better."""
        n_clusters, d = self.means.shape
        n_parameters = n_clusters - 1 + n_clusters * d + d * (d + 1) // 2
        return float(2 * self.loglik - n_parameters * math.log(len(self.labels)))

    def by_size(self) -> Mixture:
        """Renumber the clusters by falling size; of equal ones the one with the earlier point comes first."""
        sizes = np.bincount(self.labels, minlength=len(self.weights))
        first = np.full(len(sizes), len(self.labels))
        np.minimum.at(first, self.labels, np.arange(len(self.labels)))
        order = np.lexsort((first, -sizes))
        labels = np.argsort(order)[self.labels]
        return Mixture(labels, self.weights[order], self.means[order], self.covariance, self.loglik, self.n_iterations)


def fit_mixture(points: np.ndarray, n_clusters: int, *, seed: int, n_starts: int = N_STARTS) -> Mixture:
    """Fit the mixture from several starts and keep the likeliest fit.

    A start cuts the points into up to 400 compact groups (k-means from random centres, on data whitened as a whole), then
    joins two groups at a time, those whose union lowers the likelihood of the tied model least.

    Parameters
    ----------
    points
        Shape `(n, d)`, finite; its columns are linearly independent.
    n_clusters
        Number of clusters.
    seed
        Of the random centres.
    n_starts
        Number of starts.

    Raises
    ------
    ValueError
        There are too few points, or the covariance is singular.
    """
    n, d = points.shape
    if n < n_clusters + d:
        raise ValueError(
            f"{n} points are too few for {n_clusters} clusters in {d} dimensions: a mixture with one covariance needs "
            f"at least {n_clusters + d}. Use fewer dimensions or clusters."
        )
    space = _Whitened(points)
    fits = []
    for sequence in np.random.SeedSequence(seed).spawn(1 if n_clusters == 1 else n_starts):
        start = _start(space.points, n_clusters, np.random.default_rng(sequence))
        try:
            fits.append(_maximise(space, start, n_clusters))
        except np.linalg.LinAlgError:
            logger.info("a start of the mixture met a singular covariance and was dropped")
    if not fits:
        raise ValueError(
            f"the covariance of {n_clusters} clusters in {d} dimensions is singular: the points lie on fewer dimensions "
            "within clusters, for example because many are equal. Use fewer clusters or dimensions."
        )
    best = max(fits, key=lambda fit: fit.loglik)
    n_found = len(np.unique(best.labels))
    if n_found < n_clusters:
        logger.info("%d of %d clusters are the most probable one of no point", n_clusters - n_found, n_clusters)
    return best.by_size()


def fit_from_labels(points: np.ndarray, labels: np.ndarray) -> Mixture:
    """Fit the mixture from one start.

    Parameters
    ----------
    points
        Shape `(n, d)`.
    labels
        Cluster of each point to start from, 0 to G - 1; the result keeps this numbering.
    """
    return _maximise(_Whitened(points), labels, int(labels.max()) + 1)


class _Whitened:
    """Points moved and rotated to mean zero and covariance one, which leaves a tied mixture the same but for a constant.

    There, the total covariance is the identity, so the shared covariance of an M step is the identity less the covariance of
    the means, and no pass over squared residuals is needed.
    """

    def __init__(self, points: np.ndarray) -> None:
        points = np.asarray(points, dtype=np.float64)
        self.centre = points.mean(axis=0)
        centred = points - self.centre
        scale = centred.std(axis=0)
        columns = centred / np.where(scale > 0, scale, 1.0)
        correlation = columns.T @ columns / len(columns)
        if (scale == 0).any() or np.linalg.eigvalsh(correlation)[0] < _SINGULAR:
            raise ValueError(_dependent(columns))
        factor = np.linalg.cholesky(correlation)
        self.root = scale[:, None] * factor
        self.log_det = 2 * float(np.log(np.diag(self.root)).sum())
        self.points = np.ascontiguousarray(linalg.solve_triangular(factor, columns.T, lower=True).T)


def _dependent(columns: np.ndarray) -> str:
    _, triangle, order = linalg.qr(columns, mode="economic", pivoting=True)
    size = np.abs(np.diag(triangle))
    rank = int((size > math.sqrt(_SINGULAR) * size[0]).sum())
    extra = sorted(int(column) for column in order[min(rank, columns.shape[1] - 1) :])
    return (
        f"the covariance is singular: dimensions {extra} (counted from 0) are constant or linear combinations of the others. "
        "Leave them out, or use fewer components."
    )


def _maximise(space: _Whitened, labels: np.ndarray, n_clusters: int) -> Mixture:
    points = space.points
    n, d = points.shape
    member = np.zeros((n, n_clusters))
    member[np.arange(n), labels] = 1
    constant = d * math.log(2 * math.pi) + space.log_det
    loglik, change, iteration = -math.inf, math.inf, 0
    while change >= TOLERANCE and iteration < MAX_ITERATIONS:
        iteration += 1
        size = member.sum(axis=0)
        # A cluster that lost every point keeps a weight of zero, and gets none back.
        means = (member.T @ points) / np.maximum(size, np.finfo(float).tiny)[:, None]
        weights = size / n
        covariance = np.eye(d) - (means.T * weights) @ means
        factor = np.linalg.cholesky(covariance)
        if np.diag(factor).min() ** 2 < _SINGULAR:
            raise np.linalg.LinAlgError("singular covariance")
        precision = linalg.cho_solve((factor, True), np.eye(d))
        # What all clusters share of the squared distances cancels in the memberships; its sum is n times a trace.
        slopes = means @ precision
        with np.errstate(divide="ignore"):
            score = points @ slopes.T + (np.log(weights) - 0.5 * (means * slopes).sum(axis=1))
        top = score.max(axis=1, keepdims=True)
        member = np.exp(score - top)
        total = member.sum(axis=1, keepdims=True)
        member /= total
        before = loglik
        shared = constant + 2 * np.log(np.diag(factor)).sum() + np.trace(precision)
        loglik = float((np.log(total) + top).sum() - 0.5 * n * shared)
        change = abs(loglik - before) / (1 + abs(loglik))
    if change >= TOLERANCE:
        logger.warning("the mixture stopped after %d iterations, at a relative change of %.1e", MAX_ITERATIONS, change)
    return Mixture(
        labels=member.argmax(axis=1),
        weights=weights,
        means=means @ space.root.T + space.centre,
        covariance=space.root @ covariance @ space.root.T,
        loglik=loglik,
        n_iterations=iteration,
    )


def _start(points: np.ndarray, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Hard labels to start from: many small groups, joined one pair after the other."""
    # Centres must differ; equal points have equal projections.
    distinct = np.unique(points @ rng.normal(size=points.shape[1]), return_index=True)[1]
    n_groups = max(n_clusters, min(_MAX_GROUPS, len(points) // _POINTS_PER_GROUP))
    centres = points[rng.choice(distinct, min(n_groups, len(distinct)), replace=False)]
    for _ in range(_LLOYD_STEPS):
        groups = _nearest(points, centres)
        # A group that lost all points goes.
        groups = np.unique(groups, return_inverse=True)[1]
        sizes, centres = _centres(points, groups)
    return np.asarray(_join(sizes, centres, n_clusters)[groups])


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    offset = 0.5 * (centres**2).sum(axis=1)
    rows = max(1, _BLOCK // len(centres))
    blocks = (points[start : start + rows] for start in range(0, len(points), rows))
    return np.concatenate([(block @ centres.T - offset).argmax(axis=1) for block in blocks])


def _centres(points: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(points)
    member = sparse.csr_matrix((np.ones(n), groups, np.arange(n + 1)))
    sizes = np.bincount(groups).astype(np.float64)
    return sizes, (member.T @ points) / sizes[:, None]


def _join(sizes: np.ndarray, centres: np.ndarray, n_clusters: int) -> np.ndarray:
    """Join groups of whitened points until `n_clusters` are left; return the cluster of each group.

    Joining two groups adds one outer product to the pooled scatter W, which multiplies its determinant by one plus a
    distance in the metric of W; the tied model loses least likelihood where that is smallest.
    """
    sizes, centres = sizes.copy(), centres.copy()
    cluster = np.arange(len(sizes))
    # The total scatter of whitened points is n times the identity.
    scatter = sizes.sum() * np.eye(centres.shape[1]) - (centres.T * sizes) @ centres
    while len(sizes) > n_clusters:
        # A pseudo-inverse, because few points in many dimensions leave the scatter within groups singular.
        slopes = centres @ np.linalg.pinv(scatter, hermitian=True)
        squares = (centres * slopes).sum(axis=1)
        distance = squares[:, None] + squares - 2 * slopes @ centres.T
        weight = sizes[:, None] * sizes / (sizes[:, None] + sizes)
        cost = weight * distance
        np.fill_diagonal(cost, np.inf)
        first, second = sorted(np.unravel_index(cost.argmin(), cost.shape))
        step = centres[first] - centres[second]
        scatter += weight[first, second] * np.outer(step, step)
        centres[first] -= step * sizes[second] / (sizes[first] + sizes[second])
        sizes[first] += sizes[second]
        centres, sizes = np.delete(centres, second, axis=0), np.delete(sizes, second)
        cluster[cluster == second] = first
        cluster[cluster > second] -= 1
    return cluster
