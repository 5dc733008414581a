"""Worked numbers of the authors' kNN-smoothing (Python, version 2.1), on six profiles of five genes."""

import torch
from scipy import sparse

from stdenoise._base.random import torch_generator
from stdenoise.methods.knn_smoothing import KNNSmoothing, freeman_tukey, similar
from stdenoise.spatial.spots import Tissue
from stdenoise.stats.lowrank import principal_components

# Rows are genes here, as in the authors' layout.
X = [[5, 4, 0, 1, 0, 6], [0, 1, 7, 6, 2, 0], [3, 2, 1, 0, 9, 2], [1, 0, 4, 5, 1, 0], [2, 3, 0, 0, 3, 8]]
SUMS = {
    1: X,
    2: [[9, 9, 1, 1, 4, 11], [1, 1, 13, 13, 3, 0], [5, 5, 1, 1, 11, 5], [1, 1, 9, 9, 1, 1], [5, 5, 0, 0, 6, 10]],
    3: [
        *([15, 15, 1, 1, 9, 15], [1, 1, 15, 15, 3, 1], [7, 7, 10, 10, 14, 7], [1, 1, 10, 10, 2, 1]),
        [13, 13, 3, 3, 8, 13],
    ],
    4: [
        *([15, 15, 6, 6, 15, 15], [3, 3, 15, 15, 3, 3], [16, 16, 13, 13, 16, 16], [2, 2, 11, 11, 2, 2]),
        [16, 16, 5, 5, 16, 16],
    ],
}
COUNTS = torch.tensor(X, dtype=torch.float64).t().contiguous()


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_transform():
    close(freeman_tukey(COUNTS)[0], [4.876077, 1, 3.876126, 2.490464, 3.260863])


def test_components_and_distances():
    scores = principal_components(freeman_tukey(COUNTS), 2, generator=torch_generator(0)).scores
    close(scores[:, 0].abs(), [2.283751, 2.197672, 4.151999, 3.862563, 0.120253, 3.412887])
    close(scores[:, 1].abs(), [0.626644, 0.519817, 0.376832, 1.651850, 3.190915, 0.769436])
    close(torch.cdist(scores[:1], scores)[0], [0, 0.137192, 6.513512, 6.231229, 4.387993, 1.138129])


def test_neighbours():
    near = similar(COUNTS, 2, d=2, dither=0, generator=torch_generator(0))
    assert near.tolist() == [[0, 1], [1, 0], [2, 3], [3, 2], [4, 1], [5, 0]]


def test_sums():
    counts = sparse.csr_matrix(COUNTS.numpy())
    spots = Tissue().with_counts(counts, list("abcde"), positions=None, device=torch.device("cpu"))
    for k, expected in SUMS.items():
        for seed in (0, 1):
            method = KNNSmoothing(k=k, d=2, dither=0, output="sum")
            assert method.fit(spots, seed=seed, progress=False).mean.t().tolist() == expected
