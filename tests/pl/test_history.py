import matplotlib.pyplot as plt
import numpy as np
import pytest

import stdenoise as st


@pytest.fixture(scope="module")
def trained():
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    st.pp.spatial_graph(adata)
    st.tl.denoise(adata, seed=4, n_hidden=8, n_latent=3, n_epochs=3, gate_reduction=4)
    return adata


@pytest.fixture
def denoised(trained):
    return trained.copy()


@pytest.mark.parametrize(("quantity", "label"), [("loss", "loss"), ("gradient_norm", "gradient norm")])
def test_values_over_epochs(denoised, quantity, label, unchanged):
    with unchanged(denoised):
        ax = st.pl.history(denoised, quantity=quantity)
    line = ax.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), denoised.uns["dusted"]["history"][quantity])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("epoch", label, "dusted, seed 4")


@pytest.mark.parametrize(("best", "turn"), [(3, "back to it after epoch 4"), (4, "learning rate falls")])
def test_the_held_out_curve_and_where_training_went_back(denoised, best, turn):
    record, held_out = denoised.uns["dusted"], [0.5, 0.4, 0.3, 0.35]
    record["history"]["loss"] = np.array([3.0, 2.0, 1.5, 1.2, 1.1, 1.0])
    record["history"]["validation_loss"] = np.array(held_out)
    record["training"] = {"stopped": "…", "best_epoch": best, "annealing_from": 4}
    ax = st.pl.history(denoised)
    (right,) = (other for other in ax.figure.axes if other is not ax)
    curve, mark = right.lines
    np.testing.assert_array_equal(curve.get_xydata(), list(enumerate(held_out, 1)))
    np.testing.assert_array_equal(mark.get_xydata(), [[best, held_out[best - 1]]])
    assert ax.lines[1].get_xdata()[0] == 4.5
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["loss", "held-out deviance", f"best: epoch {best}", turn]
    # It is no part of another quantity.
    assert len(st.pl.history(denoised, quantity="gradient_norm").figure.axes) == 1


def test_a_validation_loss_of_the_same_kind_shares_the_axis(denoised):
    denoised.uns["dusted"]["history"]["validation_loss"] = np.array([0.5, 0.4, 0.3])
    denoised.uns["dusted"]["training"] = {"stopped": "…", "best_epoch": 3}
    ax = st.pl.history(denoised)
    assert ax.figure.axes == [ax]
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [0.5, 0.4, 0.3])


def test_a_result_from_the_disk_on_axes_that_are_given(denoised, reload):
    denoised.uns["longer"] = {**denoised.uns["dusted"], "history": {"loss": np.arange(7.0)}}
    _, given = plt.subplots()
    assert st.pl.history(reload(denoised, ".h5ad"), "longer", ax=given) is given
    assert len(plt.get_fignums()) == 1
    np.testing.assert_array_equal(given.lines[0].get_ydata(), np.arange(7))


def test_bad_input(denoised):
    for options, message in (
        ({"key": "dustd"}, "'dustd'.* 'dusted'"),
        ({"quantity": "los"}, "'los'.* 'gradient_norm'"),
    ):
        with pytest.raises(KeyError, match=message):
            st.pl.history(denoised, **options)
    assert not plt.get_fignums()
