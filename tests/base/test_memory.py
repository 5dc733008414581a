import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stdenoise._base import memory as _memory
from stdenoise._base.memory import free_gb, peak_gb, read_memory


def test_memory_is_gigabytes_unless_it_says_otherwise():
    amounts = {"8 GB": 8, "500MB": 0.5, "1 GiB": 1.073741824, 0.5: 0.5, "3": 3, "0.1 tb": 100}
    assert {text: read_memory(text) for text in amounts} == pytest.approx(amounts)
    for memory in ("much", "0 GB", -1, "8 GBit", True):
        with pytest.raises((ValueError, TypeError), match="memory"):
            read_memory(memory)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Write files of the system: 16 GB are available, and there are no control groups yet."""
    monkeypatch.setattr(_memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(_memory, "_CGROUPS", tmp_path / "groups")

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", "MemTotal:  20000000 kB\nMemAvailable:   15625000 kB\n")
    return write


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
V2 = ("memory.max", "memory.current", "memory.stat")
GROUPS = {
    "none": (None, {}, 16),
    "a limit around the group": (
        "0::/job/step\n",
        {
            "job": (V2, "4000000000", "3000000000", "anon 5\ninactive_file 500000000\n"),
            "job/step": (V2, "max", "1", "inactive_file 0"),
        },
        1.5,
    ),
    # Whatever its name, the group of a container is at the root.
    "a container": (
        "7:cpu,memory:/docker/abc\n4:pids:/docker/abc\n0::/\n",
        {"memory": (V1, "2000000000", "500000000", "inactive_file 7\ntotal_inactive_file 100000000\n")},
        1.6,
    ),
    "no limit": ("4:memory:/\n", {"memory": (V1, "9223372036854771712", "500000000", "total_inactive_file 0\n")}, 16),
    "used up": ("0::/\n", {".": (V2, "1000", "2000", "")}, 0),
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_control_group_leaves_what_it_has_not_used(system, name):
    own, groups, free = GROUPS[name]
    if own is not None:
        system("proc/self/cgroup", own)
    for folder, (files, *texts) in groups.items():
        for file, text in zip(files, texts, strict=True):
            system(f"groups/{folder}/{file}", text)
    assert free_gb("cpu") == pytest.approx(free)


def test_systems_without_proc(system, tmp_path, monkeypatch):
    (tmp_path / "proc/meminfo").unlink()
    memory = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=3e9))
    monkeypatch.setitem(sys.modules, "psutil", memory)
    assert free_gb("cpu") == 3
    monkeypatch.setitem(sys.modules, "psutil", None)
    sizes = {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(_memory.os, "sysconf", sizes.__getitem__)
    assert free_gb("cpu") == pytest.approx(4096e-6)
    monkeypatch.delattr(_memory.os, "sysconf")
    with pytest.raises(OSError, match="memory="):
        free_gb("cpu")


def test_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {"cuda:1": (5e9, 8e9)}[device])
    assert free_gb("cuda:1") == 5


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_the_peak_grows_and_is_known_without_proc(monkeypatch, tmp_path):
    before = peak_gb()
    block = np.ones(int(before * 1e9 / 8) + 25_000_000)
    here = peak_gb()
    assert here >= before + 0.19
    assert block.nbytes / 1e9 < here < 1000
    monkeypatch.setattr(_memory, "_PROC", tmp_path)
    assert peak_gb() == pytest.approx(here, rel=0.5)


def test_no_torch_at_import():
    code = "import sys, stdenoise._base.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
