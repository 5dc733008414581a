import numpy as np
import pytest
import torch

import stdenoise as st
from stdenoise.spatial import results
from stdenoise.spatial.results import Block, Collector, Factors, row_blocks


@pytest.fixture
def factors():
    draw = torch.Generator().manual_seed(0)
    left, right, scale = (torch.rand(*shape, generator=draw) for shape in ((11, 3), (3, 7), (11,)))
    return Factors(left, right, scale, finish=lambda values, rows: values + rows[:, None])


def dense(factors):
    return factors.row_scale[:, None] * (factors.left @ factors.right) + torch.arange(11)[:, None]


def test_factors_give_the_rows_of_their_product(factors, monkeypatch):
    whole = dense(factors)
    assert factors.shape == (11, 7)
    for rows in (slice(None), slice(2, 5), torch.tensor([7, 0, 7])):
        torch.testing.assert_close(factors[rows], whole[rows])
        torch.testing.assert_close(
            factors.then(lambda x, at: x * at[:, None])[rows], (whole * torch.arange(11)[:, None])[rows]
        )
    assert factors[:].dtype == torch.float32
    monkeypatch.setattr(results, "_BLOCK_ENTRIES", 3 * 7)
    blocks = list(row_blocks(factors))
    assert [rows.stop - rows.start for rows, _ in blocks] == [3, 3, 3, 2]
    torch.testing.assert_close(torch.cat([values for _, values in blocks]), whole)
    # What is there already is handed on as it is.
    assert [values is whole or values.data_ptr() == whole.data_ptr() for _, values in row_blocks(whole)] == [True]


def test_expected_counts(factors):
    whole, depth = dense(factors), torch.linspace(0, 2, 11)
    counts = Block(mean=whole, scale="counts", dropout=torch.full((11, 7), 0.25))
    torch.testing.assert_close(counts.expected(), 0.75 * whole)
    assert Block(mean=factors, scale="counts").expected() is factors
    for mean in (whole - 2, factors.then(lambda x, _: x - 2)):
        expected = Block(mean=mean, scale="log1p").expected(depth)[:]
        torch.testing.assert_close(expected, (whole - 2).clamp(min=0).expm1() * depth[:, None])
    with pytest.raises(ValueError, match="depth"):
        Block(mean=factors, scale="log1p").expected()


def test_parts_that_are_factors_are_put_together(factors):
    whole, collector = dense(factors), Collector(11)
    for rows in (torch.tensor([10, 3, 4]), torch.tensor([0, 1, 2, 5, 6, 7, 8, 9])):
        part = Factors(factors.left[rows], factors.right, factors.row_scale[rows])
        collector.add(rows, Block(mean=part, scale="counts", latent=rows[:, None]))
    found = collector.result({})
    torch.testing.assert_close(found.mean, whole - torch.arange(11)[:, None])
    assert found.latent.flatten().tolist() == list(range(11))


@pytest.mark.parametrize("method", ["poisson_factorization", "alra", "pca_reconstruction", "gene_mean"])
def test_what_is_written_and_scored_block_by_block_is_the_whole(method, monkeypatch, tmp_path):
    adata = st.datasets.tissue(n_spots=60, n_genes=12)
    st.pp.spatial_graph(adata)

    def all_of_it():
        st.tl.denoise(adata, method)
        st.tl.denoise(adata, method, genes=["gene3", "gene1"], key_added="some", dtype="float16")
        scores = [
            st.metrics.held_out(adata, method)["poisson_deviance"].item(),
            st.metrics.masked_recovery(adata, method, fraction=0.3)["rmse"][0],
        ]
        return adata.layers[f"{method}_mean"], adata.obsm["some_mean"], scores

    whole, some, scores = all_of_it()
    monkeypatch.setattr(results, "_BLOCK_ENTRIES", 7 * 12)
    parts, few, others = all_of_it()
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(few, some, rtol=1e-3)
    assert some.dtypes.unique().tolist() == [np.float16]
    np.testing.assert_allclose(others, scores, rtol=1e-6)
