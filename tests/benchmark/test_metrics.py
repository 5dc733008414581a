import numpy as np
import pandas as pd
import pytest

from stdenoise.benchmark._metrics import METRICS, better


def flat(name, result):
    return METRICS[name].flatten(result)


def test_results_become_named_numbers():
    whole = pd.Series({"mse": 1.0, "ssim": np.nan})
    assert flat("reconstruction", whole)["mse"] == 1
    frame = pd.DataFrame({"mse": [1.0, 2.0, 3.0]}, index=["all", "inside", "outside"])
    assert flat("reconstruction", frame) == {"mse": 1, "mse_inside": 2, "mse_outside": 3}
    frame = pd.DataFrame({"morans_i": [0.1, np.nan, 0.5, 0.2]})
    assert flat("morans_i", frame) == {"median_morans_i": 0.2, "n_undefined": 1}
    frame = pd.DataFrame({"seed": [0, 1], "ari": [0.2, 0.4], "n_scored": [9, 9]})
    assert flat("clustering", frame) == pytest.approx({"ari": 0.3, "ari_sd": 0.02**0.5, "n_scored": 9})
    assert flat("clustering", frame[:1]) == {"ari": 0.2, "n_scored": 9}
    frame = pd.DataFrame({"kept": [1.0, 0.5, 0.0]}, index=["real", "permuted", "redrawn"])
    assert flat("null_test", frame) == {"kept_real": 1, "kept_permuted": 0.5, "kept_redrawn": 0}


def test_masks():
    frame = pd.DataFrame(
        {"method": ["raw", "zeros"] * 2, "fraction": [0.1, 0.1, 0.5, 0.5], "rmse": [1.0, 2.0, 3.0, 4.0]}
    )
    frame = frame.assign(pearson=0.5, pearson_gene=0.25, n_masked=7)
    one = flat("masked_recovery", frame[:2])
    assert (one["rmse"], one["rmse_of_zeros"], one["n_masked"]) == (1, 2, 7)
    both = flat("masked_recovery", frame)
    assert (both["rmse_at_0.5"], both["rmse_of_zeros_at_0.5"]) == (3, 4)
    assert not np.isnan(list(both.values())).any()


def test_directions():
    higher = ["reconstruction pearson_gene", "clustering ari", "held_out explained"]
    lower = [
        "reconstruction mse",
        "reconstruction mse_counts",
        "reconstruction mse_inside",
        "held_out poisson_deviance",
    ]
    lower += ["masked_recovery rmse_at_0.5"]
    neither = ["reconstruction n_undefined", "clustering ari_sd", "clustering loglik", "held_out poisson_gene_mean"]
    neither += ["masked_recovery rmse_of_zeros", "null_test poisson_deviance_real", "morans_i median_morans_i"]
    neither += ["smoothing variance_kept"]
    for direction, scores in ((1, higher), (-1, lower), (0, neither)):
        assert {name: better(*name.split()) for name in scores} == dict.fromkeys(scores, direction)
