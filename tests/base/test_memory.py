import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stdenoise._base import memory as _memory
from stdenoise._base.memory import free_gb, peak_gb, read_memory


@pytest.mark.parametrize(
    ("text", "gb"), [("8 GB", 8), ("500MB", 0.5), ("1 GiB", 1.073741824), (2, 2), (0.5, 0.5), ("3", 3), ("0.1 tb", 100)]
)
def test_memory(text, gb):
    assert read_memory(text) == pytest.approx(gb)


@pytest.mark.parametrize("memory", ["much", "0 GB", -1, "8 GBit", True])
def test_no_memory(memory):
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


def group(write, folder, names, limit, used, stat):
    for name, text in zip(names, (limit, used, stat), strict=True):
        write(f"groups/{folder}/{name}", text)


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
V2 = ("memory.max", "memory.current", "memory.stat")


def test_memory_of_the_system(system):
    assert free_gb("cpu") == pytest.approx(16)


def test_a_group_leaves_less(system):
    system("proc/self/cgroup", "0::/job/step\n")
    group(system, "job", V2, "4000000000", "3000000000", "anon 5\ninactive_file 500000000\n")
    group(system, "job/step", V2, "max", "1", "inactive_file 0")
    assert free_gb("cpu") == pytest.approx(1.5)


def test_the_group_of_a_container_is_at_the_root(system):
    system("proc/self/cgroup", "7:cpu,memory:/docker/abc\n4:pids:/docker/abc\n0::/\n")
    group(system, "memory", V1, "2000000000", "500000000", "inactive_file 7\ntotal_inactive_file 100000000\n")
    assert free_gb("cpu") == pytest.approx(1.6)


def test_a_group_without_limit_changes_nothing(system):
    system("proc/self/cgroup", "4:memory:/\n")
    group(system, "memory", V1, "9223372036854771712", "500000000", "total_inactive_file 0\n")
    assert free_gb("cpu") == pytest.approx(16)


def test_a_group_that_has_used_too_much(system):
    system("proc/self/cgroup", "0::/\n")
    group(system, ".", V2, "1000", "2000", "")
    assert free_gb("cpu") == 0


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
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (5e9, 8e9))
    assert free_gb("cuda:1") == 5
    assert asked == ["cuda:1"]


def test_the_peak_grows():
    before = peak_gb()
    block = np.ones(int(before * 1e9 / 8) + 25_000_000)
    assert peak_gb() >= before + 0.19
    assert block.nbytes / 1e9 < peak_gb() < 1000


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_the_peak_without_proc(monkeypatch, tmp_path):
    here = peak_gb()
    monkeypatch.setattr(_memory, "_PROC", tmp_path)
    assert peak_gb() == pytest.approx(here, rel=0.5)


def test_no_torch_at_import():
    code = "import sys, stdenoise._base.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
