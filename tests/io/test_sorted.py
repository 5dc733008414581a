import errno
import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as some
from scipy import sparse

from stdenoise._io import sorted as _scratch
from stdenoise._io.read import check_counts
from stdenoise._io.sorted import open_sorted, sort_counts

CHECK = partial(check_counts, where="the counts", allow_fractions=False)


def cut(matrix, height):
    """Blocks of rows."""
    return ((first, matrix[first : first + height]) for first in range(0, matrix.shape[0], height))


def sort(matrix, folder, order=None, positions=None, height=7, blocks=None):
    return sort_counts(
        blocks or (lambda: cut(matrix, height)),
        order=np.arange(matrix.shape[0]) if order is None else order,
        positions=positions,
        n_genes=matrix.shape[1],
        folder=folder,
        check=CHECK,
    )


@pytest.fixture
def matrix():
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.5, size=(50, 12))
    dense[[3, 4, 49]] = 0
    dense[:, 5] = 0
    return sparse.csr_matrix(dense, dtype=np.float32)


@given(
    seed=some.integers(0, 1000),
    shape=some.tuples(some.integers(1, 30), some.integers(1, 6)),
    mean=some.sampled_from([0, 0.3, 3]),
    height=some.integers(1, 40),
    window=some.integers(1, 50),
    dtype=some.sampled_from([np.float32, np.float64, np.int64, np.uint8]),
    subset=some.booleans(),
)
@example(seed=0, shape=(9, 5), mean=3, height=4, window=7, dtype=np.float32, subset=True)
def test_rows_and_columns_are_those_asked_for(tmp_path_factory, seed, shape, mean, height, window, dtype, subset):
    rng = np.random.default_rng(seed)
    dense = rng.poisson(mean, size=shape).astype(dtype)
    order = rng.permutation(shape[0])
    positions = rng.permutation(shape[1])[: rng.integers(1, shape[1] + 1)] if subset else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_scratch, "_WINDOW", window)
        result = sort(sparse.csr_matrix(dense), tmp_path_factory.mktemp("sorted"), order, positions, height)
    expected = dense[order] if positions is None else dense[order][:, positions]
    np.testing.assert_array_equal(result.counts.to_dense().numpy(), expected)
    np.testing.assert_array_equal(result.total, dense[order].sum(axis=1))
    assert result.total.dtype == np.float64
    assert result.counts.dtype == torch.float32
    assert len(result.counts.values()) == np.count_nonzero(expected)


def test_zeros_and_repeated_entries(tmp_path):
    # 200 + 100 does not fit into eight bits; the columns are not sorted.
    data = np.array([1, 0, 200, 100, 3], dtype=np.uint8)
    matrix = sparse.csr_matrix((data, [2, 0, 1, 1, 0], [0, 2, 5]), shape=(2, 3))
    result = sort(matrix, tmp_path, np.array([1, 0]))
    assert result.counts.crow_indices().tolist() == [0, 2, 3]
    assert result.counts.col_indices().tolist() == [0, 1, 2]
    assert result.counts.values().tolist() == [3, 300, 1]
    assert result.total.tolist() == [303, 1]
    assert matrix.data.tolist() == [1, 0, 200, 100, 3]


def test_counts_stay_on_the_disk_for_whoever_opens_them(matrix, tmp_path):
    result = sort(matrix, tmp_path)
    again = open_sorted(tmp_path)
    assert torch.equal(again.counts.to_dense(), torch.tensor(matrix.toarray()))
    np.testing.assert_array_equal(again.total, result.total)
    # Whoever changes the file changes the tensor.
    np.memmap(tmp_path / "values", np.float32, "r+")[:] = 7
    np.memmap(tmp_path / "col", np.int32, "r+")[0] = 11
    assert result.counts.values().unique().tolist() == [7]
    assert result.counts.col_indices()[0] == 11
    assert result.counts.crow_indices().dtype == result.counts.col_indices().dtype == torch.int32


