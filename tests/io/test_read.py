import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

from stdenoise._io.read import select_genes
from stdenoise._io.write import Places, check_key_is_free, read_denoised, write_denoised
from stdenoise.spatial.normalize import log_normalize
from stdenoise.spatial.results import Denoised, collect


@pytest.fixture(scope="session")
def read(read_spots):
    return functools.partial(read_spots, graph_key="spatial")


def write(adata, result, *, key="made", positions=None):
    places = Places(key, adata.var_names, positions, is_choice=positions is not None)
    write_denoised(adata, result, places, {"method": "made", "layer": "X", "seed": 0})


def result_of(adata, n_genes=None, **parts):
    shape = (adata.n_obs, n_genes or adata.n_vars)
    return Denoised(mean=torch.arange(float(np.prod(shape))).reshape(shape), scale="counts", **parts)


# The front door


def test_counts(irregular, read):
    spots = read(irregular)
    assert spots.counts.layout == torch.sparse_csr
    assert spots.counts.dtype == torch.float32
    np.testing.assert_array_equal(spots.counts.to_dense(), irregular.X.toarray())
    assert spots.genes == tuple(irregular.var_names)


@pytest.mark.parametrize("positions", [None, [0, 4, 9], [2]])
def test_log_normalised_values_are_per_10_000_over_the_chosen_genes(irregular, positions, read):
    counts = irregular.X.toarray()[:, positions or slice(None)].astype(float)
    spots = read(irregular, positions=None if positions is None else np.array(positions))
    expected = np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    np.testing.assert_allclose(spots.lognorm.to_dense(), expected, rtol=1e-6)
    assert spots.genes == tuple(irregular.var_names[positions or slice(None)])


def test_log_normalised_values_have_the_pattern_of_the_counts(irregular, read):
    spots = read(irregular)
    assert torch.equal(spots.lognorm.crow_indices(), spots.counts.crow_indices())
    assert torch.equal(spots.lognorm.col_indices(), spots.counts.col_indices())


@pytest.mark.parametrize("positions", [None, [0, 4, 9]])
def test_size_factors_are_totals_of_all_genes_over_their_median_in_filled_spots(irregular, positions, read):
    total = irregular.X.toarray().sum(axis=1)
    spots = read(irregular, positions=None if positions is None else np.array(positions))
    expected = np.where(total > 0, total / np.median(total[total > 0]), 1)
    np.testing.assert_allclose(spots.size_factors, expected, rtol=1e-6)


def test_an_empty_spot_is_marked_and_has_size_factor_1(irregular, read):
    spots = read(irregular)
    at = irregular.obs_names.get_loc("spot7")
    assert spots.size_factors[at] == 1
    assert torch.nonzero(~spots.nonempty).flatten().tolist() == [at]


def test_a_spot_is_empty_by_all_its_genes_not_by_the_chosen_ones(irregular, read):
    spots = read(irregular, positions=np.array([irregular.var_names.get_loc("gene3")]))
    assert spots.counts.to_dense().sum() == 0
    assert spots.nonempty.sum() == 40


def test_totals_beyond_single_precision(read):
    import anndata as ad

    # 2^24 + 1 is no float32: the sum has to be wider.
    adata = ad.AnnData(np.array([[2**24, 1, 0], [2**24 + 1, 0, 0], [2**24, 0, 0]], dtype=np.int64))
    total = read(adata, graph_key=None).size_factors.double() * (2**24 + 1)
    assert total.max() == pytest.approx(2**24 + 1, abs=2)


@pytest.mark.parametrize("positions", [None, [0, 4, 9]])
def test_the_median_is_that_of_the_totals_over_all_genes(irregular, positions, read):
    total = irregular.X.toarray().sum(axis=1)
    spots = read(irregular, positions=None if positions is None else np.array(positions))
    assert spots.median_total == np.median(total[total > 0])
    assert isinstance(spots.median_total, float)


