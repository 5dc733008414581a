import numpy as np
import pandas as pd
import pytest

from stdenoise.benchmark._metrics import METRICS, better


def flat(name, result):
    return METRICS[name].flatten(result)


def test_reconstruction_with_and_without_groups():
    whole = pd.Series({"mse": 1.0, "ssim": np.nan})
    assert flat("reconstruction", whole)["mse"] == 1
    frame = pd.DataFrame({"mse": [1.0, 2.0, 3.0]}, index=["all", "inside", "outside"])
    assert flat("reconstruction", frame) == {"mse": 1, "mse_inside": 2, "mse_outside": 3}


def test_morans_i():
    frame = pd.DataFrame({"morans_i": [0.1, np.nan, 0.5, 0.2]})
    assert flat("morans_i", frame) == {"median_morans_i": 0.2, "n_undefined": 1}


def test_runs():
    frame = pd.DataFrame({"seed": [0, 1], "ari": [0.2, 0.4], "n_scored": [9, 9]})
    assert flat("clustering", frame) == pytest.approx({"ari": 0.3, "ari_sd": 0.02**0.5, "n_scored": 9})
    assert flat("clustering", frame[:1]) == {"ari": 0.2, "n_scored": 9}


def test_masks():
    frame = pd.DataFrame(
        {
            "method": ["raw", "zeros"] * 2,
            "fraction": [0.1, 0.1, 0.5, 0.5],
            "rmse": [1.0, 2.0, 3.0, 4.0],
            "pearson": 0.5,
            "pearson_gene": 0.25,
            "n_masked": 7,
        }
    )
    one = flat("masked_recovery", frame[:2])
    assert (one["rmse"], one["rmse_of_zeros"], one["n_masked"]) == (1, 2, 7)
    both = flat("masked_recovery", frame)
    assert (both["rmse_at_0.5"], both["rmse_of_zeros_at_0.5"]) == (3, 4)
    assert not np.isnan(list(both.values())).any()


def test_nulls():
    frame = pd.DataFrame({"kept": [1.0, 0.5, 0.0]}, index=["real", "permuted", "redrawn"])
    assert flat("null_test", frame) == {"kept_real": 1, "kept_permuted": 0.5, "kept_redrawn": 0}


@pytest.mark.parametrize(
    ("metric", "score", "direction"),
    [
        ("reconstruction", "mse", -1),
        ("reconstruction", "mse_counts", -1),
        ("reconstruction", "mse_inside", -1),
        ("reconstruction", "pearson_gene", 1),
        ("reconstruction", "n_undefined", 0),
        ("clustering", "ari", 1),
        ("clustering", "ari_sd", 0),
        ("clustering", "loglik", 0),
        ("held_out", "poisson_deviance", -1),
        ("held_out", "poisson_gene_mean", 0),
        ("held_out", "explained", 1),
        ("masked_recovery", "rmse_at_0.5", -1),
        ("masked_recovery", "rmse_of_zeros", 0),
        ("null_test", "poisson_deviance_real", 0),
        ("morans_i", "median_morans_i", 0),
        ("smoothing", "variance_kept", 0),
    ],
)
def test_directions(metric, score, direction):
    assert better(metric, score) == direction
