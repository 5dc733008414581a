"""Time and memory against the number of cells, from disk to disk; and of every method, in memory.

Usage: python benchmarks/scale.py [--cells 10000 36000 100000 300000 1000000] [--passes N] [--memory 6GB] [--figure FILE]
       python benchmarks/scale.py --methods [NAME ...] --cells 36000 100000 [--limit SECONDS] [--most GB]

The first form runs `stdenoise denoise big.zarr out.zarr --memory 6GB --set schedule=fast --set likelihood=nb --set n_epochs=N` on simulated tissues, each
in a process of its own, and times its parts; the total has the start of Python too. Pages of mapped files count as resident memory.
Without --passes the schedule decides how many passes it makes. With --passes, the last column says what the most passes of the schedule
would take: the time of a pass, multiplied.

The second form runs `tl.denoise` with the defaults of each method on the same tissues in memory. A method is ended after the limit in
seconds, or when it takes more memory than allowed, and the table says so. A NAME may carry a number of epochs, such as stagate:40.

The tissues are the same for each size: eight smooth programmes, counts of a Poisson distribution at a depth that varies from cell to
cell, about 60 genes seen per cell, on a jittered grid, stored in random order. They stay in --folder, if that is given.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SIZES = (10_000, 36_000, 100_000, 300_000, 1_000_000)
PARTS = ("graph", "sorting", "training", "prediction", "writing")
# Cells of a block, all genes of which are drawn at a time; and the distance, in cells, over which a programme changes.
BLOCK, WAVELENGTH = 20_000, 40.0
N_PROGRAMMES, N_WAVES, MEAN_DEPTH = 8, 6, 80.0


def make_tissue(path, n_cells, n_genes, seed=0):
    """Write a tissue block by block; memory holds one block, and the places of the cells."""
    import anndata
    import pandas as pd
    import zarr
    from anndata.io import write_elem

    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n_cells)))
    # No instrument stores neighbours together.
    cell = rng.permutation(side * side)[:n_cells]
    places = np.stack([cell % side, cell // side], axis=1) + rng.uniform(-0.3, 0.3, (n_cells, 2))
    waves = rng.standard_normal((2, N_PROGRAMMES * N_WAVES)) * 2 * np.pi / WAVELENGTH
    phase = rng.uniform(0, 2 * np.pi, N_PROGRAMMES * N_WAVES)
    # A gene takes part in some programmes, and some genes are far more common than others.
    loadings = rng.gamma(0.4, size=(N_PROGRAMMES, n_genes)) * rng.gamma(0.7, size=n_genes)
    loadings /= loadings.sum(axis=1, keepdims=True)

    group = zarr.open_group(path, mode="w", zarr_format=anndata.settings.zarr_write_format)
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    write_elem(group, "obs", pd.DataFrame(index=pd.Index(np.arange(n_cells).astype(str))))
    write_elem(group, "var", pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))
    write_elem(group, "obsm", {"spatial": places * 10})
    for name in ("layers", "uns", "varm", "obsp", "varp"):
        write_elem(group, name, {})
    counts = group.create_group("X")
    counts.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]})
    parts = {
        name: counts.create_array(name, shape=(0,), dtype=dtype, chunks=(2**20,))
        for name, dtype in (("data", "float32"), ("indices", "int32"))
    }
    n_stored = []
    for start in range(0, n_cells, BLOCK):
        xy = places[start : start + BLOCK]
        field = np.cos(xy @ waves + phase).reshape(len(xy), N_PROGRAMMES, N_WAVES).sum(axis=2)
        weights = np.exp(1.5 * field / np.sqrt(N_WAVES / 2))
        weights /= weights.sum(axis=1, keepdims=True)
        depth = rng.gamma(4.0, MEAN_DEPTH / 4, (len(xy), 1))
        block = rng.poisson(depth * (weights @ loadings))
        row, column = block.nonzero()
        n_stored.append(np.bincount(row, minlength=len(xy)))
        parts["data"].append(block[row, column].astype(np.float32))
        parts["indices"].append(column.astype(np.int32))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(n_stored))])
    write_elem(counts, "indptr", indptr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)
    return indptr[-1] / n_cells


def tissue_at(folder, n_cells, n_genes):
    path = folder / f"tissue_{n_cells}_{n_genes}.zarr"
    if not path.exists():
        print(f"making {n_cells} cells", file=sys.stderr)
        fresh = path.with_name(f".{path.name}")
        n_genes_seen = make_tissue(fresh, n_cells, n_genes)
        fresh.rename(path)
        print(f"{n_genes_seen:.1f} genes seen per cell", file=sys.stderr)
    return path


# In a process of its own


def peak_gb():
    # Unlike getrusage, free of what the parent process had (Linux).
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


def peak_gpu_gb():
    torch = sys.modules["torch"]
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


class Clock:
    """Seconds by part."""

    def __init__(self):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.passes = []

    @contextmanager
    def running(self, part):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def around(self, place, name, part):
        """Time all calls of a function."""
        function = getattr(place, name)

        def timed(*args, **kwargs):
            with self.running(part):
                return function(*args, **kwargs)

        setattr(place, name, timed)

    def around_blocks(self, place, name, part):
        """Time a generator from its first value to its end, with what is done with the values."""
        function = getattr(place, name)

        def timed(*args, **kwargs):
            with self.running(part):
                yield from function(*args, **kwargs)

        setattr(place, name, timed)

    def around_passes(self, training):
        """Time each pass of the training loop."""
        begin, end = training.begin_epoch, training.end_epoch

        def begun(*args, **kwargs):
            self._start = time.perf_counter()
            begin(*args, **kwargs)

        def ended(*args, **kwargs):
            end(*args, **kwargs)
            self.passes.append(time.perf_counter() - self._start)

        training.begin_epoch, training.end_epoch = begun, ended


def one_size(tissue, target, passes, memory, device):
    from stdenoise import pp
    from stdenoise.__main__ import main
    from stdenoise._io.section import Section
    from stdenoise._io.sink import Layers, Rows
    from stdenoise.methods import DUSTED, Network
    from stdenoise.train.loop import _Training

    clock = Clock()
    clock.seconds["blocks"] = 0.0
    clock.around(pp, "spatial_graph", "graph")
    # One of the two is called.
    for name in ("sort", "spots"):
        clock.around(Section, name, "sorting")
    clock.around(Network, "trained", "training")
    clock.around_blocks(DUSTED, "predict", "prediction")
    # Blocks are written while prediction runs.
    clock.around(Rows, "_take", "blocks")
    for place in (Rows, Layers):
        clock.around(place, "close", "writing")
    clock.around_passes(_Training)
    settings = ["schedule='fast'", "likelihood='nb'", *([f"n_epochs={passes}"] if passes else [])]
    options = [part for setting in settings for part in ("--set", setting)]
    main(
        ["-v", "denoise", tissue, target, "--memory", memory, "--device", device, "--no-progress", *options],
        standalone_mode=False,
    )
    seconds = clock.seconds
    blocks = seconds.pop("blocks")
    seconds["prediction"] -= blocks
    seconds["writing"] += blocks
    n_passes = len(clock.passes)
    per_pass = sum(clock.passes) / n_passes
    print(json.dumps({**seconds, "passes": n_passes, "pass": per_pass, "memory": peak_gb(), "gpu": peak_gpu_gb()}))


def one_method(tissue, name, device):
    warnings.simplefilter("ignore")
    import anndata

    import stdenoise as st

    adata = anndata.read_zarr(tissue)
    st.pp.spatial_graph(adata)
    st.tl.denoise(st.datasets.tissue(n_spots=20, n_genes=5), method="raw")  # imports are not timed
    name, _, n_epochs = name.partition(":")
    start = time.perf_counter()
    st.tl.denoise(
        adata, method=name, device=device, progress=False, **({"n_epochs": int(n_epochs)} if n_epochs else {})
    )
    print(json.dumps({"seconds": time.perf_counter() - start, "memory": peak_gb()}))


# The process that starts them


def resident_gb(pid):
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e9 if found else 0.0


def run(*args, limit=None, most=None):
    """Run this script in a process of its own; return what it printed last, or why there is nothing."""
    command = [sys.executable, __file__, *map(str, args)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        ended = None
        try:
            while process.poll() is None and ended is None:
                if limit is not None and time.perf_counter() - start > limit:
                    ended = f"more than {limit:g} s"
                elif most is not None and resident_gb(process.pid) > most:
                    ended = f"out of memory: more than {most:.1f} GB"
                else:
                    time.sleep(0.1)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.perf_counter() - start
        err.seek(0)
        said = err.read().strip().splitlines()
        for line in said:
            if line.startswith(("plan:", "Error:")):
                print(f"  {line}", file=sys.stderr)
        if ended:
            return ended
        if process.returncode == -signal.SIGKILL:
            return "out of memory: the system ended it"
        if process.returncode:
            why = said[-1] if said else f"it ended with code {process.returncode}"
            return f"out of memory: {why}" if "MemoryError" in why or "out of memory" in why else f"failed: {why}"
        out.seek(0)
        return {"total": seconds, **json.loads(out.read().splitlines()[-1])}


def slope(sizes, values):
    """Exponent of a power law, by least squares of logarithms."""
    return np.polyfit(np.log(sizes), np.log(values), 1)[0] if len(sizes) > 1 else float("nan")


def most_passes():
    from stdenoise.methods.dusted.config import SCHEDULES

    return SCHEDULES["fast"].n_epochs


def scale(args, folder):
    print(f"\n| cells | {' | '.join(PARTS)} | passes | per pass | total, s | peak memory, GB |", end="")
    print(" peak on the GPU, GB |" if args.device != "cpu" else "", end="")
    print(f" {most_passes()} passes, s (extrapolated) |" if args.passes else "")
    n_columns = len(PARTS) + 5 + (args.device != "cpu") + bool(args.passes)
    print("|" + "---:|" * n_columns, flush=True)
    rows = {}
    for n_cells in args.cells:
        tissue = tissue_at(folder, n_cells, args.genes)
        print(f"{n_cells} cells", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=folder) as results:
            target = Path(results) / "out.zarr"
            row = run("--one-size", tissue, target, args.passes or 0, args.memory, args.device, limit=args.limit)
        if isinstance(row, str):
            print(f"| {n_cells:,} | {row} |{' |' * (n_columns - 2)}", flush=True)
            continue
        rows[n_cells] = row
        cells = [f"{n_cells:,}", *(f"{row[part]:.1f}" for part in PARTS), str(row["passes"]), f"{row['pass']:.2f}"]
        cells += [f"{row['total']:.1f}", f"{row['memory']:.2f}"]
        if args.device != "cpu":
            cells.append(f"{row['gpu']:.2f}")
        if args.passes:
            cells.append(f"{row['total'] + row['pass'] * (most_passes() - row['passes']):.0f}")
        print(f"| {' | '.join(cells)} |", flush=True)
    if len(rows) > 1:
        exponents = {
            label: slope(list(rows), [row[key] for row in rows.values()])
            for label, key in (("of a pass", "pass"), ("in all", "total"), ("of memory", "memory"))
        }
        print("\nExponents: " + ", ".join(f"{value:.2f} {label}" for label, value in exponents.items()))
    if args.figure and rows:
        draw(rows, args)


def draw(rows, args):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    sizes = list(rows)
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for key, label in (("pass", "a pass"), ("total", "in all")):
        values = [row[key] for row in rows.values()]
        left.plot(sizes, values, "o-", label=f"{label}, exponent {slope(sizes, values):.2f}")
    left.set(xlabel="cells", ylabel="seconds", xscale="log", yscale="log")
    left.legend(frameon=False)
    right.plot(sizes, [row["memory"] for row in rows.values()], "o-", color="C2")
    right.set(xlabel="cells", ylabel="peak resident memory, GB", xscale="log")
    right.set_ylim(bottom=0)
    if args.device == "cpu":
        right.axhline(float(re.match(r"[\d.]+", args.memory)[0]), color="0.5", ls="--", lw=1)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(args.figure, dpi=110)


def every_method(args, folder):
    names = args.methods
    if not names:
        import stdenoise as st

        table = st.methods.table()
        names = ["raw", *[name for name in table.index if name != "raw"]]
    print(f"\n| method |{''.join(f' {n:,} cells: seconds | GB |' for n in args.cells)}")
    print("|---|" + "---:|---:|" * len(args.cells), flush=True)
    for name in names:
        line = f"| {name} |"
        for n_cells in args.cells:
            tissue = tissue_at(folder, n_cells, args.genes)
            print(f"{name}, {n_cells} cells", file=sys.stderr)
            row = run("--one-method", tissue, name, args.device, limit=args.limit, most=args.most)
            line += f" {row} | |" if isinstance(row, str) else f" {row['seconds']:.1f} | {row['memory']:.2f} |"
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", nargs="+", type=int, default=SIZES)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--passes", type=int)
    parser.add_argument("--memory", default="6GB")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=float, help="seconds per run")
    parser.add_argument("--most", type=float, help="GB per run of a method; 80 %% of what is free if not given")
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    from stdenoise._base.memory import free_gb

    args.most = args.most or 0.8 * free_gb("cpu")
    import torch

    model = torch.cuda.get_device_name() if args.device != "cpu" else platform.machine()
    print(f"{args.genes} genes, {os.cpu_count()} cores, {args.device} ({model}), torch {torch.__version__}", end="")
    print(f", memory={args.memory}" if args.methods is None else f", at most {args.most:.1f} GB")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        (scale if args.methods is None else every_method)(args, folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-size"]:
        tissue, target, passes, memory, device = sys.argv[2:]
        one_size(tissue, target, int(passes), memory, device)
    elif sys.argv[1:2] == ["--one-method"]:
        one_method(*sys.argv[2:])
    else:
        main()
