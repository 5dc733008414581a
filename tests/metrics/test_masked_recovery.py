import numpy as np
import pytest

import stdenoise as st
from stdenoise.spatial.normalize import lognorm
from stdenoise.stats.masking import draw_mask


def test_scores_are_those_of_a_computation_by_hand(irregular):
    table = st.metrics.masked_recovery(irregular, "neighbor_mean", fraction=0.2, seed=3).set_index("method")
    row, col = draw_mask(irregular.X, 0.2, "positive", np.random.default_rng(3))
    counts = irregular.X.toarray()
    masked = counts.copy()
    masked[row, col] = 0
    actual = lognorm(counts)[row, col]
    left = lognorm(masked)
    adjacency = irregular.obsp["spatial_connectivities"].toarray()
    again = irregular.copy()
    again.X = masked
    st.tl.denoise(again, method="neighbor_mean")
    predictions = {
        "neighbor_mean": lognorm(again.layers["neighbor_mean_mean"])[row, col],
        "zeros": 0 * actual,
        "mean of positives": (left.sum(0) / np.maximum((left > 0).sum(0), 1))[col],
        "mean of neighbours": (adjacency @ left / np.maximum(adjacency.sum(1, keepdims=True), 1))[row, col],
    }
    assert set(table.index) == set(predictions)
    for name, predicted in predictions.items():
        assert table.loc[name, "rmse"] == pytest.approx(np.sqrt(((predicted - actual) ** 2).mean()), rel=1e-5)
        if name != "zeros":
            assert table.loc[name, "pearson"] == pytest.approx(np.corrcoef(predicted, actual)[0, 1], rel=1e-5)
    assert (table["n_masked"] == len(row)).all()


def test_shares_and_repeats_are_rows(hexagonal):
    table = st.metrics.masked_recovery(hexagonal, "gene_mean", fraction=[0.05, 0.5], n_repeats=2, seed=1)
    assert len(table) == 2 * 2 * 3
    assert set(table["seed"]) == {1, 2}
    sizes = table.groupby("fraction")["n_masked"].first()
    assert list(sizes) == [round(share * hexagonal.X.nnz) for share in (0.05, 0.5)]


def test_log_scale_results_get_no_second_logarithm(hexagonal):
    table = st.metrics.masked_recovery(hexagonal, "pca_reconstruction", n_components=3).set_index("method")
    assert table.loc["pca_reconstruction(n_components=3)", "rmse"] < table.loc["zeros", "rmse"]


def test_all_entries_can_be_masked(hexagonal):
    table = st.metrics.masked_recovery(hexagonal, "raw", entries="all", fraction=0.3)
    assert (table["n_masked"] == round(0.3 * 61 * 12)).all()


def test_nothing_is_written(hexagonal, unchanged):
    with unchanged(hexagonal):
        st.metrics.masked_recovery(hexagonal, "neighbor_mean", genes=["gene1", "gene2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": [0.1, 1.0]}, "fraction must be a number between 0 and 1, both excluded, not 1.0"),
        ({"entries": "zeros"}, "entries='zeros' is not valid"),
        ({"n_repeats": 0}, "n_repeats must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_refused(hexagonal, arguments, message):
    with pytest.raises(ValueError, match=message):
        st.metrics.masked_recovery(hexagonal, "raw", **arguments)
