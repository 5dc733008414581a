import functools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from stdenoise._io.read import layers_of, select_genes
from stdenoise._io.write import Places, check_key_is_free, read_denoised, write_denoised
from stdenoise.spatial.normalize import lognorm
from stdenoise.spatial.results import Block


@pytest.fixture(scope="session")
def read(read_spots):
    return functools.partial(read_spots, graph_key="spatial")


def write(adata, result, *, key="made", positions=None):
    places = Places(key, adata.var_names, positions, is_choice=positions is not None)
    write_denoised(adata, result, places, {"method": "made", "layer": "X", "seed": 0})


def result_of(adata, n_genes=None, **parts):
    shape = (adata.n_obs, n_genes or adata.n_vars)
    return Block(mean=torch.arange(float(np.prod(shape))).reshape(shape), scale="counts", **parts)


# The front door


@pytest.mark.parametrize("positions", [None, [0, 4, 9], [2]])
def test_counts_depths_and_logarithms(irregular, positions, read):
    columns = positions or slice(None)
    counts, chosen = irregular.X.toarray().astype(float), irregular.X.toarray()[:, columns].astype(float)
    total = counts.sum(axis=1)
    median = np.median(total[total > 0])
    empty = irregular.obs_names.get_loc("spot7")
    spots = read(irregular, positions=None if positions is None else np.array(positions))
    assert spots.genes == tuple(irregular.var_names[columns])
    assert spots.counts.layout == torch.sparse_csr
    assert spots.counts.dtype == torch.float32
    np.testing.assert_array_equal(spots.counts.to_dense(), chosen)
    # Depth is over all genes, logarithms are per 10,000 over the chosen ones.
    np.testing.assert_allclose(spots.size_factors, np.where(total > 0, total / median, 1), rtol=1e-6)
    assert spots.size_factors[empty] == 1
    assert torch.nonzero(~spots.nonempty).flatten().tolist() == [empty]
    assert spots.median_total == median
    assert isinstance(spots.median_total, float)
    expected = np.log1p(1e4 * chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1))
    np.testing.assert_allclose(spots.lognorm.to_dense(), expected, rtol=1e-6)
    assert torch.equal(spots.lognorm.crow_indices(), spots.counts.crow_indices())
    assert torch.equal(spots.lognorm.col_indices(), spots.counts.col_indices())
    assert spots.lognorm is spots.lognorm


def test_a_spot_is_empty_by_all_its_genes_not_by_the_chosen_ones(irregular, read):
    spots = read(irregular, positions=np.array([irregular.var_names.get_loc("gene3")]))
    assert spots.counts.to_dense().sum() == 0
    assert spots.nonempty.sum() == 40


