import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stdenoise as st
from stdenoise import benchmark, metrics
from stdenoise._base.memory import peak_gb
from stdenoise._io import disk
from stdenoise.benchmark import _pool, _store
from stdenoise.benchmark._config import read_config
from stdenoise.benchmark._run import estimate_gb
from stdenoise.benchmark._units import job_of
from stdenoise.methods.baselines import GeneMean

NUMBERS = ["dataset", "method", "seed", "metric", "score", "value", "n_spots", "n_genes"]


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def temporary(folder):
    return list(folder.rglob(".*-*"))


def test_the_numbers_are_those_of_the_public_functions(config, tmp_path):
    config["metrics"] += [
        {"name": "held_out"},
        {"name": "smoothing"},
        {"name": "clustering", "args": {"n_components": 3}},
    ]
    config["seeds"] = [3]
    table = benchmark.run(config, folder=tmp_path / "out", n_jobs=0)
    adata = st.datasets.tissue(n_spots=37, n_genes=10, seed=1)
    st.pp.spatial_graph(adata)
    st.tl.denoise(adata, "neighbor_mean", n_hops=2, key_added="d", seed=3)
    mine = table[(table["dataset"] == "right") & (table["method"] == "two hops")].set_index(["metric", "score"])[
        "value"
    ]
    expected = {
        ("reconstruction", "mse"): metrics.reconstruction(adata, "d", truth="true_mean")["mse"],
        ("smoothing", "contrast_ratio"): metrics.smoothing(adata, "d", labels="region")["contrast_ratio"],
        ("clustering", "ari"): metrics.clustering(adata, "region", layer="d", n_components=3, seed=3)["ari"][0],
        ("held_out", "explained"): metrics.held_out(adata, "neighbor_mean", n_hops=2, seed=3)["explained"][0],
    }
    for key, value in expected.items():
        assert mine[key] == value, key
    assert set(table["n_genes"]) == {12, 10}
    assert set(table["seed"]) == {3}
    assert set(table.loc[table["metric"] == "held_out", "unit"]) == {"held_out"}
    assert table["peak_memory_gb"].isna().all()
    assert (table["seconds"] > 0).all()
    pd.testing.assert_frame_equal(benchmark.results(tmp_path / "out"), table)


def test_highly_variable_genes_and_an_own_graph(tmp_path):
    adata = st.datasets.tissue(n_spots=200, n_genes=60)
    del adata.layers["true_mean"]
    st.pp.spatial_graph(adata, radius=250)
    adata.write_h5ad(tmp_path / "own.h5ad")
    own = {"path": str(tmp_path / "own.h5ad"), "n_top_genes": 10}
    config = {
        "datasets": [{"name": "old graph", **own}, {"name": "new graph", **own, "graph": {"radius": 190}}],
        "methods": [{"name": "neighbor_mean"}, {"name": "raw"}],
        "metrics": [{"name": "smoothing"}, {"name": "held_out"}],
    }
    table = benchmark.run(config, folder=tmp_path / "out", n_jobs=0)
    assert set(table["n_genes"]) == {10}
    sections = [disk.read(path) for path in (tmp_path / "out" / "datasets").iterdir()]
    by_radius = {section.uns["spatial_neighbors"]["params"]["radius"]: section for section in sections}
    assert set(by_radius) == {190, 250}
    prepared = by_radius[190]
    assert prepared.var["highly_variable"].sum() == 10
    table = table[table["dataset"] == "new graph"]
    kept = table.set_index(["method", "score"])["value"]
    assert kept["raw", "variance_kept"] == 1 > kept["neighbor_mean", "variance_kept"]
    direct = metrics.held_out(prepared, "neighbor_mean", genes="highly_variable")
    assert kept["neighbor_mean", "explained"] == direct["explained"][0]


def test_nothing_is_done_twice(config, tmp_path, fits):
    first = benchmark.run(config, folder=tmp_path, n_jobs=0)
    assert len(fits) == 6
    pd.testing.assert_frame_equal(benchmark.run(config, folder=tmp_path, n_jobs=0), first)
    assert len(fits) == 6
    config["methods"].append({"name": "neighbor_mean"})
    config["methods"][1]["label"] = "renamed"
    table = benchmark.run(config, folder=tmp_path, n_jobs=0)
    assert fits[6:] == ["neighbor_mean"] * 2
    assert set(table["method"]) == {"raw", "renamed", "two hops", "neighbor_mean"}
    # What left the config leaves the table, and costs nothing when it comes back.
    config["methods"] = config["methods"][:1]
    assert set(benchmark.run(config, folder=tmp_path, n_jobs=0)["method"]) == {"raw"}
    assert len(fits) == 8


