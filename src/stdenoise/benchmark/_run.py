"""Running a benchmark: what is there already is kept, the rest is done."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
from tqdm import tqdm

from stdenoise._base.checks import check_number
from stdenoise._base.device import resolve_device
from stdenoise._base.memory import read_memory
from stdenoise._base.paths import check_paths
from stdenoise._base.settings import settings
from stdenoise.benchmark._config import read_config
from stdenoise.benchmark._pool import do_all
from stdenoise.benchmark._results import results
from stdenoise.benchmark._store import (
    DATASETS,
    FAILED,
    PLAN,
    REPORT,
    UNITS,
    files_by_hash,
    make_folders,
    read_json,
    write_json,
)
from stdenoise.benchmark._units import Plan, Unit, job_of, preparation_of
from stdenoise.benchmark._work import Job, fail

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("stdenoise")

_BASE_GB = 0.6
_ARRAYS, _WIDTH = 20, 512
"""Dense arrays of float32 that a unit holds at a time, at most, and their columns beside the genes; see `estimate_gb`."""


def run(
    config: str | Path | Mapping[str, Any],
    *,
    folder: str | Path,
    n_jobs: int = 1,
    memory: str | float | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Run methods on data sets, and measure them.

    Every finished unit of work is a file in the folder. A benchmark that was interrupted, or killed, goes on where it
    stopped when the same is run again; a changed config does only what has changed, and what failed is tried again.

    Parameters
    ----------
    config
        A TOML file, or the equal mapping: `name`, `seeds`, `[[datasets]]`, `[[methods]]` and `[[metrics]]`.
    folder
        Where data sets and results are kept; made if it is not there.
    n_jobs
        How many units run at a time, each in a process of its own, which shares the cores with the others. With 0
        everything runs in this process, and memory is not measured.
    memory
        Memory that all units together may take, such as `"8 GB"`, or a number of GB; no limit if not given. Units wait until
        there is room, by an estimate: 0.6 GB, and 20 times spots x (genes + 512) x 4 bytes.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    progress
        Show a progress bar on standard error; by default only on a terminal.

    Returns
    -------
    See `stdenoise.benchmark.results`.

    Raises
    ------
    ValueError
        The config is wrong: all its problems are listed, before anything is done. Or a unit needs more than `memory`.
    OSError
        There is no space left on the disk. Finished units are kept.

    Notes
    -----
    A unit is one data set, method and seed with all metrics that read the denoised counts, or with one metric that runs the
    method itself (`held_out`, `null_test`, `masked_recovery`). Results belong to a version of the package and are computed
    anew with another one. A metric that is added makes the fits that it reads run again.

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
    >>> sorted(set(table["method"]))
    ['gene_mean', 'raw']
    """
    check_number("n_jobs", n_jobs, minimum=0, integer=True)
    budget = None if memory is None else read_memory(memory)
    plan = read_config(config)
    resolve_device(device)
    show = settings.show_progress(progress)
    home = Path(folder)
    _check_folder(home, config, plan)
    make_folders(home)
    write_json(home / PLAN, plan.record())

    done = {key for key, path in files_by_hash(home, UNITS).items() if read_json(path) is not None}
    units = {unit.hash: unit for unit in plan.units() if unit.hash not in done}
    failed = files_by_hash(home, FAILED)
    for key in {*units, *(unit.dataset.hash for unit in units.values())} & set(failed):
        failed[key].unlink()
    logger.info("%d units are there, %d to do", len(done), len(units))

    preparations = {
        unit.dataset.hash: preparation_of(unit.dataset)
        for unit in units.values()
        if not (home / DATASETS / unit.dataset.file).exists()
    }
    # How large a data set is shows once it is there, so that nothing is known yet of the memory it takes to make it.
    at_a_time = n_jobs if budget is None else min(n_jobs, 1)
    _do(list(preparations.values()), home, n_jobs=at_a_time, budget=None, sizes={}, show=show, what="data sets")
    _pass_on_failures(list(units.values()), home)
    ready = [unit for unit in units.values() if (home / DATASETS / unit.dataset.file).exists()]
    data = {} if budget is None else {unit.dataset.file: unit.dataset for unit in ready}
    sizes = {file: size_gb(home / DATASETS / file, dataset.n_top_genes) for file, dataset in data.items()}
    _check_budget(ready, sizes, budget)
    jobs = [job_of(unit, device) for unit in ready]
    _do(jobs, home, n_jobs=n_jobs, budget=budget, sizes=sizes, show=show, what="units")
    return results(home)


