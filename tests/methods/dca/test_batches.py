import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse
from sklearn.preprocessing import StandardScaler

from stdenoise.methods.dca.batches import make_batch, standardization
from stdenoise.spatial.graph import to_csr_tensor
from stdenoise.spatial.spots import Spots
from stdenoise.train.patches import Patches


def tissue(seed, n_spots, n_genes, n_empty):
    """Counts with a gene that is empty, one that follows the size factors exactly, and empty spots at the end."""
    rng = np.random.default_rng(seed)
    size_factors = rng.choice([0.5, 1.0, 2.0, 4.0], size=n_spots)
    counts = rng.poisson(rng.gamma(0.5, 1.0, size=(n_spots, n_genes))).astype(float)
    counts[:, 0] = 0
    counts[:, 1] = 6 * size_factors
    counts[n_spots - n_empty :] = 0
    return counts, size_factors


def make(counts, size_factors, n_empty, dtype=torch.float64):
    n_used = len(counts) - n_empty
    spots = Spots(
        counts=to_csr_tensor(sparse.csr_matrix(counts), dtype=dtype),
        size_factors=torch.tensor(size_factors, dtype=dtype),
        median_total=1.0,
        nonempty=torch.arange(len(counts)) < n_used,
        genes=tuple(f"g{j}" for j in range(counts.shape[1])),
    )
    data = Patches(spots)
    return data, standardization(data, n_used)


def take(data, statistics, rows):
    return make_batch(data.patch(np.asarray(rows), len(rows)), *statistics)


@given(
    seed=some.integers(0, 10_000),
    n_spots=some.integers(3, 30),
    n_genes=some.integers(2, 12),
    n_empty=some.integers(0, 1),
    n_blocks=some.integers(1, 6),
)
def test_a_batch_equals_a_dense_one(seed, n_spots, n_genes, n_empty, n_blocks):
    counts, size_factors = tissue(seed, n_spots, n_genes, n_empty)
    rows = np.random.default_rng(seed).permutation(n_spots)[:7]
    data, whole = make(counts, size_factors, n_empty)
    batch = take(data, whole, rows)
    values = np.log1p(counts / size_factors[:, None])
    used = values[: n_spots - n_empty]
    # The scaler divides by n, the published code by n - 1.
    expected = StandardScaler().fit(used).transform(values) * np.sqrt(1 - 1 / len(used))
    constant = used.std(0) < 1e-9
    expected[:, constant] = 0
    assert constant[:2].all()
    np.testing.assert_allclose(batch.x, expected[rows], atol=1e-8)

    dense = torch.zeros(len(rows) * n_genes, dtype=torch.float64)
    dense[batch.block.position] = batch.block.count
    taken = torch.from_numpy(counts)[rows]
    assert torch.equal(dense.view(len(rows), n_genes), taken)
    assert (batch.block.start, batch.block.stop) == (0, len(rows))
    torch.testing.assert_close(batch.block.log_factorial, torch.lgamma(taken + 1).sum())
    assert torch.equal(batch.size_factors, torch.from_numpy(size_factors)[rows])

    # The standardisation does not depend on the blocks it is taken over.
    entries = max(1, len(data.spots.counts.values()) // n_blocks)
    data.row_blocks = lambda: Patches.row_blocks(data, entries)
    torch.testing.assert_close(standardization(data, len(used)), whole, rtol=1e-12, atol=1e-12)


def test_single_precision_input_of_large_counts():
    counts, size_factors = tissue(0, 50, 8, 0)
    counts[:, 2:] *= 1e5
    rows = torch.arange(50)
    exact, single = (take(*make(counts, size_factors, 0, dtype), rows).x for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


def test_sparse_stays_sparse():
    counts = sparse.random_array((400, 300), density=0.02, random_state=0).ceil()
    data, statistics = make(counts.toarray(), np.ones(400), 0)
    parts = [*statistics, *vars(data).values(), *vars(data.spots).values()]
    held = [x.values().numel() if x.is_sparse_csr else x.numel() for x in parts if torch.is_tensor(x)]
    assert max(held) == counts.nnz