def test_the_same_numbers_in_another_folder_and_others_of_another_seed(config, tmp_path):
    config["datasets"] = config["datasets"][:1]
    params = {"n_epochs": 2, "n_hidden": 8, "n_latent": 3, "gate_reduction": 4}
    config["methods"].append({"name": "dusted", "params": params})
    first, second = (benchmark.run(config, folder=tmp_path / name, n_jobs=0) for name in "ab")
    pd.testing.assert_frame_equal(first[NUMBERS], second[NUMBERS])
    config["seeds"] = [1]
    third = benchmark.run(config, folder=tmp_path / "a", n_jobs=0)
    changed = first["value"].to_numpy() != third["value"].to_numpy()
    assert set(third.loc[changed & third["value"].notna(), "method_name"]) == {"dusted"}


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_a_killed_run_goes_on(config, tmp_path, fits):
    # Killed while it writes its sixth file: the plan, two data sets and two units are there.
    script = f"""if True:
        import os, signal
        from stdenoise import benchmark
        sync, calls = os.fsync, []
        def die(handle):
            calls.append(handle)
            os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 6 else sync(handle)
        os.fsync = die
        benchmark.run({config!r}, folder={str(tmp_path)!r}, n_jobs=0)
    """
    process = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(temporary(tmp_path)) == 1
    # What it wrote, and the lock on it.
    assert len(files(tmp_path / "units")) == 2 + 2
    table = benchmark.run(config, folder=tmp_path, n_jobs=0)
    assert len(fits) == 4
    assert temporary(tmp_path) == []
    whole = benchmark.run(config, folder=tmp_path / "whole", n_jobs=0)
    pd.testing.assert_frame_equal(table[NUMBERS], whole[NUMBERS])


@pytest.mark.skipif(sys.platform != "linux", reason="looks for a process in /proc")
def test_a_worker_ends_with_its_parent(config, tmp_path):
    benchmark.run(config | {"methods": [{"name": "raw"}]}, folder=tmp_path, n_jobs=0)
    # Would take a day.
    slow = {"name": "dusted", "params": {"schedule": "paper", "n_epochs": 10**7}}
    [unit, *_] = read_config(config | {"methods": [slow]}).units()
    script = f"""if True:
        import os, pathlib
        from stdenoise.benchmark import _pool
        executor = _pool.ProcessPoolExecutor(1)
        print(executor.submit(os.getpid).result(), flush=True)
        executor.submit(_pool._perform, {job_of(unit, "cpu")!r}, pathlib.Path({str(tmp_path)!r}), 1, os.getpid()).result()
    """
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = Path("/proc", parent.stdout.readline().strip())
    time.sleep(3)
    assert parent.poll() is None
    assert worker.exists()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.exists()


def test_parallel_gives_the_same_numbers_and_survives_a_dead_worker(config, tmp_path, monkeypatch):
    config["datasets"] = config["datasets"][:1]

    class Killed(_pool.ProcessPoolExecutor):
        def submit(self, function, job, *args):
            if job.get("method") == "raw":
                return super().submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
            return super().submit(function, job, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_pool, "ProcessPoolExecutor", Killed)
        table = benchmark.run(config, folder=tmp_path / "parallel", n_jobs=2)
    assert set(table["method"]) == {"gene_mean", "two hops"}
    assert (table["peak_memory_gb"] > 0.1).all()
    text = benchmark.report(tmp_path / "parallel", figures=False).read_text()
    assert re.search("- left, raw, seed 0, fit: its process died: .*SIGKILL", text)
    serial = benchmark.run(config, folder=tmp_path / "serial", n_jobs=0)
    # What failed is tried again; the peak of its memory is not that of the parent.
    ballast = b"x" * 400_000_000
    table = benchmark.run(config, folder=tmp_path / "parallel", n_jobs=1)
    pd.testing.assert_frame_equal(table[NUMBERS], serial[NUMBERS], rtol=1e-6)
    if sys.platform == "linux":
        # Elsewhere a process may not know its own peak.
        assert peak_gb() > len(ballast) / 1e9
        peaks = table.groupby("method")["peak_memory_gb"].max()
        assert peaks["raw"] == pytest.approx(peaks["gene_mean"], abs=0.1)