def test_large_counts_have_large_indices_and_products_take_either(matrix, tmp_path, monkeypatch):
    weights = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(matrix.toarray()[::-1].copy())
    torch.testing.assert_close(sort(matrix, tmp_path, np.arange(50)[::-1]).counts @ weights, expected @ weights)
    monkeypatch.setattr(_scratch, "_MOST_32_BIT", 20)
    counts = sort(matrix, tmp_path, np.arange(50)[::-1]).counts
    assert counts.crow_indices().dtype == counts.col_indices().dtype == torch.int64
    assert torch.equal(counts.to_dense(), expected)


def test_memory_does_not_grow_with_the_counts(tmp_path):
    # 24 million entries, 190 MB on disk, in blocks of .6 million.
    code = """if True:
        import sys, pathlib, numpy as np
        from scipy import sparse
        from stdenoise._base.memory import peak_gb
        from stdenoise._io.sorted import sort_counts
        block = sparse.csr_matrix((np.ones(600_000, np.float32), np.tile(np.arange(60), 10_000), np.arange(0, 600_001, 60)))
        blocks = lambda n: lambda: ((first, block) for first in range(0, n, 10_000))
        peaks = []
        for n in (50_000, 400_000):
            folder = pathlib.Path(sys.argv[1]) / str(n)
            folder.mkdir()
            order = np.random.default_rng(0).permutation(n)
            sort_counts(blocks(n), order=order, positions=None, n_genes=60, folder=folder, check=lambda values: None)
            peaks.append(peak_gb())
        print(peaks[1] - peaks[0])
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.06


def test_what_is_not_complete_is_refused(matrix, tmp_path):
    sort(matrix, tmp_path)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    record = "counts.json"
    broken = [("col", None), (record, None), *(("values", b"x" * 100), ("crow", b"x" * 10))]
    broken += [(record, text) for text in (b"", b"{", b"[]", b'{"n_rows": 1}', b'{"n_rows": "a"}')]
    for name, content in broken:
        path = tmp_path / name
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(OSError, match=f"sorted counts in '{tmp_path}'"):
            open_sorted(tmp_path)
        path.write_bytes(whole[path])
    open_sorted(tmp_path)


def test_the_record_comes_last_and_an_interrupted_sort_leaves_nothing(matrix, tmp_path, monkeypatch):
    sort(matrix, tmp_path)
    written = []
    monkeypatch.setattr(_scratch, "_scatter", lambda *_: written.append((tmp_path / "counts.json").exists()))
    sort(matrix, tmp_path)
    assert written == [False] * 8
    assert json.loads((tmp_path / "counts.json").read_text())["n_rows"] == 50

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_scratch, "_scatter", stop)
    with pytest.raises(KeyboardInterrupt):
        sort(matrix, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="not on this system")
def test_a_full_disk_shows_before_anything_is_written(matrix, tmp_path, monkeypatch):
    def full(file, start, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"0.00 GB are needed, and .* GB are free on the disk of: '.*'") as error:
        sort(matrix, tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_are_wrong_or_change_meanwhile(matrix, tmp_path):
    for n in (49, 51):
        with pytest.raises(ValueError, match=f"the order has {n} rows, but the counts have 50"):
            sort(matrix, tmp_path, np.arange(n))
    with pytest.raises(ValueError, match="starts with row 1, not 0"):
        sort(matrix, tmp_path, blocks=lambda: iter([(1, matrix)]))
    readings = iter([matrix, sparse.eye_array(50, 12, dtype=np.float32).tocsr()])
    with pytest.raises(OSError, match="changed while they were read"):
        sort(matrix, tmp_path, blocks=lambda: cut(next(readings), 7))
    matrix.data[-1] = 0.5
    with pytest.raises(ValueError, match="the counts .*log-transformed"):
        sort(matrix, tmp_path)
    assert list(tmp_path.iterdir()) == []
