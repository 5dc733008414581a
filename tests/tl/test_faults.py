"""What a run leaves behind when it is killed, interrupted, or when the disk or the numbers fail."""

import os
import shutil
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pytest

import stdenoise as st

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

# A run that saves after every step, in a process of its own; each step takes a while, so that it can be killed in the middle.
SCRIPT = """
import sys, time
import torch
import anndata
import stdenoise as st
from stdenoise.methods.dusted.module import DUSTEDModule

torch.set_num_threads(1)
loss = DUSTEDModule.loss
def slow(self, batch):
    time.sleep(0.02)
    return loss(self, batch)
if "slow" in sys.argv:
    DUSTEDModule.loss = slow
adata = anndata.read_h5ad("in.h5ad")
print("started", flush=True)
st.tl.denoise(
    adata, schedule=sys.argv[1], n_epochs=8, batch_size=20, n_hidden=8, n_latent=3, gate_reduction=4, lr=1e-2,
    checkpoint=st.Checkpoint("run.pt", minutes=0, resume=True), out="out.h5ad",
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    adata = st.datasets.tissue(n_spots=100, n_genes=12)
    st.pp.spatial_graph(adata)
    adata.write_h5ad(tmp_path / "in.h5ad")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*args):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def result(folder):
    adata = ad.read_h5ad(folder / "out.h5ad")
    history = adata.uns["dusted"]["history"]
    return {name: adata.layers[f"dusted_{name}"] for name in ("mean", "dispersion", "dropout")} | history


def assert_bitwise(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def finish(folder, schedule):
    done = start(schedule)
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    return result(folder)


def kill_and_finish(folder, schedule, n_kills, seed):
    """Kill a run several times at random moments of its training, each time going on from the checkpoint."""
    rng = np.random.default_rng(seed)
    n_killed = 0
    for _ in range(n_kills):
        run = start(schedule, "slow")
        assert run.stdout.readline() == "started\n"
        time.sleep(rng.uniform(0.02, 0.5))
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=60)
        n_killed += run.returncode == -signal.SIGKILL
        assert not (folder / "out.h5ad").exists() or run.returncode == 0
    return n_killed, finish(folder, schedule)


@POSIX
@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(folder, schedule):
    whole = finish(folder, schedule)
    (folder / "run.pt").unlink()
    (folder / "out.h5ad").unlink()
    before = (folder / "in.h5ad").read_bytes()
    n_killed, resumed = kill_and_finish(folder, schedule, 3, seed=1)
    assert n_killed > 0
    assert_bitwise(resumed, whole)
    assert (folder / "in.h5ad").read_bytes() == before
    # A temporary file of a killed process may stay; no half of a result does.
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "in.h5ad",
        "out.h5ad",
        "run.pt",
    }


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_twenty_random_kills(folder, seed):
    whole = finish(folder, "fast")
    for name in ("run.pt", "out.h5ad"):
        (folder / name).unlink()
    _, resumed = kill_and_finish(folder, "fast", 1, seed=seed)
    assert_bitwise(resumed, whole)


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(folder, number):
    run = start("fast", "slow")
    assert run.stdout.readline() == "started\n"
    deadline = time.monotonic() + 60
    while not (folder / "run.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0
    assert f"stopped by {number.name}; 'run.pt' is saved: run it again with resume to go on." in errors
    assert not (folder / "out.h5ad").exists()
    resumed = finish(folder, "fast")
    shutil.copy(folder / "run.pt", folder / "done.pt")
    (folder / "run.pt").unlink()
    assert_bitwise(resumed, finish(folder, "fast"))
