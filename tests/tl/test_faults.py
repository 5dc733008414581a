"""What a run leaves behind when its process is killed or interrupted."""

import os
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pytest

import stdenoise as st

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
PARAMS = {"n_epochs": 8, "batch_size": 20, "n_hidden": 8, "n_latent": 3, "gate_reduction": 4, "lr": 1e-2}

# A run that saves after every step, in a process of its own; each step takes a while, so that it can be killed in the middle.
SCRIPT = f"""
import sys, time
import stdenoise as st
from stdenoise.methods.dusted.module import DUSTEDModule

loss = DUSTEDModule.loss
DUSTEDModule.loss = lambda *args: time.sleep(0.02) or loss(*args)
print("started", flush=True)
st.tl.denoise(
    "in.h5ad", schedule=sys.argv[1], checkpoint=st.Checkpoint("run.pt", minutes=0, resume=True), out="out.h5ad",
    compute=st.Compute(threads=1), **{PARAMS!r}
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    adata = st.datasets.tissue(n_spots=100, n_genes=12)
    st.pp.spatial_graph(adata)
    adata.write_h5ad(tmp_path / "in.h5ad")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(schedule):
    command = [sys.executable, "-c", SCRIPT, schedule]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert run.stdout.readline() == "started\n"
    return run


def wait_for_saving(folder):
    """Wait until a run has saved something, or something else."""
    path, deadline = folder / "run.pt", time.monotonic() + 60
    before = path.stat().st_mtime_ns if path.exists() else 0
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_mtime_ns > before):
        time.sleep(0.01)


def kill(folder, schedule, seconds):
    """Kill a run so long after it has saved something, and say whether it was still there."""
    run = start(schedule)
    wait_for_saving(folder)
    time.sleep(seconds)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)
    assert not (folder / "out.h5ad").exists() or run.returncode == 0
    return run.returncode == -signal.SIGKILL


def finished(schedule, **options):
    """Result of a run in this process, which none has disturbed or which goes on from what is saved."""
    out = "out.h5ad" if options else "whole.h5ad"
    params = {**PARAMS, **options}
    st.tl.denoise("in.h5ad", schedule=schedule, compute=st.Compute(threads=1), out=out, **params)
    adata = ad.read_h5ad(out)
    arrays = {name: adata.layers[f"dusted_{name}"] for name in ("mean", "dispersion", "dropout")}
    return arrays | adata.uns["dusted"]["history"]


def assert_goes_on(schedule):
    """Assert that a run that goes on has the bits of one that was not disturbed, which was another process."""
    resumed = finished(schedule, checkpoint=st.Checkpoint("run.pt", minutes=0, resume=True))
    whole = finished(schedule)
    assert resumed.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(resumed[name], whole[name])


@POSIX
@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(folder, schedule):
    before = (folder / "in.h5ad").read_bytes()
    assert kill(folder, schedule, 0)
    assert (folder / "run.pt").exists()
    if schedule == "fast":
        kill(folder, schedule, 0.1)
    assert_goes_on(schedule)
    assert (folder / "in.h5ad").read_bytes() == before
    # A temporary file of a killed process may stay; no half of a result does.
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {"in.h5ad", "out.h5ad", "run.pt", "whole.h5ad"}


@POSIX
@pytest.mark.slow
def test_twenty_random_kills(folder):
    for seconds in np.random.default_rng(2).uniform(0, 0.6, size=20):
        kill(folder, "fast", seconds)
        assert_goes_on("fast")
        for name in ("run.pt", "out.h5ad"):
            (folder / name).unlink(missing_ok=True)


@POSIX
def test_a_run_that_is_told_to_end_says_how_to_go_on(folder):
    run = start("fast")
    wait_for_saving(folder)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "stopped by SIGTERM; 'run.pt' is saved" in errors
    assert not (folder / "out.h5ad").exists()
    assert_goes_on("fast")
