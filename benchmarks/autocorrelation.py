"""Time Moran's I of all genes, ours beside squidpy's, in one process.

Usage: python benchmarks/autocorrelation.py [SECTION.h5ad]

Without a file a section of 36 000 spots x 248 genes is made in code.
"""

import os
import platform
import statistics
import sys
import time
import warnings

import numpy as np
from scipy import sparse

import stdenoise as st

N_PERMUTATIONS = 100


def section():
    if len(sys.argv) > 1:
        import anndata

        return anndata.read_h5ad(sys.argv[1])
    adata = st.datasets.tissue(n_spots=36_000, n_genes=248)
    adata.X = sparse.csr_matrix(adata.X)
    return adata


def seconds(function, repeats):
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    # The first call compiles, and warms the caches.
    return statistics.median(times[1:]) if repeats else times[0], result


def main():
    warnings.simplefilter("ignore")
    import squidpy as sq
    import torch

    def ours_in(n_threads, **arguments):
        # numba sets the number of threads of the whole process.
        torch.set_num_threads(n_threads)
        return st.metrics.morans_i(adata, **arguments)

    adata = section()
    st.pp.spatial_graph(adata)
    quiet = {"mode": "moran", "copy": True, "show_progress_bar": False}
    rows = []
    theirs, table = seconds(lambda: sq.gr.spatial_autocorr(adata, **quiet), 5)
    cores = sorted({1, os.cpu_count() or 1})
    rows.append(("analytic", "squidpy", theirs, 1.0))
    for n_threads in cores:
        ours, own = seconds(lambda n=n_threads: ours_in(n), 9)
        rows.append(("analytic", f"ours, {n_threads} threads", ours, theirs / ours))
    own = own.loc[table.index]
    difference = np.nanmax(np.abs(own["morans_i"] - table["I"])), np.nanmax(np.abs(own["p"] - table["pval_norm"]))

    what, permuted = f"{N_PERMUTATIONS} permutations", {"n_perms": N_PERMUTATIONS, "seed": 0}
    times = [seconds(lambda n=n: sq.gr.spatial_autocorr(adata, n_jobs=n, **permuted, **quiet), 0)[0] for n in cores]
    rows += [(what, f"squidpy, n_jobs={n}", time, min(times) / time) for n, time in zip(cores, times, strict=True)]
    for n_threads in cores:
        ours, _ = seconds(lambda n=n_threads: ours_in(n, n_permutations=N_PERMUTATIONS, progress=False), 2)
        rows.append((what, f"ours, {n_threads} threads", ours, min(times) / ours))

    print(
        f"{adata.n_obs} spots x {adata.n_vars} genes, {os.cpu_count()} cores ({platform.machine()}), squidpy {sq.__version__}"
    )
    print(f"largest difference of Moran's I {difference[0]:.1e}, of its analytic p {difference[1]:.1e}\n")
    print("| Moran's I | variant | seconds | times faster than squidpy at its best |")
    print("|---|---|---|---|")
    for what, variant, value, ratio in rows:
        print(f"| {what} | {variant} | {value:.3f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
