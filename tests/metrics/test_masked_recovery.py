import numpy as np
import pandas as pd
import pytest

import stdenoise as st
from stdenoise.spatial.normalize import lognorm
from stdenoise.stats.masking import draw_mask


def by_hand(adata, method, row, col):
    """What stands at masked entries: in the truth, and as each method predicts it."""
    counts = adata.X.toarray()
    masked = counts.copy()
    masked[row, col] = 0
    left = lognorm(masked)
    adjacency = adata.obsp["spatial_connectivities"].toarray()
    again = adata.copy()
    again.X = masked
    st.tl.denoise(again, method=method)
    found = again.layers[f"{method}_mean"]
    predictions = {
        method: (lognorm(found) if again.uns[method]["scale"] == "counts" else found)[row, col],
        "zeros": np.zeros(len(row)),
        "mean of positives": (left.sum(0) / np.maximum((left > 0).sum(0), 1))[col],
        "mean of neighbours": (adjacency @ left / np.maximum(adjacency.sum(1, keepdims=True), 1))[row, col],
    }
    return lognorm(counts)[row, col], predictions


@pytest.mark.parametrize(("method", "entries"), [("neighbor_mean", "positive"), ("magic", "all")])
def test_scores_are_those_of_a_computation_by_hand(irregular, unchanged, method, entries):
    with unchanged(irregular):
        table = st.metrics.masked_recovery(irregular, method, fraction=0.2, entries=entries, seed=3)
    table = table.set_index("method")
    row, col = draw_mask(irregular.X, 0.2, entries, np.random.default_rng(3))
    actual, predictions = by_hand(irregular, method, row, col)
    if method == "magic":
        # It uses no graph.
        del predictions["mean of neighbours"]
    assert set(table.index) == set(predictions)
    for name, predicted in predictions.items():
        assert table.loc[name, "rmse"] == pytest.approx(np.sqrt(((predicted - actual) ** 2).mean()), rel=1e-5)
        if name != "zeros":
            assert table.loc[name, "pearson"] == pytest.approx(np.corrcoef(predicted, actual)[0, 1], rel=1e-5)
    assert (table["n_masked"] == len(row)).all()


def test_shares_and_repeats_are_rows_over_the_chosen_genes(hexagonal):
    genes = ["gene2", "gene1"]
    table = st.metrics.masked_recovery(hexagonal, "gene_mean", fraction=[0.05, 0.5], n_repeats=2, seed=1, genes=genes)
    assert len(table) == 2 * 2 * 3
    assert set(table["seed"]) == {1, 2}
    sizes = table.groupby("fraction")["n_masked"].first()
    assert list(sizes) == [round(share * hexagonal[:, genes].X.nnz) for share in (0.05, 0.5)]
    alone = st.metrics.masked_recovery(hexagonal, "gene_mean", fraction=0.5, seed=2, genes=genes)
    pd.testing.assert_frame_equal(table.iloc[-3:].reset_index(drop=True), alone)


def test_bad_input(hexagonal):
    for change in ({"fraction": [0.1, 1.0]}, {"entries": "zeros"}, {"n_repeats": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            st.metrics.masked_recovery(hexagonal, "raw", **change)
