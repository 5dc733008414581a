"""Agreement of labels against worked numbers and enumeration, and the vote of neighbours against a plain loop."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdenoise.stats.labels import label_agreement, matched_accuracy, refine_labels

NAMES = ["ari", "nmi", "homogeneity", "completeness", "accuracy"]


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        ("0000111222", "1110000221", [0.391144, 0.596162, 0.586860, 0.605763, 0.8]),
        ("0011", "0123", [0, 2 / 3, 1, 0.5, 0.5]),
        ("0000", "0011", [0, 0, 1, 0, 0.5]),
        ("0000", "0000", [1, 1, 1, 1, 1]),
    ],
)
def test_worked_examples(truth, predicted, expected):
    found = label_agreement(np.array(list(truth)), np.array(list(predicted)))
    assert found == pytest.approx(dict(zip(NAMES, expected, strict=True)), abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=30))
def test_accuracy_is_the_best_matching(pairs):
    truth, predicted = np.array(pairs).T
    best = max(sum(np.array([match[p] for p in predicted]) == truth) for match in permutations(range(4), 3))
    assert matched_accuracy(truth, predicted) == pytest.approx(best / len(pairs))


def vote_by_loop(coordinates, labels, n_neighbors):
    refined = []
    for i, here in enumerate(coordinates):
        distance = np.linalg.norm(coordinates - here, axis=1)
        order = [j for j in np.argsort(distance, kind="stable") if j != i][:n_neighbors]
        # Counter keeps the order of first occurrence, so of equal counts the nearest label wins.
        refined.append(Counter(labels[order].tolist()).most_common(1)[0][0])
    return np.array(refined)


@pytest.mark.parametrize("n_neighbors", [1, 4, 59])
def test_vote_equals_a_loop(n_neighbors):
    rng = np.random.default_rng(n_neighbors)
    coordinates, labels = rng.uniform(size=(60, 2)), rng.integers(0, 4, size=60)
    expected = vote_by_loop(coordinates, labels, n_neighbors)
    np.testing.assert_array_equal(refine_labels(coordinates, labels, n_neighbors), expected)


@pytest.mark.parametrize(
    ("coordinates", "labels", "n_neighbors", "expected"),
    [
        # A spot does not vote for itself: each of two coincident ones takes the label of the other.
        (np.zeros((4, 2)), [0, 1, 1, 1], 3, [1, 1, 1, 1]),
        ([[0.0, 0], [0, 0], [9, 9], [9, 8]], [0, 1, 2, 2], 1, [1, 0, 2, 2]),
        # All are updated from the old labels.
        (np.arange(4.0)[:, None] ** 1.1, [0, 1, 0, 1], 1, [1, 0, 1, 0]),
        # More coincident spots than neighbours: any of them vote.
        (np.zeros((10, 2)), np.full(10, 3), 2, np.full(10, 3)),
    ],
)
def test_vote_of_coincident_and_changing_spots(coordinates, labels, n_neighbors, expected):
    np.testing.assert_array_equal(refine_labels(np.array(coordinates), np.array(labels), n_neighbors), expected)
