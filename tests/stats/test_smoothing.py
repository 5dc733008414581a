import numpy as np
import pytest
import torch

from stdenoise.stats.smoothing import correlation_matrix, edge_contrast, median_off_diagonal, squared_differences


@pytest.mark.parametrize("n_genes", [2, 3, 6])
def test_correlations_and_their_median_equal_numpy_without_constants(n_genes):
    values = np.random.default_rng(n_genes).normal(size=(40, n_genes + 1))
    values[:, n_genes] = 5
    centred = values - values.mean(0)
    found = correlation_matrix(torch.tensor(centred.T @ centred))
    expected = np.corrcoef(values[:, :n_genes].T)
    np.testing.assert_allclose(found[:n_genes, :n_genes], expected, atol=1e-12)
    assert found[n_genes].isnan().all()
    assert found[:, n_genes].isnan().all()
    median = np.median(np.abs(expected[np.triu_indices(n_genes, 1)]))
    assert median_off_diagonal(found) == pytest.approx(median, abs=1e-12)
    assert np.isnan(median_off_diagonal(found[n_genes:, n_genes:]))


def test_edge_contrast():
    values = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0], [1.0, 1.0]]).double()
    differences = squared_differences(values, torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert differences.tolist() == [1.0, 9.0, 4.0]
    for found, crosses, expected in [
        (differences, [False, True, False], 9 / 2.5),
        (differences, [False, False, False], np.nan),
        (differences, [True, True, True], np.nan),
        # Spots of a region that do not differ but for rounding, and nothing that differs.
        (torch.tensor([4.0, 1e-14]).double(), [True, False], np.inf),
        (torch.tensor([4.0, 0.0]).double(), [True, False], np.inf),
        (torch.tensor([0.0, 4.0]).double(), [True, False], 0),
        (torch.zeros(2).double(), [True, False], np.nan),
    ]:
        assert edge_contrast(found, torch.tensor(crosses)) == pytest.approx(expected, rel=1e-15, nan_ok=True)
