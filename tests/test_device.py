import pytest

from stdenoise._device import speaks_for_all, started_by_launcher

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
