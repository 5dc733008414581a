"""What a report says about results: means, ranks, the best, and who does not beat the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

BASELINES = ("raw", "gene_mean", "neighbor_mean", "pca_reconstruction", "poisson_factorization")
"""Names of the methods that a denoiser has to beat."""

MISSING = "–"


def number(value: float) -> str:
    """Write a number with four significant digits."""
    return f"{value:.4g}" if np.isfinite(value) else MISSING


def cell(values: Sequence[float]) -> str:
    """Write mean and standard deviation over data sets and seeds, or the one value there is."""
    there = np.asarray(values, dtype=np.float64)
    there = there[np.isfinite(there)]
    if len(there) == 0:
        return MISSING
    if len(there) == 1:
        return number(there[0])
    return f"{number(there.mean())} ± {number(there.std(ddof=1))}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a Markdown table."""
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1), *map(list, rows)]
    return ["| " + " | ".join(part.replace("|", "\\|") for part in line) + " |" for line in lines]


def in_order(names: pd.Series) -> list[str]:
    """Distinct names in the order of the config."""
    return list(dict.fromkeys(names))


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean value of each method in each column, in the order of the config."""
    table = rows.pivot_table(
        index="method", columns="columns", values="value", aggfunc="mean", dropna=False, sort=False
    )
    return table.reindex(index=in_order(rows["method"]), columns=in_order(rows["columns"]))


def mean_ranks(rows: pd.DataFrame, direction: int) -> pd.Series:
    """Mean over data sets of the rank of each method, 1 for the best; equal ones share the mean of their ranks.

    A method whose score is not defined on a data set comes last there; one that did not run there has no rank.
    """
    table = rows.pivot_table(
        index="dataset", columns="method", values="value", aggfunc="mean", dropna=False, sort=False
    )
    table = table.reindex(columns=in_order(rows["method"]))
    ran = rows.groupby(["dataset", "method"]).size().unstack().reindex(index=table.index, columns=table.columns) > 0
    return table.rank(axis=1, ascending=direction < 0, na_option="bottom").where(ran).mean()


def score_table(rows: pd.DataFrame, direction: int) -> list[str]:
    """Write the table of one score: methods, columns and where it is ranked the best in bold and mean ranks."""
    average = means(rows)
    columns = list(average.columns)
    ranks = mean_ranks(rows, direction) if direction else None
    body = []
    for method in average.index:
        line = [str(method)]
        for column in columns:
            values = rows.loc[(rows["method"] == method) & (rows["columns"] == column), "value"]
            text = cell(list(values))
            best = (average[column] * direction).max()
            is_best = direction != 0 and average[column][method] * direction == best
            line.append(f"**{text}**" if is_best else text)
        if ranks is not None:
            line.append(number(float(ranks[method])))
        body.append(line)
    return markdown(["method", *columns, *(["mean rank"] if direction else [])], body)


def not_better(rows: pd.DataFrame, direction: int) -> list[str]:
    """Write a sentence for each method that does not beat the best plain baseline in some column."""
    average = means(rows)
    names = rows.drop_duplicates("method").set_index("method")["method_name"]
    plain = [method for method in average.index if names[method] in BASELINES]
    sentences = []
    for method in (method for method in average.index if method not in plain):
        losses = []
        for column in average.columns:
            rivals = (average.loc[plain, column] * direction).dropna()
            ran = ((rows["method"] == method) & (rows["columns"] == column)).any()
            if not ran or rivals.empty:
                continue
            own, best = average[column][method], str(rivals.idxmax())
            if not own * direction > rivals[best]:
                losses.append(f"{column} ({number(own)}; {best} {number(average[column][best])})")
        if losses:
            sentences.append(f"{method} does not beat the best plain baseline on {', '.join(losses)}.")
    return sentences
