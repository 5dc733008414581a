import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as h
from scipy import sparse

import stdenoise as st
from stdenoise._io.expression import read_expression
from stdenoise.spatial.normalize import gene_blocks, lognorm


def dense(values):
    return values.toarray() if sparse.issparse(values) else values


def test_x_is_read_as_it_is(irregular):
    expression = read_expression(irregular)
    assert (expression.values != irregular.X).nnz == 0
    assert list(expression.genes) == list(irregular.var_names)
    assert expression.scale == "counts"


def test_layers_keep_their_kind(hexagonal):
    assert isinstance(read_expression(hexagonal, "true_mean").values, np.ndarray)
    assert sparse.issparse(read_expression(hexagonal).values)


@pytest.mark.parametrize("name", ["dusted", "dusted_mean"])
@pytest.mark.parametrize("genes", [None, ["gene7", "gene1"]])
def test_a_result_is_found_by_its_key_and_by_its_layer(hexagonal, small, name, genes):
    st.tl.denoise(hexagonal, genes=genes, **small)
    expression = read_expression(hexagonal, name)
    np.testing.assert_array_equal(expression.values, st.get.denoised(hexagonal).X)
    assert list(expression.genes) == (["gene1", "gene7"] if genes else list(hexagonal.var_names))


def test_the_scale_of_a_result_is_known(hexagonal):
    st.tl.denoise(hexagonal, method="pca_reconstruction", n_components=2)
    st.tl.denoise(hexagonal, method="gene_mean")
    assert read_expression(hexagonal, "pca_reconstruction").scale == "log1p"
    assert read_expression(hexagonal, "gene_mean").scale == "counts"
    assert read_expression(hexagonal, "gene_mean", scale="log1p").scale == "log1p"


def test_values_on_the_log_scale_get_no_second_logarithm(hexagonal):
    st.tl.denoise(hexagonal, method="pca_reconstruction", n_components=2)
    expression = read_expression(hexagonal, "pca_reconstruction")
    assert expression.on_scale("log1p") is expression.values


def test_genes_come_in_the_order_asked_for(irregular):
    expression = read_expression(irregular, genes=["gene5", "gene2"])
    np.testing.assert_array_equal(dense(expression.values), irregular[:, ["gene5", "gene2"]].X.toarray())


def test_highly_variable_genes(irregular):
    irregular.var["highly_variable"] = np.arange(10) % 3 == 0
    assert list(read_expression(irregular, genes="highly_variable").genes) == ["gene0", "gene3", "gene6", "gene9"]


@given(h.integers(0, 10_000))
def test_lognorm_equals_a_dense_formula(seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.6, (rng.integers(1, 9), rng.integers(1, 9))).astype(float)
    total = counts.sum(1, keepdims=True)
    expected = np.log1p(1e4 * counts / np.where(total > 0, total, 1))
    np.testing.assert_allclose(lognorm(counts), expected, rtol=1e-12)
    np.testing.assert_allclose(lognorm(sparse.csr_matrix(counts)).toarray(), expected, rtol=1e-12)


def test_reading_changes_nothing(irregular, unchanged):
    with unchanged(irregular):
        lognorm(read_expression(irregular).values)
        for _, block in gene_blocks(irregular.X, block_entries=80, device=torch.device("cpu"), dtype=torch.float64):
            block.zero_()


@pytest.mark.parametrize("kind", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("block_entries", [1, 30, 10**6])
def test_blocks_of_genes_make_up_the_matrix(kind, block_entries):
    values = np.arange(40.0).reshape(8, 5)
    blocks = list(
        gene_blocks(kind(values), block_entries=block_entries, device=torch.device("cpu"), dtype=torch.float64)
    )
    np.testing.assert_array_equal(torch.cat([block for _, block in blocks], dim=1), values)
    assert [columns.start for columns, _ in blocks] == list(range(0, 5, blocks[0][1].shape[1]))


@pytest.mark.parametrize(
    ("layer", "genes", "error", "message"),
    [
        ("true_men", None, KeyError, "'true_men' is neither a layer nor a denoised result.*Did you mean 'true_mean'"),
        (3, None, TypeError, "layer must be a name or None, not 3"),
        (None, ["gene1", "gen2"], KeyError, "1 of 2 genes are not in adata.X.*gen2"),
        (None, "variable", ValueError, "genes='variable' is not valid"),
        (None, "highly_variable", KeyError, "Run sc.pp.highly_variable_genes"),
        (None, [], ValueError, "selects no gene"),
    ],
)
def test_bad_names_are_refused(hexagonal, layer, genes, error, message):
    with pytest.raises(error, match=message):
        read_expression(hexagonal, layer, genes=genes)


def test_bad_values_are_refused(hexagonal):
    hexagonal.layers["bad"] = np.full(hexagonal.shape, np.nan)
    with pytest.raises(ValueError, match="732 NaN or infinite"):
        read_expression(hexagonal, "bad")
    hexagonal.obsm["text"] = pd.DataFrame({"a": ["x"] * 61}, index=hexagonal.obs_names)
    with pytest.raises(TypeError, match="must hold real numbers"):
        read_expression(hexagonal, "text")
    with pytest.raises(ValueError, match="scale='log' is not valid"):
        read_expression(hexagonal, scale="log")
