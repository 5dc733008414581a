"""The report of a benchmark: tables, what failed, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pandas as pd

from stdenoise.benchmark._figures import box_plot, cost_plot, rank_plot
from stdenoise.benchmark._metrics import better
from stdenoise.benchmark._results import failures, read_plan, results
from stdenoise.benchmark._store import write_bytes
from stdenoise.benchmark._tables import cell, in_order, markdown, mean_ranks, not_better, number, score_table
from stdenoise.benchmark._units import matches, slug

_NOTES = {1: "Higher is better.", -1: "Lower is better.", 0: "A diagnostic, not ranked."}


def report(folder: str | Path, *, figures: bool = True) -> Path:
    """Write the results of a benchmark as tables, text and figures.

    Parameters
    ----------
    folder
        Folder of the benchmark.
    figures
        Draw figures.

    Returns
    -------
    Path of `report.md`. Beside it stand `results.csv`, `results.parquet` where pyarrow is installed, and the folder
    `figures`: a box plot per score, the ranks, and time and memory.

    For each score the report has a table of methods and groups of data sets: mean and standard deviation over data sets and
    seeds, the best in bold, and the mean rank over data sets. A sentence names each method that does not beat the best of
    the plain baselines. Units that failed are listed.

    Raises
    ------
    FileNotFoundError
        There is no benchmark in the folder.
    OSError
        There is no space left on the disk.

    Examples
    --------
    >>> import tempfile
    >>> import stdenoise as st
    >>> config = {
    ...     "datasets": [{"name": "small", "tissue": {"n_spots": 60, "n_genes": 20}}],
    ...     "methods": [{"name": "raw"}, {"name": "gene_mean"}],
    ...     "metrics": [{"name": "reconstruction"}],
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = st.benchmark.run(config, folder=folder, n_jobs=0)
    ...     text = st.benchmark.report(folder, figures=False).read_text()
    >>> "| gene_mean |" in text
    True
    """
    home = Path(folder)
    plan, table = read_plan(home), results(home)
    shown = _shown(table, plan["scores"])
    write_bytes(home / "results.csv", table.to_csv(index=False).encode())
    if find_spec("pyarrow") is not None:
        buffer = BytesIO()
        table.to_parquet(buffer, index=False)
        write_bytes(home / "results.parquet", buffer.getvalue())
    pictures = _draw(home, shown) if figures and len(shown) else {}
    failed = failures(home)
    lines = [
        f"# {plan['name']}",
        "",
        f"stdenoise {plan['version']}; {len(plan['units']) - len(failed)} of {len(plan['units'])} units are complete.",
        "",
    ]
    if failed:
        lines += ["## Failed", ""]
        lines += [
            f"- {unit['dataset']}, {unit['method']}, seed {unit['seed']}, {unit['group']}: {' '.join(reason.split())}"
            for unit, reason in failed
        ]
        lines.append("")
    if len(shown):
        lines += [*_sizes(shown), *_scores(shown, pictures), *_ranks(shown, pictures), *_costs(shown, pictures)]
    target = home / "report.md"
    write_bytes(target, ("\n".join(lines).rstrip() + "\n").encode())
    return target


def _shown(table: pd.DataFrame, scores: Mapping[str, list[str]]) -> pd.DataFrame:
    """Rows that the report shows: the scores that the config asks for, and no counts of what was left out or spread of runs.

    The runs of a null test, which are part of the score, become columns of one table.
    """
    table = table.copy()
    nulls = table["metric_name"] == "null_test"
    parts = table.loc[nulls, "score"].str.rsplit("_", n=1)
    table.loc[nulls, "score"] = parts.str[0]
    table.loc[nulls, "columns"] += ", " + parts.str[1]
    chosen = [
        matches(score, tuple(scores[metric])) and not score.startswith("n_") and not score.endswith("_sd")
        for metric, score in zip(table["metric"], table["score"], strict=True)
    ]
    return table[chosen]


def _by_score(table: pd.DataFrame) -> dict[tuple[str, str], tuple[pd.DataFrame, int]]:
    """Rows of each metric and score that has a value, with the direction of the score."""
    return {
        (str(metric), str(score)): (rows, better(str(rows["metric_name"].iloc[0]), str(score)))
        for (metric, score), rows in table.groupby(["metric", "score"], sort=False)
        if rows["value"].notna().any()
    }


def _sizes(table: pd.DataFrame) -> list[str]:
    sets = table.drop_duplicates("dataset")
    rows = [
        [str(row.dataset), str(row.columns), str(row.n_spots), str(row.n_genes)]
        for row in sets[["dataset", "columns", "n_spots", "n_genes"]].itertuples(index=False)
    ]
    return ["## Data sets", "", *markdown(["data set", "column", "spots", "genes"], rows), ""]


def _scores(table: pd.DataFrame, pictures: dict[str, str]) -> list[str]:
    lines = []
    for (metric, score), (rows, direction) in _by_score(table).items():
        lines += [f"## {metric}: {score}", "", _NOTES[direction], "", *score_table(rows, direction), ""]
        if direction and (sentences := not_better(rows, direction)):
            lines += [*(f"- {sentence}" for sentence in sentences), ""]
        lines += _picture(pictures, f"{metric}-{score}")
    return lines


def rank_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean rank of each method under each ranked score."""
    ranked = {
        f"{metric}: {score}": mean_ranks(rows, direction)
        for (metric, score), (rows, direction) in _by_score(table).items()
        if direction
    }
    return pd.DataFrame(ranked, index=pd.Index(in_order(table["method"])))


def _ranks(table: pd.DataFrame, pictures: dict[str, str]) -> list[str]:
    ranks = rank_table(table)
    if ranks.empty:
        return []
    rows = [
        [str(method), number(float(line.mean())), *(number(float(value)) for value in line)]
        for method, line in ranks.iterrows()
    ]
    header = ["method", "mean", *map(str, ranks.columns)]
    text = "Mean over data sets of the rank under each score; 1 is the best. Scores of one metric overlap."
    return ["## Ranks", "", text, "", *markdown(header, rows), "", *_picture(pictures, "ranks")]


def cost_table(table: pd.DataFrame) -> pd.DataFrame:
    """Time and memory, once per unit; of fits where there are any."""
    units = table.drop_duplicates(["dataset", "method", "seed", "unit"])
    fits = units[units["unit"] == "fit"]
    return fits if len(fits) else units


def _costs(table: pd.DataFrame, pictures: dict[str, str]) -> list[str]:
    cost = cost_table(table)
    lines = ["## Time and memory", ""]
    for name, title in (("seconds", "Seconds per fit"), ("peak_memory_gb", "Peak memory in GB")):
        if cost[name].notna().any():
            rows = [
                [
                    method,
                    *(cell(list(part.loc[part["columns"] == column, name])) for column in in_order(cost["columns"])),
                ]
                for method in in_order(cost["method"])
                for part in [cost[cost["method"] == method]]
            ]
            lines += [f"{title}:", "", *markdown(["method", *in_order(cost["columns"])], rows), ""]
    return lines + _picture(pictures, "cost")


def _picture(pictures: dict[str, str], name: str) -> list[str]:
    return [f"![{name}]({pictures[name]})", ""] if name in pictures else []


def _draw(folder: Path, table: pd.DataFrame) -> dict[str, str]:
    """Write the figures; return their paths in the folder by name."""
    (folder / "figures").mkdir(exist_ok=True)
    images = {
        f"{metric}-{score}": box_plot(rows, title=f"{metric}: {score}", note=_NOTES[direction])
        for (metric, score), (rows, direction) in _by_score(table).items()
    }
    ranks = rank_table(table)
    if not ranks.empty:
        images["ranks"] = rank_plot(ranks)
    images["cost"] = cost_plot(cost_table(table))
    paths = {}
    for name, image in images.items():
        paths[name] = f"figures/{slug(name)}.png"
        write_bytes(folder / paths[name], image)
    return paths
