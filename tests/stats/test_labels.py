"""Agreement of labels against worked numbers and enumeration, and the vote of neighbours against a plain loop."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdenoise.stats.labels import label_agreement, matched_accuracy, refine_labels

TRUTH = np.array(list("0000111222"))
PREDICTED = np.array(list("1110000221"))


def test_worked_example():
    expected = {"ari": 0.391144, "nmi": 0.596162, "homogeneity": 0.586860, "completeness": 0.605763, "accuracy": 0.8}
    assert label_agreement(TRUTH, PREDICTED) == pytest.approx(expected, abs=1e-6)


def test_homogeneity_is_about_clusters_and_completeness_about_classes():
    split = label_agreement(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]))
    assert split["homogeneity"] == pytest.approx(1)
    assert split["completeness"] == pytest.approx(0.5)


def test_a_single_class():
    alone = label_agreement(np.zeros(4), np.zeros(4))
    assert set(alone.values()) == {1.0}
    split = label_agreement(np.zeros(4), np.array([0, 0, 1, 1]))
    assert split == pytest.approx({"ari": 0, "nmi": 0, "homogeneity": 1, "completeness": 0, "accuracy": 0.5})


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
        votes = labels[order].tolist()
        # Counter keeps the order of first occurrence, so of equal counts the nearest label wins.
        refined.append(Counter(votes).most_common(1)[0][0])
    return np.array(refined)


@pytest.mark.parametrize("n_neighbors", [1, 2, 4, 7, 59])
def test_vote_equals_a_loop(n_neighbors):
    rng = np.random.default_rng(n_neighbors)
    coordinates, labels = rng.uniform(size=(60, 2)), rng.integers(0, 4, size=60)
    np.testing.assert_array_equal(
        refine_labels(coordinates, labels, n_neighbors), vote_by_loop(coordinates, labels, n_neighbors)
    )


def test_a_spot_does_not_vote_for_itself_even_among_coincident_ones():
    coordinates = np.zeros((4, 2))
    np.testing.assert_array_equal(refine_labels(coordinates, np.array([0, 1, 1, 1]), 3), [1, 1, 1, 1])
    # Two coincident spots of different labels, one neighbour: each takes the label of the other.
    pair = np.array([[0.0, 0], [0, 0], [9, 9], [9, 8]])
    np.testing.assert_array_equal(refine_labels(pair, np.array([0, 1, 2, 2]), 1), [1, 0, 2, 2])


def test_more_coincident_spots_than_neighbours():
    refined = refine_labels(np.zeros((10, 2)), np.repeat([0, 1], 5), 2)
    assert refined.shape == (10,)
    assert set(refined) <= {0, 1}


def test_all_spots_are_updated_from_the_old_labels():
    coordinates = np.arange(4.0)[:, None] ** 1.1
    np.testing.assert_array_equal(refine_labels(coordinates, np.array([0, 1, 0, 1]), 1), [1, 0, 1, 0])
