"""Worked numbers of the published ALRA code."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

from stdenoise.methods.alra import ALRA
from stdenoise.spatial.graph import to_csr_tensor
from stdenoise.spatial.normalize import lognorm
from stdenoise.stats.lowrank import truncated_svd

COUNTS = np.array(
    [
        [5, 0, 3, 1, 2, 0],
        [4, 1, 2, 0, 3, 1],
        [0, 7, 1, 4, 0, 2],
        [1, 6, 0, 5, 0, 3],
        [0, 2, 9, 1, 3, 0],
        [6, 0, 2, 0, 8, 1],
        [2, 0, 0, 3, 1, 4],
        [0, 3, 1, 2, 0, 5],
    ],
    dtype=float,
)
NORMALISED_0 = [8.422103, 0, 7.911424, 6.813544, 7.506142, 0]
SINGULAR_VALUES = [36.296470, 17.216203, 12.712610, 9.318039, 5.598933, 4.406051]
FITTED = {
    0: [8.020867, 1.244066, 6.019452, 2.970424, 8.416818, 4.099987],
    2: [0.899100, 9.090161, 4.804910, 8.267524, 0.222266, 7.247199],
}
COMPLETED = {
    0.001: {
        0: [8.437331, 6.739369, 7.787187, 6.503093, 8.165009, 6.234296],
        2: [0, 8.574014, 6.572682, 8.256003, 0, 8.358965],
        4: [7.456672, 7.653276, 6.920957, 7.354351, 7.446585, 7.217044],
        5: [8.593777, 0, 7.827172, 0, 8.282210, 6.378826],
        7: [6.666180, 8.559089, 6.584868, 8.252714, 6.857926, 8.379510],
    },
    0.25: {
        0: [8.336889, 0, 7.654368, 6.813544, 8.093013, 0],
        2: [0, 8.509194, 6.572682, 8.204789, 0, 8.313222],
        7: [0, 8.491937, 6.813544, 8.200895, 0, 8.338488],
    },
}
NONZERO = {0.001: 0.9167, 0.25: 0.8333}


MATRIX = to_csr_tensor(lognorm(sparse.csr_matrix(COUNTS)), dtype=torch.float64)


def complete(**params):
    return ALRA(**params).fit(SimpleNamespace(lognorm=MATRIX), seed=0, progress=False)


def close(actual, expected):
    # Results are single precision, whose last digit is about the sixth decimal here.
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=1.5e-6)


def test_normalised_counts():
    close(MATRIX.to_dense()[0], NORMALISED_0)
    assert (MATRIX.to_dense() > 0).double().mean() == 0.6875


def test_singular_values_and_low_rank_approximation():
    close(complete(rank=6).history["singular_values"], SINGULAR_VALUES)
    result = complete(rank=2)
    close(result.history["singular_values"], SINGULAR_VALUES[:2])
    u, s, vt = truncated_svd(MATRIX, 2, generator=torch.Generator().manual_seed(0))
    fitted = (u * s) @ vt
    for row, expected in FITTED.items():
        close(fitted[row], expected)
    # The scores that are returned are those of this approximation.
    close(result.latent.double() @ vt, fitted)


@pytest.mark.parametrize("quantile", COMPLETED)
def test_completed_matrix(quantile):
    completed = complete(rank=2, quantile=quantile).mean[:]
    for row, expected in COMPLETED[quantile].items():
        close(completed[row], expected)
    assert (completed > 0).double().mean() == pytest.approx(NONZERO[quantile], abs=5e-5)


def test_which_values_are_zeroed():
    completed = complete(rank=2).mean[:]
    # Gene 3 of spot 2 is zeroed too, and put back as it was observed.
    assert np.argwhere(completed.numpy() == 0).tolist() == [[2, 0], [2, 4], [5, 1], [5, 3]]
    close(completed[2, 2], MATRIX.to_dense()[2, 2])
