import matplotlib.pyplot as plt
import numpy as np
import pytest

import stdenoise as st


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    """Fail when a plot is shown, and close the figures."""
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    yield
    plt.close("all")


@pytest.fixture
def denoised(hexagonal, small):
    st.tl.denoise(hexagonal, seed=4, **small)
    return hexagonal


@pytest.mark.parametrize(("quantity", "label"), [("loss", "loss"), ("gradient_norm", "gradient norm")])
def test_values_over_epochs(denoised, quantity, label):
    ax = st.pl.history(denoised, quantity=quantity)
    line = ax.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), denoised.uns["dusted"]["history"][quantity])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("epoch", label, "dusted, seed 4")


def test_the_held_out_curve_and_where_training_went_back(denoised):
    record = denoised.uns["dusted"]
    record["history"]["loss"] = np.array([3.0, 2.0, 1.5, 1.2, 1.1, 1.0])
    record["history"]["validation_loss"] = np.array([0.5, 0.4, 0.3, 0.35])
    record["training"] = {"stopped": "…", "best_epoch": 3, "annealing_from": 4}
    ax = st.pl.history(denoised)
    (right,) = (other for other in ax.figure.axes if other is not ax)
    held_out, best = right.lines
    np.testing.assert_array_equal(held_out.get_xydata(), [[1, 0.5], [2, 0.4], [3, 0.3], [4, 0.35]])
    np.testing.assert_array_equal(best.get_xydata(), [[3, 0.3]])
    assert ax.lines[1].get_xdata()[0] == 4.5
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["loss", "held-out deviance", "best: epoch 3", "back to it after epoch 4"]


def test_a_validation_loss_of_the_same_kind_shares_the_axis(denoised):
    denoised.uns["dusted"]["history"]["validation_loss"] = np.array([0.5, 0.4, 0.3])
    denoised.uns["dusted"]["training"] = {"stopped": "…", "best_epoch": 3}
    ax = st.pl.history(denoised)
    assert ax.figure.axes == [ax]
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [0.5, 0.4, 0.3])


def test_axes_that_are_given_are_used(denoised):
    _, given = plt.subplots()
    assert st.pl.history(denoised, ax=given) is given
    assert len(plt.get_fignums()) == 1


def test_key_chooses_among_results(denoised, small):
    st.tl.denoise(denoised, key_added="longer", **{**small, "n_epochs": 7})
    assert len(st.pl.history(denoised, "longer").lines[0].get_xdata()) == 7


def test_history_from_the_disk(denoised, reload):
    line = st.pl.history(reload(denoised, ".h5ad")).lines[0]
    np.testing.assert_array_equal(line.get_ydata(), denoised.uns["dusted"]["history"]["loss"])


def test_nothing_is_written(denoised, unchanged):
    with unchanged(denoised):
        st.pl.history(denoised)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": "dustd"}, "'dustd' is not in the denoised results of adata, which has 'dusted'. Did you mean"),
        ({"quantity": "los"}, r"'los' is not in adata.uns\['dusted'\]\['history'\], which has 'loss', 'gradient_norm'"),
    ],
)
def test_bad_arguments(denoised, arguments, message):
    with pytest.raises(KeyError, match=message):
        st.pl.history(denoised, **arguments)
    assert not plt.get_fignums()