def test_a_failing_method_is_reported_and_tried_again(config, tmp_path, monkeypatch):
    def diverge(self, spots, *, seed, progress):
        raise FloatingPointError("the loss is NaN\nin epoch 3")

    with monkeypatch.context() as patch:
        patch.setattr(GeneMean, "fit", diverge)
        table = benchmark.run(config, folder=tmp_path, n_jobs=0)
    assert set(table["method"]) == {"raw", "two hops"}
    assert len(files(tmp_path / "units")) == 4
    text = benchmark.report(tmp_path, figures=False).read_text()
    assert "4 of 6 units are complete" in text
    assert "- right, gene_mean, seed 0, fit: FloatingPointError: the loss is NaN in epoch 3" in text
    assert set(benchmark.run(config, folder=tmp_path, n_jobs=0)["method"]) == {"raw", "gene_mean", "two hops"}
    text = benchmark.report(tmp_path, figures=False).read_text()
    assert "6 of 6 units are complete" in text
    assert "Failed" not in text
    assert files(tmp_path / "failed") == []


def test_an_interrupt_is_no_failure(config, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(GeneMean, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(config, folder=tmp_path, n_jobs=0)
    assert len(files(tmp_path / "units")) == 1
    assert files(tmp_path / "failed") == temporary(tmp_path) == []


def test_a_failing_metric_or_data_set_leaves_the_others(config, tmp_path):
    config["metrics"].append({"name": "clustering", "args": {"n_components": 11}})
    config["datasets"].append({"name": "none", "tissue": {"n_spots": -5}})
    table = benchmark.run(config, folder=tmp_path, n_jobs=0)
    assert set(table.loc[table["metric"] == "reconstruction", "dataset"]) == {"left", "right"}
    assert set(table.loc[table["metric"] == "clustering", "dataset"]) == {"left"}
    text = benchmark.report(tmp_path, figures=False).read_text()
    assert "right, raw, seed 0, fit: ValueError: n_components" in text
    assert "- none, raw, seed 0, fit: no data set: ValueError: n_spots must be an integer >= 1, not -5." in text


def test_a_full_disk(config, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 6:  # the first three are the plan and the data sets
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left on the disk. Finished units are kept") as caught:
            benchmark.run(config, folder=tmp_path, n_jobs=0)
    assert caught.value.errno == errno.ENOSPC
    assert temporary(tmp_path) == []
    assert len(files(tmp_path / "units")) == 2
    assert files(tmp_path / "failed") == []
    for path in (tmp_path / "units").iterdir():
        assert json.loads(path.read_text())["scores"]["reconstruction"]["mse"] > 0
    assert len(benchmark.run(config, folder=tmp_path, n_jobs=0).drop_duplicates(["dataset", "method"])) == 6


def test_a_disk_that_is_full_while_a_data_set_is_written(config, tmp_path, monkeypatch):
    def full(adata, path):
        raise OSError("Can't synchronously write data (errno = 28, error message = 'No space left on device')")

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(_store.DiskFull, match="no space left"):
        benchmark.run(config, folder=tmp_path, n_jobs=0)
    assert files(tmp_path / "datasets") == []


class FakeExecutor:
    """Works for some milliseconds; remembers how much runs at a time."""

    running, most, threads, stopped, errors = [], [], [], [], {}

    def __init__(self, max_workers, *, env):
        self.threads.append({*env.values()})

    def submit(self, function, job, *args):
        self.job, future = job, Future()
        self.running.append(job)
        self.most.append([j["gb"] for j in self.running])

        def end():
            self.running.remove(job)
            error = self.errors.get(job["title"])
            future.set_result(None) if error is None else future.set_exception(error)

        self.timer = threading.Timer(job["seconds"], end)
        self.timer.start()
        return future

    def shutdown(self, *, kill_workers=False):
        if kill_workers:
            self.timer.cancel()
            self.stopped.append(self.job["title"])


@pytest.fixture
def fake(monkeypatch):
    for name in ("running", "most", "threads", "stopped"):
        monkeypatch.setattr(FakeExecutor, name, [])
    monkeypatch.setattr(FakeExecutor, "errors", {})
    monkeypatch.setattr(_pool, "ProcessPoolExecutor", FakeExecutor)
    return FakeExecutor


def do_all(jobs, *, on_change=None, budget=None, **arguments):
    ended = []
    on_change = on_change or (lambda titles, n: ended.append(n))
    _pool.do_all(jobs, Path(), estimate=lambda job: job["gb"], on_change=on_change, budget=budget, **arguments)
    return sum(ended)


def test_what_runs_fits_into_the_memory(fake):
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0.5, 4, size=40)
    jobs = [{"title": str(i), "gb": float(g), "seconds": 0.01 * (1 + i % 4)} for i, g in enumerate(sizes)]
    assert do_all(jobs, n_jobs=6, budget=5.0) == 40
    assert max(map(sum, fake.most)) <= 5
    assert max(map(len, fake.most)) > 1
    fake.most.clear()
    assert do_all(jobs, n_jobs=6) == 40
    assert max(map(len, fake.most)) == 6
    assert max(map(sum, fake.most)) > 5


def test_a_worker_without_disk_or_an_interrupt_ends_the_others(fake):
    def interrupt(titles, n_ended):
        if n_ended:
            raise KeyboardInterrupt

    jobs = [{"title": str(i), "gb": 1.0, "seconds": 0.05 if i == 1 else 60.0} for i in range(5)]
    with pytest.raises(KeyboardInterrupt):
        do_all(jobs, n_jobs=3, on_change=interrupt)
    assert fake.stopped == ["0", "2"]
    fake.running.clear()
    fake.errors["1"] = _store.DiskFull(errno.ENOSPC, "no space left")
    with pytest.raises(_store.DiskFull):
        do_all(jobs, n_jobs=3)
    assert fake.stopped == ["0", "2"] * 2


def test_the_cores_are_shared(fake, monkeypatch):
    monkeypatch.setattr(_pool, "n_cores", lambda: 7)
    for n_jobs in (1, 2, 9):
        do_all([{"title": "0", "gb": 1.0, "seconds": 0.0}], n_jobs=n_jobs)
    assert fake.threads == [{"7"}, {"3"}, {"1"}]


def test_the_estimate_covers_what_was_measured():
    # GB at most of DUSTED on dlpfc_151673 with 3000 genes (null test), and on xenium_mouse_brain (held-out).
    assert 1.51 < estimate_gb(3639, 3000) < 2
    assert 1.66 < estimate_gb(36553, 248) < 3


def test_a_unit_that_never_fits(config, tmp_path, fits):
    config["datasets"].append({"name": "large", "tissue": {"n_spots": 2000, "n_genes": 2000}})
    needed = estimate_gb(2000, 2000)
    with pytest.raises(ValueError, match=f"memory=0.7 GB is less than .*: 'large' {needed:.1f} GB"):
        benchmark.run(config, folder=tmp_path, n_jobs=0, memory="700 MB")
    assert fits == []


def test_bad_arguments(config, tmp_path):
    with pytest.raises(ValueError, match="n_jobs"):
        benchmark.run(config, folder=tmp_path / "out", n_jobs=-1)
    with pytest.raises(ValueError, match="device"):
        benchmark.run(config, folder=tmp_path / "out", device="abacus")
    with pytest.raises(FileNotFoundError, match="no benchmark in"):
        benchmark.results(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lost_or_broken_file_is_done_again(config, tmp_path, fits):
    benchmark.run(config, folder=tmp_path, n_jobs=0)
    one, two, *_ = sorted((tmp_path / "units").iterdir())
    one.write_text("{")
    two.unlink()
    shutil.rmtree(tmp_path / "datasets")
    assert len(benchmark.run(config, folder=tmp_path, n_jobs=0).drop_duplicates(["dataset", "method"])) == 6
    assert len(fits) == 8
    assert len(files(tmp_path / "datasets")) == 1


def test_a_progress_bar(config, tmp_path, capsys):
    benchmark.run(config, folder=tmp_path / "a", n_jobs=0, progress=True)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "right, two hops, seed 0, fit" in shown
    benchmark.run(config, folder=tmp_path / "b", n_jobs=0, progress=False)
    assert capsys.readouterr().err == ""
