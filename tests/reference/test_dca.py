"""Worked numbers of the published DCA code."""

import numpy as np
import pytest
import torch
from scipy import sparse

from stdenoise.methods.dca import DCA, DCAConfig
from stdenoise.methods.dca.batches import make_batch, standardization
from stdenoise.methods.dca.module import DCAModule
from stdenoise.nn.counts import activate
from stdenoise.spatial.spots import Spots, Tissue
from stdenoise.train.patches import Patches

DTYPES = [torch.float64, torch.float32]
# The published numbers are in single precision: the last of their seven digits is not certain.
TOLERANCE = 2e-6

Y = [[0.0, 1, 5], [2, 0, 0]]
MU = [[0.5, 1.2, 3], [1.5, 0.1, 2.5]]
THETA = [[1.0, 2, 0.5], [10, 0.3, 1.5]]
PI = [[0.2, 0.1, 0.05], [0.3, 0.6, 0.4]]
ZINB = [[0.310155, 1.333050, 3.197044], [1.820724, 0.033633, 0.620299]]


def close(actual, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=0, atol=TOLERANCE)


def two_spots(y, mu, likelihood, dtype, theta=None, pi=None, ridge=0.0):
    """Loss of a module whose heads give exactly these values: its last hidden layer is the identity."""
    y, mu = torch.tensor(y, dtype=dtype), torch.tensor(mu, dtype=dtype)
    config = DCAConfig(likelihood=likelihood, ridge=ridge, hidden=[len(y)])
    module = DCAModule(y.shape[1], config, generator=torch.Generator()).to(dtype)
    module.encode = lambda x: (x, torch.eye(len(y), dtype=dtype))

    def head(logits):
        return torch.nn.Parameter(torch.cat([logits, torch.zeros(1, logits.shape[1], dtype=dtype)]))

    module.mean = head(mu.log())
    if theta is not None:
        theta = torch.tensor(theta, dtype=dtype)
        module.dispersion = torch.nn.Parameter(theta.log()) if theta.ndim == 1 else head(theta.expm1().log())
    if pi is not None:
        module.dropout = head(torch.tensor(pi, dtype=dtype).logit())
    spots = Spots(
        counts=y.to_sparse_csr(),
        size_factors=torch.ones(len(y), dtype=dtype),
        median_total=1.0,
        nonempty=torch.ones(len(y), dtype=torch.bool),
        genes=tuple(map(str, range(y.shape[1]))),
    )
    return module.loss(batch_of(spots))


def batch_of(spots):
    """All spots, none of them empty, as one batch."""
    data = Patches(spots)
    return make_batch(data.patch(np.arange(data.n_spots), data.n_spots), *standardization(data, data.n_spots))


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_those_of_each_entry(dtype):
    close(two_spots(Y, MU, "nb-conddisp", dtype, THETA), 1.300084)
    close(two_spots(Y, MU, "nb", dtype, THETA[0]), 1.285051)
    close(two_spots(Y, MU, "zinb-conddisp", dtype, THETA, PI), 1.219151)
    close(two_spots(Y, MU, "zinb-conddisp", dtype, THETA, PI, ridge=0.1), 1.230193)
    close(two_spots(Y, MU, "poisson", dtype), 1.299054)
    for i, j in np.ndindex(2, 3):
        y, mu, theta, pi = ([[x[i][j]]] for x in (Y, MU, THETA, PI))
        close(two_spots(y, mu, "zinb-conddisp", dtype, theta, pi), ZINB[i][j])


COUNTS = sparse.csr_matrix(np.array([[1, 0, 3], [4, 2, 2], [0, 1, 1], [5, 0, 0]], dtype=np.float32))
SIZE_FACTORS = [0.888889, 1.777778, 0.444444, 1.111111]
INPUT = [
    [-0.215926, -0.826970, 0.973648],
    [0.373980, 0.463318, -0.153442],
    [-1.262459, 1.190622, 0.509705],
    [1.104405, -0.826970, -1.329911],
]


def test_size_factors_and_standardised_input():
    spots = Tissue().with_counts(COUNTS, ["a", "b", "c"], positions=None, device=torch.device("cpu"))
    close(spots.size_factors, SIZE_FACTORS)
    batch = batch_of(spots)
    close(batch.x, INPUT)
    target = torch.zeros(12, dtype=torch.float64)
    target[batch.block.position] = batch.block.count
    np.testing.assert_array_equal(target.reshape(4, 3).numpy(), COUNTS.toarray())


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(dtype):
    low, high, zero = (torch.tensor([[x]], dtype=dtype) for x in (-20.0, 15.0, 0.0))
    one = torch.ones(1, dtype=dtype)
    mean, dispersion = activate([low, low], one)
    torch.testing.assert_close(mean.item(), 1e-5, rtol=1e-6, atol=0)
    torch.testing.assert_close(dispersion.item(), 1e-4, rtol=1e-6, atol=0)
    torch.testing.assert_close(activate([high, high], one)[0].item(), 1e6, rtol=1e-6, atol=0)
    close(activate([zero, zero], one)[1], [[0.693147]])


@pytest.mark.parametrize("likelihood", ["nb-conddisp", "zinb-conddisp", "poisson"])
def test_three_groups_come_nearer_to_their_means(likelihood):
    rng = np.random.default_rng(0)
    depth = rng.lognormal(0, 0.3, size=(500, 1))
    mean = depth * rng.gamma(0.5, 2.0, size=(3, 100))[rng.integers(3, size=500)]
    dispersion = 2.0
    counts = rng.poisson(rng.gamma(dispersion, mean / dispersion)).astype(np.float32)
    counts = sparse.csr_matrix(counts)
    spots = Tissue().with_counts(counts, list(range(100)), positions=None, device=torch.device("cpu"))
    denoised = DCA(likelihood=likelihood, n_epochs=15).fit(spots, seed=0, progress=False).mean.numpy()
    of_raw, of_denoised = (
        np.corrcoef(np.log1p(mean).ravel(), np.log1p(x).ravel())[0, 1] for x in (counts.toarray(), denoised)
    )
    assert of_raw < 0.70
    assert of_denoised > 0.9
