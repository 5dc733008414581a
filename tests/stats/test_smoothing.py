import numpy as np
import pytest
import torch

from stdenoise.stats.smoothing import correlation_matrix, edge_contrast, median_off_diagonal, squared_differences


def test_correlation_matrix_equals_numpy_and_leaves_constants_undefined():
    values = np.random.default_rng(0).normal(size=(40, 6))
    values[:, 2] = 5
    centred = values - values.mean(0)
    found = correlation_matrix(torch.tensor(centred.T @ centred)).numpy()
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(found[np.ix_(others, others)], np.corrcoef(values[:, others].T), atol=1e-12)
    assert np.isnan(found[2]).all()
    assert np.isnan(found[:, 2]).all()


@pytest.mark.parametrize("n_genes", [2, 3, 4, 5])
def test_median_of_pairs(n_genes):
    r = np.corrcoef(np.random.default_rng(n_genes).normal(size=(n_genes, 9)))
    expected = np.median(np.abs(r[np.triu_indices(n_genes, 1)]))
    assert median_off_diagonal(torch.tensor(r)) == pytest.approx(expected, abs=1e-15)


def test_median_of_no_pair():
    assert np.isnan(median_off_diagonal(torch.ones(1, 1)))
    assert np.isnan(median_off_diagonal(torch.full((3, 3), torch.nan)))


def test_edge_contrast_by_hand():
    values = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0], [1.0, 1.0]]).double()
    pairs = torch.tensor([[0, 1, 2], [1, 2, 3]])
    differences = squared_differences(values, pairs)
    assert differences.tolist() == [1.0, 9.0, 4.0]
    assert edge_contrast(differences, torch.tensor([False, True, False])) == 9 / 2.5
    assert np.isnan(edge_contrast(differences, torch.tensor([False, False, False])))
    assert np.isnan(edge_contrast(differences, torch.tensor([True, True, True])))


def test_edge_contrast_without_differences():
    crosses = torch.tensor([True, False])
    assert edge_contrast(torch.tensor([4.0, 1e-14]).double(), crosses) == np.inf
    assert edge_contrast(torch.tensor([4.0, 0.0]).double(), crosses) == np.inf
    assert edge_contrast(torch.tensor([0.0, 4.0]).double(), crosses) == 0
    assert np.isnan(edge_contrast(torch.zeros(2).double(), crosses))
