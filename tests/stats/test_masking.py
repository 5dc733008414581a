import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as h
from scipy import sparse, stats

from stdenoise.stats.masking import draw_mask, masked_scores

EXAMPLE = sparse.csr_matrix(np.array([[0.0, 1, 2, 0], [3, 0, 4, 0], [0, 5, 6, 0]]))


@given(h.integers(0, 1000), h.floats(0.2, 0.9), h.sampled_from(["positive", "all"]))
def test_entries_are_drawn_once_and_from_the_right_ones(seed, fraction, entries):
    row, col = draw_mask(EXAMPLE, fraction, entries, np.random.default_rng(seed))
    assert len(row) == round(fraction * (6 if entries == "positive" else 12))
    assert len({*zip(row, col, strict=True)}) == len(row)
    assert (np.asarray(EXAMPLE[row, col]) > 0).all() or entries == "all"


def test_a_mask_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="fraction=0.01 of 6"):
        draw_mask(EXAMPLE, 0.01, "positive", np.random.default_rng(0))


def test_the_published_example():
    row, col = np.array([0, 1, 2]), np.array([1, 0, 2])
    scores = masked_scores(np.array([0.8, 2.5, 6.6]), np.asarray(EXAMPLE[row, col]).ravel(), col, min_masked=10)
    assert scores["rmse"] == pytest.approx(0.465475, abs=1e-6)
    assert scores["pearson"] == pytest.approx(0.992863, abs=1e-6)
    assert np.isnan(scores["pearson_gene"])


def test_correlation_of_each_gene_counts_once():
    rng = np.random.default_rng(0)
    gene = np.repeat([0, 2, 3], [50, 12, 9])
    actual = rng.normal(size=71) + 10 * gene
    predicted = actual + rng.normal(size=71)
    expected = np.mean([stats.pearsonr(actual[gene == g], predicted[gene == g])[0] for g in (0, 2)])
    scores = masked_scores(predicted, actual, gene, min_masked=10)
    assert scores["pearson_gene"] == pytest.approx(expected, rel=1e-12)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(actual, predicted)[0], rel=1e-12)


def test_a_constant_prediction_has_no_correlation():
    scores = masked_scores(np.full(30, 0.1), np.arange(30.0), np.zeros(30, dtype=int), min_masked=10)
    assert np.isnan([scores["pearson"], scores["pearson_gene"]]).all()
