"""Worked numbers of the authors' MAGIC (magic-impute 3.0.0 with graphtools 2.1.0), on six profiles of four genes."""

import numpy as np
import pytest
import torch
from scipy import sparse

from stdenoise.methods.magic import MAGIC, enough_steps
from stdenoise.spatial.graph import to_csr_tensor
from stdenoise.spatial.spots import Tissue
from stdenoise.stats.diffusion import adaptive_kernel, diffuse_, diffusion_operator

X = torch.tensor(
    [[1, 0, 2, 0], [1.5, 0.5, 1, 0], [0, 3, 0, 1], [0.2, 2.5, 0, 2], [4, 0, 0, 1], [3, 1, 0.5, 0]], dtype=torch.float64
)
A = {"knn": 2, "knn_max": 5, "decay": 1, "thresh": 1e-4}
B = {**A, "knn_max": 4}
C = {**A, "knn_max": 3, "decay": 2}
D = {**A, "decay": None}
X_A = [
    [1.551989, 1.029821, 0.735737, 0.560241],
    [1.610131, 1.025064, 0.707106, 0.545968],
    [1.230577, 1.516172, 0.484332, 0.829324],
    [1.248530, 1.499953, 0.484046, 0.839685],
    [1.958821, 0.983471, 0.550977, 0.633471],
    [1.865769, 1.025670, 0.600366, 0.568247],
]
X_B = [
    [1.634393, 1.043474, 0.684079, 0.575656],
    [1.646623, 1.051238, 0.672595, 0.573201],
    [1.176756, 1.520960, 0.521690, 0.792779],
    [1.221703, 1.476391, 0.532905, 0.782836],
    [2.001540, 0.850802, 0.652541, 0.529799],
    [1.787240, 1.014433, 0.636313, 0.570504],
]
X_AUTO = [
    [1.570766, 1.182479, 0.595301, 0.662823],
    [1.571176, 1.182153, 0.595373, 0.662665],
    [1.566522, 1.186600, 0.593917, 0.664997],
    [1.566643, 1.186502, 0.593939, 0.664951],
    [1.572609, 1.181426, 0.595263, 0.662439],
    [1.572408, 1.181458, 0.595343, 0.662409],
]
X_AUTO_FIVE = [1.575068, 1.172178, 0.601954, 0.656153]


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def diffused(settings, t):
    return diffuse_(diffusion_operator(X, **settings), X.clone(), t)


def test_kernel():
    upper = [
        *(1, 0.556172, 0.269972, 0.272891, 0.263135, 0.296224),
        *(1, 0.254792, 0.253556, 0.270126, 0.383226),
        *(1, 0.705433, 0.196849, 0.217567),
        *(1, 0.221531, 0.218219),
        *(1, 0.453357),
        1,
    ]
    kernel = adaptive_kernel(X, **A).to_dense()
    close(kernel[tuple(torch.triu_indices(6, 6))], upper)
    torch.testing.assert_close(kernel, kernel.t(), rtol=0, atol=0)


def test_rows_of_the_operator():
    close(diffusion_operator(X, **A).to_dense()[0], [0.376167, 0.209214, 0.101555, 0.102653, 0.098983, 0.111430])
    close(diffusion_operator(X, **B).to_dense()[2], [0.064968, 0.109394, 0.429349, 0.302877, 0, 0.093412])
    close(diffusion_operator(X, **D).to_dense()[0], [0.4, 0.4, 0, 0, 0, 0.2])


def test_diffused_values():
    close(diffused(A, 2), X_A)
    close(diffused(B, 3), X_B)
    close(diffused(C, 1)[0], [1.632447, 0.278595, 1.338767, 0.080277])
    close(diffused(C, 1)[4], [3.185411, 0.330643, 0.424519, 0.526165])
    close(diffused(D, 1)[0], [1.6, 0.4, 1.3, 0])
    close(diffused(D, 1)[1], [1.688889, 0.944444, 0.777778, 0.444444])


def test_automatic_number_of_steps():
    for t_max, t in ((20, 8), (5, 5), (2, 2)):
        n_steps, disparity = enough_steps(diffusion_operator(X, **A), X, t_max=t_max)
        assert n_steps == t
        assert len(disparity) == t - 1
        if t_max == 20:
            assert disparity[-1] < 1e-3 < disparity[-2]


def as_spots(values):
    """Spots whose normalised values are these."""
    matrix = sparse.csr_matrix(values.numpy())
    counts = sparse.csr_matrix((np.ones_like(matrix.data), matrix.indices, matrix.indptr), matrix.shape)
    spots = Tissue().with_counts(counts, list("abcd"), positions=None, device=torch.device("cpu"))
    vars(spots)["lognorm"] = to_csr_tensor(matrix, dtype=torch.float32)
    vars(spots)["depth_normalized"] = to_csr_tensor(matrix.expm1(), dtype=torch.float64)
    return spots


def run(values, **settings):
    return MAGIC(knn=2, **settings).fit(as_spots(values), seed=0, progress=False).mean


@pytest.mark.parametrize("n_pca", [None, 100])
def test_the_method(n_pca):
    for settings, expected in [
        ({"knn_max": 5, "t": 2}, X_A),
        ({"knn_max": 4, "t": 3}, X_B),
        ({"knn_max": 5, "t": "auto"}, X_AUTO),
        ({"knn_max": 5, "t": 2, "solver": "approximate"}, X_A),
    ]:
        close(run(X, n_pca=n_pca, transform="log1p", **settings), expected, atol=2e-6)


def test_the_method_stops_at_the_largest_number_of_steps():
    close(run(X, knn_max=5, t="auto", t_max=5, transform="log1p")[0], X_AUTO_FIVE, atol=2e-6)


def test_the_square_root_is_undone():
    expected = torch.tensor(X_A, dtype=torch.float64).square().log1p()
    close(run((X**2).log1p(), knn_max=5, t=2), expected.tolist(), atol=3e-6)
