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
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), denoised.uns["dusted"]["history"][quantity])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("epoch", label, "dusted, seed 4")


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
