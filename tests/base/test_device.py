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
LAUNCHED = {
    "nothing": ({}, None, True),
    "a batch script": (SBATCH, None, True),
    "half of torchrun": ({"RANK": "3"}, None, True),
    "torchrun": (TORCHRUN, (4, 2), False),
    "srun": (SRUN, (4, 2), False),
    "the first of torchrun": (TORCHRUN | {"RANK": "0"}, (4, 2), True),
    "the first of srun": (SRUN | {"SLURM_PROCID": "0"}, (4, 2), True),
    "torchrun of one": (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, None, True),
    "srun of one": (SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, None, True),
    # srun starts one torchrun per machine; each starts four processes.
    "torchrun by srun": (SRUN | {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"} | TORCHRUN, (4, 2), False),
}


@pytest.mark.parametrize("launcher", LAUNCHED)
def test_processes_per_machine_and_machines_and_who_speaks(monkeypatch, launcher):
    environment, processes, speaks = LAUNCHED[launcher]
    for name in {*TORCHRUN, *SRUN} - {*environment}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert started_by_launcher() == processes
    assert speaks_for_all() == speaks


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


def test_cores_of_a_group_and_of_those_around_it(cores, monkeypatch):
    assert usable_cores() == 8
    cores("proc/self/cgroup", "0::/job/step\n")
    cores("groups/job/step/cpu.max", "max 100000\n")
    assert usable_cores() == 8
    cores("groups/job/cpu.max", "250000 100000\n")
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert usable_cores() == 2
    cores("groups/cpu.max", "5000 100000\n")
    assert usable_cores() == 1


def test_cores_of_a_group_of_version_1(cores):
    cores("proc/self/cgroup", "7:cpu,cpuacct:/docker/abc\n4:memory:/\n0::/\n")
    cores("groups/cpu/cpu.cfs_period_us", "100000\n")
    # No limit, one, and one of more than there are.
    for quota, expected in (("-1", 8), ("400000", 4), ("6400000", 8)):
        cores("groups/cpu/cpu.cfs_quota_us", f"{quota}\n")
        assert usable_cores() == expected


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
