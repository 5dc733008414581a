"""Several processes that train one network: the same result, and what is left when one of them ends."""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import stdenoise as st
from stdenoise.methods import DUSTED, STAGATE
from stdenoise.methods._network import Model
from stdenoise.spatial.results import collect
from stdenoise.train.checkpoint import load_tensors
from stdenoise.train.devices import join, spawn
from stdenoise.train.run import Run

LINUX = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
CPU = torch.device("cpu")
SMALL = {"n_hidden": 8, "n_latent": 3, "n_epochs": 6}
# Large steps from where the means are not far off.
STEPS = {**SMALL, "gate_reduction": 4, "alpha": 0.1, "lr": 1e-2}
PAPER = {**STEPS, "schedule": "paper"}
# With slow steps, long enough to be killed.
LONG = {**PAPER, "n_epochs": 250, "lr": 1e-3}
NETWORKS = {
    "paper": (DUSTED, PAPER),
    "fast": (DUSTED, {**STEPS, "schedule": "fast", "batch_size": 60, "likelihood": "nb"}),
    "stagate, batches": (STAGATE, {**SMALL, "batch_size": 60}),
}
N_SPOTS = 200

# Trains all networks with two processes, which import what they call.
TRAINING = """
from stdenoise.train.run import Run

def train(fabric, networks, spots):
    run = Run(seed=3, fabric=fabric, max_spots=40)
    return {name: vars(make(**params).train(spots, run)) for name, (make, params) in networks.items()}
"""
SCRIPT = """
import pickle
from pathlib import Path
import torch
from stdenoise.train.devices import spawn
from training import train

device = torch.device("cpu")
models = spawn(train, *pickle.loads(Path("in.pkl").read_bytes()), device=device, n_devices=2, strategy="auto")
Path("out.pkl").write_bytes(pickle.dumps(models))
"""

# Python imports this first, in whatever process: each step takes a while.
SLOW = """
import os, pathlib, time
import torch
from stdenoise.methods.dusted.module import DUSTEDModule

torch.set_num_threads(1)
loss = DUSTEDModule.loss
def slow(self, batch):
    pathlib.Path("training" + os.environ["RANK"]).touch()
    time.sleep(0.08)
    return loss(self, batch)
DUSTEDModule.loss = slow
"""


@pytest.fixture(scope="module")
def section():
    adata = st.datasets.tissue(n_spots=N_SPOTS, n_genes=12)
    st.pp.spatial_graph(adata)
    return adata


@pytest.fixture(scope="module")
def spots(section, read_spots):
    return read_spots(section, graph_key="spatial", spatial_key="spatial")


@pytest.fixture
def folder(section, tmp_path, monkeypatch):
    section.write_h5ad(tmp_path / "in.h5ad")
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUNNING = []


@pytest.fixture(autouse=True)
def end_all():
    """End what a failed test has left running."""
    yield
    while RUNNING:
        run = RUNNING.pop()
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=60)


def start(*command, cwd=None, **environment):
    """Start Python in a group of processes of its own, as a terminal does."""
    run = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=cwd,
        start_new_session=True,
    )
    RUNNING.append(run)
    return run


def torchrun(*command, **environment):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return start(*launcher, *command, **environment)


def denoising(*options, **params):
    """Arguments of Python that denoise `in.h5ad` by the command line."""
    sets = [part for name, value in params.items() for part in ("--set", f"{name}={value}")]
    return ["-m", "stdenoise", "-v", "denoise", "in.h5ad", "out.zarr", "--no-progress", *sets, *options]


def ended(run):
    """What a run has printed and logged, once it has ended well."""
    printed, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    return printed, errors


def assert_close(ours, theirs, rtol=1e-5):
    for name in ("mean", "dispersion", "dropout"):
        values = theirs.layers[f"dusted_{name}"]
        np.testing.assert_allclose(ours.layers[f"dusted_{name}"], values, rtol=rtol, atol=1e-5 * values.max())


def means_of(denoiser, model, spots):
    return collect(denoiser.predict(model, spots, Run()), N_SPOTS, {}).mean.numpy()


# The same result