def test_totals_beyond_single_precision(read):
    # 2^24 + 1 is no float32: the sum has to be wider.
    adata = ad.AnnData(np.array([[2**24, 1, 0], [2**24 + 1, 0, 0], [2**24, 0, 0]], dtype=np.int64))
    total = read(adata, graph_key=None).size_factors.double() * (2**24 + 1)
    assert total.max() == pytest.approx(2**24 + 1, abs=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_normalisation_is_that_of_double_precision(dtype):
    # One count beside 2^24 of them: their sum is no float32.
    counts = torch.tensor([[1.0, 2.0**24, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 1.0]], dtype=torch.float64)
    x = lognorm(counts.to(dtype).to_sparse_csr()).to_dense()
    assert x.dtype == dtype
    expected = torch.log1p(1e4 * counts / counts.sum(1, keepdim=True).clamp(min=1))
    torch.testing.assert_close(x.double(), expected, rtol=1e-7 if dtype == torch.float32 else 1e-14, atol=0)


def test_stored_zeros_and_duplicate_entries_are_left_in_the_input_alone(irregular, unchanged, read):
    zeros = sparse.csr_matrix(irregular.X)
    zeros.data[::3] = 0
    irregular.layers["zeros"] = zeros
    irregular.layers["twice"] = sparse.csr_matrix(([1.0, 2.0, 3.0], [4, 1, 4], [0, 3, *[3] * 40]), shape=(41, 10))
    with unchanged(irregular):
        spots = read(irregular, layer="zeros")
        assert (spots.counts.values() > 0).all()
        np.testing.assert_array_equal(spots.counts.to_dense(), zeros.toarray())
        assert len(spots.lognorm.values()) == zeros.count_nonzero()
        assert read(irregular, layer="twice").counts.to_dense()[0].tolist() == [0, 2, 0, 0, 4, 0, 0, 0, 0, 0]


def test_tensors_do_not_share_memory_with_the_input(hexagonal, unchanged, read):
    with unchanged(hexagonal):
        spots = read(hexagonal)
        spots.counts.values().fill_(-1)
        spots.lognorm.values().fill_(-1)
        spots.graph.col.fill_(0)


def test_chosen_genes_are_sorted_as_in_var_and_marked_by_any_type(hexagonal):
    assert select_genes(hexagonal, None) is None
    np.testing.assert_array_equal(select_genes(hexagonal, ["gene9", "gene0", "gene4"]), [0, 4, 9])
    marked = np.isin(np.arange(12), [3, 8])
    for dtype in (bool, "boolean", object, np.int64):
        hexagonal.var["highly_variable"] = pd.array(marked, dtype=dtype) if dtype == "boolean" else marked.astype(dtype)
        np.testing.assert_array_equal(select_genes(hexagonal, "highly_variable"), [3, 8])


# The back door


def test_arrays_are_stored_as_they_come_and_found_again(hexagonal):
    full = torch.full((61, 12), 2.0)
    write(hexagonal, result_of(hexagonal, dispersion=full, latent=torch.ones(61, 4)), key="all")
    write(hexagonal, result_of(hexagonal, 2, dropout=torch.zeros(61, 2)), key="some", positions=np.array([5, 3]))
    np.testing.assert_array_equal(hexagonal.layers["all_mean"], result_of(hexagonal).mean)
    assert (hexagonal.layers["all_dispersion"] == 2).all()
    assert hexagonal.obsm["X_all"].shape == (61, 4)
    assert "all_dropout" not in hexagonal.layers
    np.testing.assert_array_equal(read_denoised(hexagonal, "all").X, hexagonal.layers["all_mean"])
    some = read_denoised(hexagonal, "some")
    assert list(some.var_names) == ["gene3", "gene5"]
    np.testing.assert_array_equal(some.X, result_of(hexagonal, 2).mean[:, [1, 0]])
    assert set(layers_of(some)) == {"dropout"}
    with pytest.raises(KeyError, match="'none' .* has 'all', 'some'"):
        read_denoised(hexagonal, "none")
    # What was written under a key is free again, and nothing else.
    check_key_is_free(hexagonal, "all")
    hexagonal.obsm["all_mean"] = np.ones((61, 2))
    with pytest.raises(ValueError, match="^obsm/all_mean exists"):
        check_key_is_free(hexagonal, "all")


BAD_RESULTS = [
    {"dropout": "text"},
    {"history": 3},
    {"dropout": torch.ones(61, 5)},
    {"dispersion": torch.ones(3, 12)},
    {"latent": torch.ones(60, 4)},
]


@pytest.mark.parametrize("positions", [None, np.array([3, 5])], ids=["all", "some"])
def test_a_result_that_cannot_be_stored_leaves_everything_as_it_was(hexagonal, unchanged, positions):
    write(hexagonal, result_of(hexagonal, latent=torch.ones(61, 2)))
    for bad in BAD_RESULTS:
        with unchanged(hexagonal), pytest.raises((ValueError, TypeError, AttributeError)):
            write(hexagonal, result_of(hexagonal, None if positions is None else 2, **bad), positions=positions)