def _check_folder(home: Path, config: str | Path | Mapping[str, Any], plan: Plan) -> None:
    """Raise where a file that is read, or that is not of a benchmark, would be written over."""
    written = [DATASETS, UNITS, FAILED, PLAN, *REPORT]
    read = [(f"data set {data.name!r}", Path(data.source["path"])) for data in plan.datasets if data.kind == "path"]
    if not isinstance(config, Mapping):
        read.append(("the config", Path(config)))
    check_paths(read, [(f"{name} of the folder", home / name, None) for name in written])
    there = [name for name in written if (home / name).is_file() or any((home / name).glob("*"))]
    if there and not {"version", "scores", "units"} <= (read_json(home / PLAN) or {}).keys():
        raise FileExistsError(
            f"folder={str(home)!r} has {', '.join(there)}, and is not the folder of a benchmark; choose another one."
        )


def _do(
    jobs: Sequence[Job],
    folder: Path,
    *,
    n_jobs: int,
    budget: float | None,
    sizes: Mapping[str, float],
    show: bool,
    what: str,
) -> None:
    if not jobs:
        return

    with tqdm(total=len(jobs), desc=what, unit="", disable=not show) as bar:

        def on_change(titles: list[str], n_ended: int) -> None:
            bar.set_postfix_str("; ".join(titles))
            bar.update(n_ended)

        do_all(
            jobs,
            folder,
            n_jobs=n_jobs,
            budget=budget,
            estimate=lambda job: sizes.get(str(job.get("data")), 0.0),
            on_change=on_change,
        )


def _pass_on_failures(units: list[Unit], folder: Path) -> None:
    """Record for each unit of a data set that could not be made, why."""
    failed = files_by_hash(folder, FAILED)
    for unit in units:
        if unit.dataset.hash in failed and not (folder / DATASETS / unit.dataset.file).exists():
            reason = read_json(failed[unit.dataset.hash]) or {}
            fail(job_of(unit, "auto"), folder, f"no data set: {reason.get('error')}")


def estimate_gb(n_spots: int, n_genes: int) -> float:
    """Estimate the memory that a unit takes, in GB.

    The process and its libraries take 0.6 GB; a fit and its metrics hold at most 20 dense arrays of float32 at a time, as
    wide as the modelled genes and a hidden layer. It is meant to be too high rather than too low.
    """
    return _BASE_GB + _ARRAYS * n_spots * (n_genes + _WIDTH) * 4 / 1e9


def size_gb(path: Path, n_modelled: int | None) -> float:
    """Estimate the memory of a unit from the shape of its data set, which is not read."""
    adata = anndata.read_h5ad(path, backed="r")
    n_spots, n_genes = adata.shape
    adata.file.close()
    return estimate_gb(n_spots, n_modelled or n_genes)


def _check_budget(units: list[Unit], sizes: Mapping[str, float], budget: float | None) -> None:
    if budget is None:
        return
    large = {unit.dataset.name: sizes[unit.dataset.file] for unit in units if sizes[unit.dataset.file] > budget}
    if large:
        names = ", ".join(f"{name!r} {size:.1f} GB" for name, size in large.items())
        raise ValueError(
            f"memory={budget:g} GB is less than one unit of these data sets is estimated to take: {names}."
        )