def test_stored_zeros_are_no_counts_and_the_input_is_left(irregular, freeze, read):
    matrix = sparse.csr_matrix(irregular.X)
    matrix.data[::3] = 0
    irregular.layers["zeros"] = matrix
    before = freeze(irregular.layers["zeros"])
    spots = read(irregular, layer="zeros")
    assert (spots.counts.values() > 0).all()
    np.testing.assert_array_equal(spots.counts.to_dense(), matrix.toarray())
    assert len(spots.lognorm.values()) == matrix.count_nonzero()
    assert freeze(irregular.layers["zeros"]) == before


def test_log_normalised_values_are_computed_once(irregular, read):
    spots = read(irregular)
    assert spots.lognorm is spots.lognorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_normalisation_is_that_of_double_precision(dtype):
    # One count beside 2^24 of them: their sum is no float32.
    counts = torch.tensor([[1.0, 2.0**24, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 1.0]], dtype=torch.float64)
    x = log_normalize(counts.to(dtype).to_sparse_csr()).to_dense()
    assert x.dtype == dtype
    expected = torch.log1p(1e4 * counts / counts.sum(1, keepdim=True).clamp(min=1))
    torch.testing.assert_close(x.double(), expected, rtol=1e-7 if dtype == torch.float32 else 1e-14, atol=0)


def test_duplicate_entries_are_summed_and_the_input_is_left(irregular, freeze, read):
    matrix = sparse.csr_matrix(([1.0, 2.0, 3.0], [4, 1, 4], [0, 3, *[3] * 40]), shape=(41, 10))
    irregular.layers["twice"] = matrix
    before = freeze(irregular.layers["twice"])
    spots = read(irregular, layer="twice")
    assert spots.counts.to_dense()[0].tolist() == [0, 2, 0, 0, 4, 0, 0, 0, 0, 0]
    assert freeze(irregular.layers["twice"]) == before


def test_tensors_do_not_share_memory_with_the_input(hexagonal, unchanged, read):
    with unchanged(hexagonal):
        spots = read(hexagonal)
        spots.counts.values().fill_(-1)
        spots.lognorm.values().fill_(-1)
        spots.graph.col.fill_(0)


@pytest.mark.parametrize("kind", ["spots", "result"])
def test_what_passes_the_doors_cannot_be_reassigned(hexagonal, kind, read):
    value = {"spots": read, "result": result_of}[kind](hexagonal)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)


def test_no_graph_is_read_where_none_is_needed(hexagonal, read):
    del hexagonal.obsp
    assert read(hexagonal, graph_key=None).graph is None


def test_graph(irregular, read):
    graph = read(irregular).graph
    dense = np.zeros((41, 41), dtype=bool)
    dense[graph.row, graph.col] = True
    np.testing.assert_array_equal(dense, irregular.obsp["spatial_connectivities"].toarray() > 0)


# Choice of genes


def test_genes_are_sorted_as_in_var(hexagonal):
    assert select_genes(hexagonal, None) is None
    np.testing.assert_array_equal(select_genes(hexagonal, ["gene9", "gene0", "gene4"]), [0, 4, 9])


@pytest.mark.parametrize("dtype", [bool, "boolean", object, np.int64])
def test_highly_variable_columns_of_any_type(hexagonal, dtype):
    marked = np.isin(np.arange(12), [3, 8])
    hexagonal.var["highly_variable"] = pd.array(marked, dtype=dtype) if dtype == "boolean" else marked.astype(dtype)
    np.testing.assert_array_equal(select_genes(hexagonal, "highly_variable"), [3, 8])


# The back door


def test_arrays_are_stored_as_they_come(hexagonal):
    result = result_of(hexagonal, dispersion=torch.full((61, 12), 2.0), latent=torch.ones(61, 4))
    write(hexagonal, result)
    np.testing.assert_array_equal(hexagonal.layers["made_mean"], result.mean)
    assert (hexagonal.layers["made_dispersion"] == 2).all()
    assert hexagonal.obsm["X_made"].shape == (61, 4)
    assert "made_dropout" not in hexagonal.layers