@pytest.fixture(scope="module")
def two_processes(spots, tmp_path_factory):
    """The networks that two processes have trained."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "run.py").write_text(SCRIPT)
    (folder / "training.py").write_text(TRAINING)
    (folder / "in.pkl").write_bytes(pickle.dumps((NETWORKS, spots)))
    ended(start("run.py", cwd=folder))
    return {name: Model(**model) for name, model in pickle.loads((folder / "out.pkl").read_bytes()).items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_two_processes_give_the_result_of_one(spots, two_processes, name):
    make, params = NETWORKS[name]
    denoiser, two = make(**params), two_processes[name]
    one = denoiser.train(spots, Run(seed=3))
    assert one.history.keys() == two.history.keys()
    for key, values in one.history.items():
        np.testing.assert_allclose(two.history[key], values, rtol=1e-5)
    for key, tensor in one.state.items():
        torch.testing.assert_close(two.state[key], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()))
    ours, theirs = (means_of(denoiser, model, spots) for model in (two, one))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    # Much was trained, and another seed gives another network.
    assert one.history["loss"][-1] < 0.95 * one.history["loss"][0]
    other = denoiser.train(spots, Run(seed=4))
    assert not np.allclose(means_of(denoiser, other, spots), theirs, rtol=1e-2)


@pytest.fixture(scope="module")
def whole(section):
    """The result of a single process."""
    return st.tl.denoise(section, copy=True, **PAPER)


def test_one_argument_is_enough(section, whole, tmp_path):
    path = tmp_path / "run.pt"
    model = st.tl.train(section, compute=st.Compute(devices=2), checkpoint=path, **PAPER)
    two = st.tl.denoise(section, model, copy=True)
    assert_close(two, whole)
    np.testing.assert_allclose(two.uns["dusted"]["history"]["loss"], whole.uns["dusted"]["history"]["loss"], rtol=1e-5)
    # The training is over: nothing is left to be done.
    resumed = st.tl.denoise(section, copy=True, checkpoint=st.Checkpoint(path, resume=True), **PAPER)
    np.testing.assert_array_equal(resumed.layers["dusted_mean"], two.layers["dusted_mean"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_process_that_fails_says_why(section):
    with pytest.raises(ChildProcessError, match="has failed: FloatingPointError: dusted: the loss is"):
        st.tl.denoise(section, compute=st.Compute(devices=2), **{**PAPER, "lr": 1e30, "n_epochs": 6})
    assert "dusted" not in section.uns


def test_a_process_that_cannot_leave_does_not_hold_up_the_result(tmp_path, monkeypatch):
    """As one whose threads wait for another that has left."""
    code = "import atexit, time\ndef work(fabric):\n    if fabric.global_rank: atexit.register(time.sleep, 90)\n    return 'whole'\n"
    (tmp_path / "slow_to_leave.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("stdenoise.train.devices._PATIENCE", 0.5)
    started = time.monotonic()
    assert spawn(importlib.import_module("slow_to_leave").work, device=CPU, n_devices=2, strategy="auto") == "whole"
    assert time.monotonic() - started < 90


def test_a_process_on_its_own_joins_nothing(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert join(CPU, "auto") is None
    run = Run()
    assert (run.share, run.is_first, run.tell("word")) == ((0, 1), True, "word")
    tensors = [torch.arange(3.0)]
    run.add_up(tensors)
    run.wait()
    assert tensors[0].tolist() == [0, 1, 2]


# torchrun


def test_torchrun(whole, folder):
    printed, _ = ended(torchrun(*denoising("--dtype", "float32", **PAPER)))
    assert_close(ad.read_zarr("out.zarr"), whole)
    # The first process speaks for all.
    assert printed.count(f"{N_SPOTS} spots x 12 genes") == 1
    assert printed.count("written   layers/dusted_mean") == 1
    assert {path.name for path in folder.iterdir()} == {"in.h5ad", "out.zarr"}


def least_memory(section):
    from stdenoise.tl._plan import Size, make_plan

    low, high = 0.0, 10.0
    while high - low > 1e-8:
        middle = (low + high) / 2
        size = Size(*section.shape, section.X.nnz)
        try:
            make_plan(DUSTED(**PAPER), size, n_arrays=3, memory=middle, device=CPU, may_stream=True)
        except MemoryError:
            low = middle
        else:
            high = middle
    return high


def test_torchrun_from_disk_to_disk(section, whole, folder):
    options = ["--dtype", "float32", "--memory", f"{least_memory(section):.9f}", "--save-model", "network.pt"]
    printed, errors = ended(torchrun(*denoising(*options, **PAPER)))
    assert "counts and results on disk" in errors
    after = ad.read_zarr("out.zarr")
    assert_close(after, whole, rtol=2e-4)
    np.testing.assert_array_equal(after.obs_names, section.obs_names)
    assert printed.count(f"{N_SPOTS} spots x 12 genes") == 1
    assert {path.name for path in folder.iterdir()} == {"in.h5ad", "out.zarr", "network.pt"}


def test_torchrun_and_a_method_that_cannot_be_shared(folder):
    printed, _ = ended(torchrun(*denoising("--method", "dca", n_epochs=2)))
    # The first process works alone.
    assert printed.count("written   layers/dca_mean") == 1
    assert "dca_mean" in ad.read_zarr("out.zarr").layers


# One process ends


def children_of(pid):
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert len(found) == 2
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def start_slow_run(folder, launch, *options, minutes=0):
    """Start a run that would take minutes, and wait until both processes train or, if they do so at once, have saved something."""
    (folder / "slow").mkdir()
    (folder / "slow" / "sitecustomize.py").write_text(SLOW)
    command = denoising("--checkpoint", "run.pt", *options, "--checkpoint-minutes", minutes, **LONG)
    run = launch(*command, PYTHONPATH=str(folder / "slow"))
    # A process that has not begun its first step does not yet delay signals.
    ready = [folder / name for name in (("training0", "training1") if minutes else ("run.pt",))]
    wait_until(lambda: all(path.exists() for path in ready))
    return run


@LINUX
@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_run_and_leaves_a_checkpoint(section, folder, which):
    run = start_slow_run(folder, start, "--devices", 2)
    children = children_of(run.pid)
    killed_at = time.monotonic()
    os.kill(children[which], signal.SIGKILL)
    printed, errors = run.communicate(timeout=60)
    assert time.monotonic() - killed_at < 30
    assert run.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("Error")]
    assert "a process of this training has" in line
    assert line.endswith("'run.pt' is saved: run it again with resume to go on.")
    wait_until(lambda: not any(map(is_running, children)))
    assert printed == ""
    assert not (folder / "out.zarr").exists()
    assert_goes_on(section, folder)


def assert_goes_on(section, folder):
    """Assert that a single process ends what several have begun, with the result of one that did all."""
    state = load_tensors(folder / "run.pt", "checkpoint")["state"]
    assert (0, 0) < (state["epoch"], state["step"]) < (LONG["n_epochs"] - 50, 0)
    resumed = st.tl.denoise(section, copy=True, checkpoint=st.Checkpoint(folder / "run.pt", resume=True), **LONG)
    # Rounding grows with each step.
    n_epochs = state["epoch"] + 3
    whole = st.tl.denoise(section, copy=True, **{**LONG, "n_epochs": n_epochs})
    ours, theirs = (adata.uns["dusted"]["history"]["loss"] for adata in (resumed, whole))
    assert len(ours) == LONG["n_epochs"]
    np.testing.assert_allclose(ours[:n_epochs], theirs, rtol=1e-4)
    assert ours[-1] < 0.9 * ours[n_epochs]


@LINUX
@pytest.mark.parametrize("whom", ["all", pytest.param("parent", marks=pytest.mark.slow)])
def test_an_interrupted_run_says_how_to_go_on(folder, whom):
    run = start_slow_run(folder, start, "--devices", 2)
    children = children_of(run.pid)
    # A terminal tells all of them.
    (os.killpg if whom == "all" else os.kill)(run.pid, signal.SIGINT)
    printed, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "stopped; 'run.pt' is saved: run it again with resume to go on." in errors
    assert "Traceback" not in errors
    assert printed == ""
    assert not any(map(is_running, children))
    assert not (folder / "out.zarr").exists()


@LINUX
def test_no_process_outlives_the_one_that_started_it(folder):
    run = start_slow_run(folder, start, "--devices", 2, minutes=1000)
    children = children_of(run.pid)
    assert not (folder / "run.pt").exists()
    run.kill()
    wait_until(lambda: not any(map(is_running, children)))
    # They were told to end, and ended well.
    assert (folder / "run.pt").exists()


@LINUX
def test_an_interrupted_torchrun_is_saved(folder):
    run = start_slow_run(folder, torchrun, minutes=1000)
    assert not (folder / "run.pt").exists()
    # The processes get it from the terminal and, as torchrun hands it on, again.
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert "stopped by SIGINT; 'run.pt' is saved: run it again with resume to go on." in errors
    assert (folder / "run.pt").exists()
    assert not (folder / "out.zarr").exists()
