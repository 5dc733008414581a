import logging
import os

import pytest
import torch

import stdenoise as st
from stdenoise._base import device as _device
from stdenoise._base import memory as _memory
from stdenoise._base.device import keeping_threads, speaks_for_all, started_by_launcher, usable_cores

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3"}
# What a batch script of SLURM has, and what a process has that srun started.
SBATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_LOCALID": "0"}
SRUN = SBATCH | {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_STEP_NUM_TASKS": "8"}


@pytest.fixture
def launched(monkeypatch):
    """Set what a launcher sets."""

    def launch(environment):
        for name in {*TORCHRUN, *SRUN, *SBATCH}:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize("environment", [{}, SBATCH, {"RANK": "3"}, {"WORLD_SIZE": "8"}], ids=str)
def test_without_a_launcher(launched, environment):
    launched(environment)
    assert started_by_launcher() is None
    assert speaks_for_all()


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_processes_per_machine_and_machines(launched, environment):
    launched(environment)
    assert started_by_launcher() == (4, 2)
    assert not speaks_for_all()


@pytest.mark.parametrize(
    "environment", [TORCHRUN | {"RANK": "0"}, SRUN | {"SLURM_PROCID": "0"}], ids=["torchrun", "srun"]
)
def test_the_first_process_speaks(launched, environment):
    launched(environment)
    assert started_by_launcher() == (4, 2)
    assert speaks_for_all()


@pytest.mark.parametrize(
    "environment",
    [
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
        SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"},
    ],
    ids=["torchrun", "srun"],
)
def test_one_process_is_alone(launched, environment):
    launched(environment)
    assert started_by_launcher() is None
    assert speaks_for_all()


def test_torchrun_within_a_job_of_slurm(launched):
    # srun starts one torchrun per machine; each starts four processes.
    launched(SRUN | {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"} | TORCHRUN)
    assert started_by_launcher() == (4, 2)
    assert not speaks_for_all()


# Threads


@pytest.fixture
def cores(tmp_path, monkeypatch):
    """Write files of control groups; eight cores are in the affinity of this process."""
    monkeypatch.setattr(_memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(_memory, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_cores_without_control_groups(cores, monkeypatch):
    assert usable_cores() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores() == 5


def test_cores_of_a_group_and_of_those_around_it(cores):
    cores("proc/self/cgroup", "0::/job/step\n")
    cores("groups/job/step/cpu.max", "max 100000\n")
    assert usable_cores() == 8
    cores("groups/job/cpu.max", "250000 100000\n")
    assert usable_cores() == 3
    cores("groups/cpu.max", "5000 100000\n")
    assert usable_cores() == 1


def test_cores_of_a_group_of_version_1(cores):
    cores("proc/self/cgroup", "7:cpu,cpuacct:/docker/abc\n4:memory:/\n0::/\n")
    cores("groups/cpu/cpu.cfs_quota_us", "-1\n")
    cores("groups/cpu/cpu.cfs_period_us", "100000\n")
    assert usable_cores() == 8
    cores("groups/cpu/cpu.cfs_quota_us", "400000\n")
    assert usable_cores() == 4
    # More than there are.
    cores("groups/cpu/cpu.cfs_quota_us", "6400000\n")
    assert usable_cores() == 8


def test_threads_are_put_back_after_an_error_too():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="broken"), keeping_threads():
        torch.set_num_threads(before + 1)
        raise ValueError("broken")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("n_cores", "warned"), [(0, True), (1, False)])
def test_more_threads_than_cores_are_warned_of_once(hexagonal, monkeypatch, caplog, n_cores, warned):
    n_threads = torch.get_num_threads()
    monkeypatch.setattr(_device, "usable_cores", lambda: n_threads + n_cores - 1)
    st.tl.denoise(hexagonal, "dusted", n_hidden=8, n_latent=3, n_epochs=2)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == warned
    if warned:
        assert f"{n_threads} threads" in messages[0]
        assert f"torch.set_num_threads({n_threads - 1})" in messages[0]