def test_stored_arrays_are_found_in_layers_or_obsm(hexagonal):
    write(hexagonal, result_of(hexagonal), key="all")
    write(hexagonal, result_of(hexagonal, 2, dropout=torch.zeros(61, 2)), key="some", positions=np.array([3, 5]))
    np.testing.assert_array_equal(read_denoised(hexagonal, "all").X, hexagonal.layers["all_mean"])
    some = read_denoised(hexagonal, "some")
    assert list(some.var_names) == ["gene3", "gene5"]
    assert set(some.layers) == {"dropout"}
    with pytest.raises(KeyError, match="'none' is not in the denoised results of adata, which has 'all', 'some'"):
        read_denoised(hexagonal, "none")


BAD_RESULTS = {
    "dropout is no tensor": {"dropout": "text"},
    "latent is no tensor": {"latent": "text"},
    "history is no mapping": {"history": 3},
    "dropout of other genes": {"dropout": torch.ones(61, 5)},
    "dispersion of other spots": {"dispersion": torch.ones(3, 12)},
    "latent of other spots": {"latent": torch.ones(60, 4)},
}


@pytest.mark.parametrize("bad", BAD_RESULTS)
@pytest.mark.parametrize("positions", [None, np.array([3, 5])], ids=["all", "some"])
def test_a_result_that_cannot_be_stored_leaves_everything_as_it_was(hexagonal, unchanged, bad, positions):
    n_genes = 12 if positions is None else 2
    write(hexagonal, result_of(hexagonal, latent=torch.ones(61, 2)))
    with unchanged(hexagonal), pytest.raises((ValueError, TypeError, AttributeError)):
        write(hexagonal, result_of(hexagonal, n_genes, **BAD_RESULTS[bad]), positions=positions)


def test_a_key_is_free_again_after_a_result_of_its_own(hexagonal):
    check_key_is_free(hexagonal, "made")
    write(hexagonal, result_of(hexagonal))
    check_key_is_free(hexagonal, "made")
    hexagonal.obsm["made_mean"] = np.ones((61, 2))
    with pytest.raises(ValueError, match="^obsm/made_mean exists and was not written by stdenoise"):
        check_key_is_free(hexagonal, "made")


# Blocks of results


@given(seed=some.integers(0, 10_000), n_spots=some.integers(1, 20), n_blocks=some.integers(1, 6))
def test_blocks_in_any_order_are_put_together(seed, n_spots, n_blocks):
    rng = np.random.default_rng(seed)
    mean, latent = (torch.from_numpy(rng.random((n_spots, width))) for width in (4, 2))
    links = rng.random((n_spots, n_spots)) * (rng.random((n_spots, n_spots)) < 0.3)
    blocks = []
    for rows in np.array_split(rng.permutation(n_spots), n_blocks):
        block = sparse.csr_matrix(links[rows])
        attention = tuple(torch.tensor(part) for part in (block.indptr, block.indices, block.data))
        part = Denoised(mean=mean[rows], scale="log1p", latent=latent[rows], attention=attention)
        blocks.append((torch.from_numpy(rows), part))
    whole = collect(blocks, n_spots, {"history": {"loss": [1.0, 0.5]}})
    assert torch.equal(whole.mean, mean)
    assert torch.equal(whole.latent, latent)
    assert (whole.dispersion, whole.dropout) == (None, None)
    assert (whole.scale, whole.history) == ("log1p", {"loss": [1.0, 0.5]})
    crow, col, weights = whole.attention
    joined = sparse.csr_matrix((weights.numpy(), col.numpy(), crow.numpy()), shape=(n_spots, n_spots))
    np.testing.assert_array_equal(joined.toarray(), links)
