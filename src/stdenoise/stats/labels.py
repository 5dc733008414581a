"""Agreement of two labellings, and a vote of neighbours over labels."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree
from sklearn import metrics
from sklearn.metrics.cluster import contingency_matrix


def matched_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Share of points that agree under the best one-to-one matching of clusters and classes.

    Parameters
    ----------
    truth, predicted
        One label per point, any values that can be sorted.
    """
    table = contingency_matrix(truth, predicted)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / table.sum())


def label_agreement(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Adjusted Rand index, normalised mutual information (arithmetic mean), homogeneity, completeness, matched accuracy.

    Homogeneity is 1 where every cluster holds one class, completeness where every class lies in one cluster.

    Parameters
    ----------
    truth
        Class of each point.
    predicted
        Cluster of each point.
    """
    homogeneity, completeness, nmi = metrics.homogeneity_completeness_v_measure(truth, predicted)
    return {
        "ari": float(metrics.adjusted_rand_score(truth, predicted)),
        "nmi": float(nmi),
        "homogeneity": float(homogeneity),
        "completeness": float(completeness),
        "accuracy": matched_accuracy(truth, predicted),
    }


def refine_labels(coordinates: np.ndarray, labels: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Give each spot the most frequent label of its nearest neighbours; one pass, from the old labels.

    The spot itself does not vote. A tie goes to the tied label that occurs nearest.

    Parameters
    ----------
    coordinates
        Shape `(n_spots, k)`.
    labels
        Integers from 0, shape `(n_spots,)`.
    n_neighbors
        Neighbours that vote, fewer than there are spots.
    """
    n = len(labels)
    neighbour = KDTree(coordinates).query(coordinates, k=n_neighbors + 1)[1]
    # Among coincident spots, the spot itself need not come first, and may be missing: then the farthest is left out.
    own = neighbour == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    votes = labels[neighbour[~own].reshape(n, n_neighbors)]
    n_labels = int(labels.max()) + 1
    cell = np.arange(n)[:, None] * n_labels + votes
    count = np.bincount(cell.ravel(), minlength=n * n_labels)[cell]
    nearest = (count == count.max(axis=1, keepdims=True)).argmax(axis=1)
    return np.asarray(votes[np.arange(n), nearest])
