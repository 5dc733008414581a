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


def blocks_of(values, entries):
    return list(gene_blocks(values, block_entries=entries, device=torch.device("cpu"), dtype=torch.float64))


def test_a_matrix_is_read_as_it_is(irregular, hexagonal, unchanged):
    with unchanged(irregular):
        expression = read_expression(irregular)
        assert (expression.values != irregular.X).nnz == 0
        assert list(expression.genes) == list(irregular.var_names)
        assert expression.scale == "counts"
        lognorm(expression.values)
        for _, block in blocks_of(irregular.X, 80):
            block.zero_()
    assert isinstance(read_expression(hexagonal, "true_mean").values, np.ndarray)


@pytest.mark.parametrize("genes", [None, ["gene7", "gene1"]])
def test_a_result_is_found_by_its_key_and_by_its_layer(hexagonal, genes):
    st.tl.denoise(hexagonal, "gene_mean", genes=genes)
    for name in ("gene_mean", "gene_mean_mean"):
        expression = read_expression(hexagonal, name)
        np.testing.assert_array_equal(expression.values, st.get.denoised(hexagonal, "gene_mean").X)
        assert list(expression.genes) == (["gene1", "gene7"] if genes else list(hexagonal.var_names))


def test_the_scale_of_a_result_is_known_so_that_it_gets_no_second_logarithm(hexagonal):
    st.tl.denoise(hexagonal, method="pca_reconstruction", n_components=2)
    st.tl.denoise(hexagonal, method="gene_mean")
    expression = read_expression(hexagonal, "pca_reconstruction")
    assert expression.scale == "log1p"
    assert expression.on_scale("log1p") is expression.values
    assert read_expression(hexagonal, "gene_mean").scale == "counts"
    assert read_expression(hexagonal, "gene_mean", scale="log1p").scale == "log1p"


def test_genes_come_in_the_order_asked_for(irregular):
    values = read_expression(irregular, genes=["gene5", "gene2"]).values
    np.testing.assert_array_equal(values.toarray(), irregular[:, ["gene5", "gene2"]].X.toarray())
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


@pytest.mark.parametrize("kind", [sparse.csr_matrix, np.asarray])
def test_blocks_of_genes_make_up_the_matrix(kind):
    values = np.arange(40.0).reshape(8, 5)
    for entries in (1, 30, 10**6):
        blocks = blocks_of(kind(values), entries)
        np.testing.assert_array_equal(torch.cat([block for _, block in blocks], dim=1), values)
        assert [columns.start for columns, _ in blocks] == list(range(0, 5, blocks[0][1].shape[1]))


def test_what_cannot_be_read_is_named(hexagonal):
    hexagonal.layers["bad"] = np.full(hexagonal.shape, np.nan)
    hexagonal.obsm["text"] = pd.DataFrame({"a": ["x"] * 61}, index=hexagonal.obs_names)
    for layer, options, error, message in [
        ("true_men", {}, KeyError, "'true_men'.*Did you mean 'true_mean'"),
        (3, {}, TypeError, "not 3"),
        (None, {"genes": ["gene1", "gen2"]}, KeyError, "1 of 2 .*gen2"),
        (None, {"genes": "variable"}, ValueError, "'variable'"),
        (None, {"genes": "highly_variable"}, KeyError, "sc.pp.highly_variable_genes"),
        (None, {"genes": []}, ValueError, "no gene"),
        ("bad", {}, ValueError, "732 NaN or infinite"),
        ("text", {}, TypeError, "real numbers"),
        (None, {"scale": "log"}, ValueError, "'log'"),
    ]:
        with pytest.raises(error, match=message):
            read_expression(hexagonal, layer, **options)
