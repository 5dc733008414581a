import math

import numpy as np
import pytest
import torch

from stdenoise.stats.soundness import components, gene_correlations


def low_rank(n_spots, n_genes, variances, seed=0):
    """A matrix whose principal components have these variances."""
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(n_spots, len(variances)))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(rng.normal(size=(n_genes, len(variances))))[0]
    return torch.tensor(5 + (left * np.sqrt(variances)) @ right.T)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
@pytest.mark.parametrize(("variances", "first_two", "rank"), [([1.0], 1, 1), ([2, 1, 1], 0.75, 2 * 2**0.5)])
def test_components_of_known_variances(shape, variances, first_two, rank):
    # exp(H) of shares 1/2, 1/4, 1/4 is 2 sqrt(2).
    assert components(low_rank(*shape, variances)) == pytest.approx((first_two, rank), rel=1e-6)


def test_a_constant_matrix_has_rank_one():
    first_two, rank = components(torch.full((8, 5), 0.3))
    assert math.isnan(first_two)
    assert rank == 1


def test_correlations_are_those_of_numpy():
    first, second = np.random.default_rng(0).normal(size=(2, 50, 3))
    second[:, 1], second[:, 2] = -first[:, 1], 1
    found = gene_correlations(torch.tensor(first), torch.tensor(second))
    assert found[:2].tolist() == pytest.approx([np.corrcoef(first[:, 0], second[:, 0])[0, 1], -1])
    assert math.isnan(found[2])
