"""Doing one piece of work: preparing a data set, or running a unit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stdenoise import tl
from stdenoise._base import keys as _keys
from stdenoise._base.memory import peak_gb
from stdenoise._io import disk
from stdenoise.benchmark import _sources
from stdenoise.benchmark._metrics import KEY, measure
from stdenoise.benchmark._store import (
    DATASETS,
    FAILED,
    UNITS,
    disk_full,
    is_disk_full,
    write_json,
)
from stdenoise.benchmark._units import FIT
from stdenoise.methods._registry import make_method

if TYPE_CHECKING:
    from anndata import AnnData

Job = Mapping[str, Any]


def perform(job: Job, folder: Path, *, isolated: bool) -> None:
    """Do a piece of work and store what came of it, or why it failed.

    Parameters
    ----------
    job
        See `stdenoise.benchmark._units.job_of` and `preparation_of`.
    folder
        Folder of the benchmark.
    isolated
        Whether the process does nothing else, so that its peak memory is that of the unit.

    Raises
    ------
    DiskFull
        There is no space left.
    """
    started = time.perf_counter()
    target = folder / UNITS / str(job["file"])
    try:
        if "prepare" in job:
            target = folder / DATASETS / str(job["file"])
            disk.write(_sources.make(job["prepare"]), target)
            return
        result = _run_unit(job, folder, isolated=isolated)
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(target) from error
        fail(job, folder, describe(error))
        return
    result |= {"hash": job["hash"], "total_seconds": time.perf_counter() - started}
    result["total_peak_memory_gb"] = _peak(isolated=isolated)
    if result["errors"]:
        fail(job, folder, "; ".join(result["errors"].values()), result)
        return
    write_json(target, result)


def describe(error: BaseException) -> str:
    """Name the type and message of an error in one line."""
    # str() of a KeyError would quote its message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f"{type(error).__name__}: {' '.join(str(message).split())}"


def fail(job: Job, folder: Path, message: str, result: Mapping[str, Any] | None = None) -> None:
    """Store why a unit failed, with the scores that were computed all the same."""
    path = (folder / FAILED / str(job["file"])).with_suffix(".json")
    write_json(path, {"scores": {}, **(result or {}), "hash": job["hash"], "error": message})


def _run_unit(job: Job, folder: Path, *, isolated: bool) -> dict[str, Any]:
    adata = disk.read(folder / DATASETS / str(job["data"]))
    genes = _keys.HIGHLY_VARIABLE if job["subset"] else None
    supplied = {
        "device": job["device"],
        "labels": job["labels"],
        "truth": job["truth"],
        "layer": KEY,
        "library_key": job["library_key"],
        "progress": False,
        "seed": job["seed"],
    }
    method = make_method(job["method"], dict(job["params"]))
    shared = {"genes": genes, "library_key": job["library_key"], "device": job["device"], "seed": job["seed"]}
    started = time.perf_counter()
    if job["group"] == FIT:
        tl.denoise(adata, method, key_added=KEY, progress=False, **shared)
    else:
        # The method is fitted again on altered counts, which are read from X.
        supplied |= {"method": method, "layer": None, "genes": genes}
    seconds, peak = time.perf_counter() - started, _peak(isolated=isolated)
    scores: dict[str, dict[str, float | None]] = {}
    errors: dict[str, str] = {}
    for metric in job["metrics"]:
        try:
            scores[metric["label"]] = _plain(_measure(metric, adata, supplied))
        except Exception as error:  # noqa: BLE001, other metrics of a long fit are kept
            errors[metric["label"]] = describe(error)
    if job["group"] != FIT:
        seconds, peak = time.perf_counter() - started, _peak(isolated=isolated)
    return {
        "scores": scores,
        "errors": errors,
        "seconds": seconds,
        "peak_memory_gb": peak,
        "n_spots": adata.n_obs,
        "n_genes": int(adata.var[genes].sum()) if genes else adata.n_vars,
    }


def _measure(metric: Mapping[str, Any], adata: AnnData, supplied: Mapping[str, Any]) -> dict[str, float]:
    return measure(metric["name"], adata, args=metric["args"], supplied=supplied)


def _peak(*, isolated: bool) -> float | None:
    """Most memory that this process has held, in GB; missing where it is not the unit's own, or the system does not say."""
    return _plain({"peak": peak_gb()})["peak"] if isolated else None


def _plain(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Write what is not finite as missing; JSON has no NaN."""
    return {name: float(value) if np.isfinite(value) else None for name, value in scores.items()}
