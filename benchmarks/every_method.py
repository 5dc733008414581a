"""Seconds and peak memory of every method on one section, each in a process of its own.

Usage: python benchmarks/every_method.py SECTION.h5ad [N_TOP_GENES] [METHOD ...]

The section has raw counts in X and coordinates in obsm["spatial"]. Without N_TOP_GENES, or with 0, all genes are modelled. The time
is that of `tl.denoise`; the memory is that of the process, with the libraries and the section, so the first row shows what the
baseline "raw" needs. A METHOD may carry a number of epochs, such as stagate:40.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path


def one(path, n_top_genes, name):
    warnings.simplefilter("ignore")
    import anndata as ad

    import stdenoise as st
    from stdenoise.pp._highly_variable import mark_highly_variable

    adata = ad.read_h5ad(path)
    genes = None
    if n_top_genes:
        mark_highly_variable(adata, n_top_genes, None)
        genes = "highly_variable"
    st.pp.spatial_graph(adata)
    st.tl.denoise(st.datasets.tissue(n_spots=20, n_genes=5), method="raw")  # imports are not timed
    name, _, n_epochs = name.partition(":")
    params = {"n_epochs": int(n_epochs)} if n_epochs else {}
    start = time.perf_counter()
    st.tl.denoise(adata, method=name, genes=genes, progress=False, **params)
    seconds = time.perf_counter() - start
    # Unlike getrusage, free of what the parent process had (Linux).
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e9
    print(json.dumps([adata.n_obs, n_top_genes or adata.n_vars, seconds, peak]))


def main(path, n_top_genes=0, *names):
    if not names:
        import stdenoise as st

        table = st.methods.table()
        names = ["raw", *[name for name in table.index if table.loc[name, "reference"] != "baseline"]]
    rows = []
    for name in names:
        print(name, file=sys.stderr)
        command = [sys.executable, __file__, "--one", path, str(n_top_genes), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        rows.append((name, *json.loads(done.stdout.splitlines()[-1])))
    print(f"{rows[0][1]} spots x {rows[0][2]} genes, {os.cpu_count()} cores ({platform.machine()}), CPU\n")
    print("| method | seconds | peak memory, GB |\n|---|---:|---:|")
    for name, _, _, seconds, peak in rows:
        print(f"| {name} | {seconds:.1f} | {peak:.2f} |")


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        one(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main(sys.argv[1], *[int(a) if a.isdigit() else a for a in sys.argv[2:]])
