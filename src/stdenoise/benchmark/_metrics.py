"""What each metric needs, and how its result becomes named numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pandas import Series

from stdenoise import metrics
from stdenoise._base.checks import near_match

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

KEY = "denoised"
"""Key of the denoised result that metrics read."""

_SUPPLIED = ("adata", "layer", "truth", "labels", "method", "library_key", "device", "progress", "per")
"""Arguments that the benchmark gives itself, or that would change the shape of the result."""

_BOOKKEEPING = ("n_spots", "n_genes")
"""Columns of the table of results, so no scores."""


@dataclass(frozen=True)
class MetricKind:
    """A metric of `stdenoise.metrics`.

    Parameters
    ----------
    flatten
        Turns its result into named numbers.
    refits
        Whether it runs the method itself, on altered counts.
    needs
        Which of `"labels"` and `"truth"` a data set must have.
    """

    flatten: Callable[[Any], dict[str, float]]
    refits: bool = False
    needs: tuple[str, ...] = ()


def _series(result: pd.Series) -> dict[str, float]:
    return {str(name): float(value) for name, value in result.items()}


def _groups(result: pd.Series | pd.DataFrame) -> dict[str, float]:
    """Scores of all spots under their own name, of the others with the group behind it."""
    if isinstance(result, Series):
        return _series(result)
    return {
        str(score) if group == "all" else f"{score}_{group}": value
        for score, column in result.items()
        for group, value in _series(column).items()
    }


def _median(result: pd.DataFrame) -> dict[str, float]:
    values = result["morans_i"]
    return {"median_morans_i": float(values.dropna().median()), "n_undefined": float(values.isna().sum())}


def _runs(result: pd.DataFrame) -> dict[str, float]:
    """Mean over runs, and with several of them their standard deviation."""
    numbers = result.select_dtypes("number").drop(columns=["seed", "split", "fraction", "seconds"], errors="ignore")
    out = {str(name): float(numbers[name].mean()) for name in numbers}
    if len(result) > 1:
        spread = [name for name in numbers if not str(name).startswith("n_")]
        out |= {f"{name}_sd": float(numbers[name].std()) for name in spread}
    return out


def _masks(result: pd.DataFrame) -> dict[str, float]:
    """Scores of the method, which comes first, and of the baselines behind their name, per share where there are several."""
    own = result["method"].iloc[0]
    several = result["fraction"].nunique() > 1
    out: dict[str, float] = {}
    for (method, fraction), rows in result.groupby(["method", "fraction"], sort=False):
        suffix = ("" if method == own else f"_of_{str(method).replace(' ', '_')}") + (
            f"_at_{fraction:g}" if several else ""
        )
        out |= {
            f"{score}{suffix}": float(rows[score].mean())
            for score in ("rmse", "pearson", "pearson_gene", "n_masked")
            if method == own or score != "n_masked"
        }
    return out


def _nulls(result: pd.DataFrame) -> dict[str, float]:
    numbers = result.select_dtypes("number")
    return {f"{name}_{row}": value for name, column in numbers.items() for row, value in _series(column).items()}


METRICS: Mapping[str, MetricKind] = {
    "reconstruction": MetricKind(_groups, needs=("truth",)),
    "morans_i": MetricKind(_median),
    "clustering": MetricKind(_runs, needs=("labels",)),
    "smoothing": MetricKind(_series),
    "held_out": MetricKind(_runs, refits=True),
    "null_test": MetricKind(_nulls, refits=True),
    "masked_recovery": MetricKind(_masks, refits=True),
}

_HIGHER = ("pearson", "cosine", "ssim", "ari", "nmi", "homogeneity", "completeness", "accuracy", "explained")
_LOWER = ("mse", "rmse", "poisson_deviance", "nb_deviance")
_RANKED = ("reconstruction", "clustering", "held_out", "masked_recovery")


def better(metric: str, score: str) -> int:
    """1 where higher is better, -1 where lower is, and 0 for diagnostics, which are not ranked.

    Moran's I, smoothing and null tests are diagnostics: a smoother drives them wherever it wants.
    """
    if metric not in _RANKED or score.endswith("_sd") or "_of_" in score or "gene_mean" in score:
        return 0
    if any(score == name or score.startswith(f"{name}_") for name in _HIGHER):
        return 1
    return -1 if any(score == name or score.startswith(f"{name}_") for name in _LOWER) else 0


def check_args(name: str, args: Mapping[str, Any]) -> None:
    """Raise unless the metric takes these keyword arguments."""
    known = [
        parameter.name
        for parameter in inspect.signature(getattr(metrics, name)).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        and parameter.name not in _SUPPLIED
        and not (METRICS[name].refits and parameter.name == "genes")
    ]
    for arg in args:
        if arg not in known:
            raise TypeError(f"{name} takes no argument {arg!r} here; it takes {known}.{near_match(arg, known)}")


def measure(name: str, adata: AnnData, *, args: Mapping[str, Any], supplied: Mapping[str, Any]) -> dict[str, float]:
    """Call a metric with the supplied arguments that it takes, and return its named numbers."""
    function = getattr(metrics, name)
    taken = inspect.signature(function).parameters
    given = {key: value for key, value in supplied.items() if key in taken}
    numbers = METRICS[name].flatten(function(adata, **{**given, **args}))
    return {score: value for score, value in numbers.items() if score not in _BOOKKEEPING}
