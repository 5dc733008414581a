"""Results of a benchmark, as one tidy table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from stdenoise.benchmark._store import FAILED, PLAN, UNITS, files_by_hash, read_json

COLUMNS = {
    "dataset": "str",
    "columns": "str",
    "method": "str",
    "method_name": "str",
    "seed": "int64",
    "unit": "str",
    "metric": "str",
    "metric_name": "str",
    "score": "str",
    "value": "float64",
    "seconds": "float64",
    "peak_memory_gb": "float64",
    "n_spots": "int64",
    "n_genes": "int64",
}


def results(folder: str | Path) -> pd.DataFrame:
    """Read the results that are there, of the config that was run last.

    Parameters
    ----------
    folder
        Folder of the benchmark.

    Returns
    -------
    DataFrame with one row per data set, method, seed, metric and score, and the columns

    `dataset`, `columns`
        Its name, and the column of the report it is averaged in.
    `method`, `method_name`, `seed`
        Label of the method in the config, its name in `stdenoise.methods.table`, and the seed.
    `metric`, `metric_name`, `score`, `value`
        Label and name of the metric, and what it measured.
    `unit`, `seconds`, `peak_memory_gb`
        `"fit"` for metrics that read the denoised counts; time and peak memory of that fit alone, reading the data set and
        the libraries included in the memory. Otherwise the label of the metric, and time and memory of all its fits.
    `n_spots`, `n_genes`
        Size of what was denoised.

    Raises
    ------
    FileNotFoundError
        There is no benchmark in the folder.

    Examples
    --------
    >>> import tempfile
    >>> import stdenoise as st
    >>> config = {
    ...     "datasets": [{"name": "small", "tissue": {"n_spots": 60, "n_genes": 20}}],
    ...     "methods": [{"name": "raw"}],
    ...     "metrics": [{"name": "reconstruction"}],
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = st.benchmark.run(config, folder=folder, n_jobs=0)
    ...     print(table.equals(st.benchmark.results(folder)))
    True
    """
    rows = [
        {
            **{key: unit[key] for key in ("dataset", "columns", "method", "method_name", "seed")},
            "unit": unit["group"],
            "metric": metric,
            "metric_name": unit["metrics"].get(metric, metric),
            "score": score,
            "value": value,
            **{key: stored.get(key) for key in ("seconds", "peak_memory_gb", "n_spots", "n_genes")},
        }
        for unit, stored in read_units(Path(folder))
        if stored is not None
        for metric, scores in stored["scores"].items()
        for score, value in scores.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(
        {name: kind for name, kind in COLUMNS.items() if kind != "str"}
    )


def failures(folder: str | Path) -> list[tuple[dict[str, Any], str]]:
    """List the units that failed or were not run, with the reason."""
    return [
        (unit, "not run yet" if stored is None else stored["error"])
        for unit, stored in read_units(Path(folder))
        if stored is None or "error" in stored
    ]


def read_plan(folder: Path) -> dict[str, Any]:
    """Read what the last run was to do."""
    plan = read_json(folder / PLAN)
    if plan is None:
        raise FileNotFoundError(f"there is no benchmark in {str(folder)!r}; run one with st.benchmark.run.")
    return plan


def read_units(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Yield every unit of the plan, with what is stored of it, or `None`."""
    plan = read_plan(folder)
    files = files_by_hash(folder, FAILED) | files_by_hash(folder, UNITS)
    for unit in plan["units"]:
        path = files.get(unit["hash"])
        yield unit, None if path is None else read_json(path)
