"""Import is cheap and pure; measured in fresh processes, since this one has imported everything."""

import json
import subprocess
import sys

import pytest


def fresh(script):
    """Run a script in a new process and return the JSON it prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def imported():
    return fresh(
        """
import json, logging, random, sys, warnings
import numpy
before = random.getstate(), numpy.random.get_state()[1].tolist(), warnings.filters[:], logging.root.level
import stdenoise
after = random.getstate(), numpy.random.get_state()[1].tolist(), warnings.filters[:], logging.root.level
print(json.dumps({
    "modules": sorted(sys.modules),
    "pure": [x == y for x, y in zip(before, after)],
    "handlers": [len(logging.getLogger(name).handlers) for name in (None, "stdenoise")],
    "level": logging.getLogger("stdenoise").level,
    "public": stdenoise.__all__,
    "complete": all(hasattr(stdenoise, name) for name in stdenoise.__all__),
}))
"""
    )


@pytest.mark.parametrize("heavy", ["torch", "scanpy", "squidpy", "torch_geometric", "anndata", "matplotlib", "sklearn"])
def test_import_leaves_heavy_libraries_for_later(imported, heavy):
    assert heavy not in imported["modules"]


def test_import_leaves_global_state_alone(imported):
    assert imported["pure"] == [True] * 4


def test_import_adds_no_log_handler_or_level(imported):
    assert imported["handlers"] == [0, 0]
    assert imported["level"] == 0


def test_public_rooms(imported):
    assert imported["complete"]
    assert set(imported["public"]) == {
        "Checkpoint",
        "Compute",
        "benchmark",
        "datasets",
        "get",
        "methods",
        "metrics",
        "pl",
        "pp",
        "settings",
        "tl",
    }


def test_import_takes_less_than_a_second():
    script = "import time; t = time.perf_counter(); import stdenoise; print(time.perf_counter() - t)"
    assert min(fresh(script) for _ in range(3)) < 1.0


def test_global_torch_generator_is_left_alone_by_all_of_the_package():
    state = fresh(
        """
import json, pkgutil, importlib, torch
torch.manual_seed(5)
before = torch.get_rng_state()
import stdenoise
for module in pkgutil.walk_packages(stdenoise.__path__, "stdenoise."):
    importlib.import_module(module.name)
print(json.dumps([bool(torch.equal(before, torch.get_rng_state())), torch.get_default_dtype() == torch.float32]))
"""
    )
    assert state == [True, True]
