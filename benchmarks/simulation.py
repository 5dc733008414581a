"""The 24 simulated tissues: their size, sparsity, distance from the truth, and the time to make them.

Usage: python benchmarks/simulation.py [SEED]
"""

import os
import platform
import resource
import sys
import time

import numpy as np

import stdenoise as st
from stdenoise.spatial.normalize import lognorm

PUBLISHED = {1: 1.0831, 2: 1.0406, 3: 1.2575, 4: 1.6977}


def measure(adata):
    truth = lognorm(adata.layers["true_counts"]).toarray()
    raw = ((lognorm(adata.X).toarray() - truth) ** 2).mean()
    before = adata.layers["observed_before_dropout"].getnnz(axis=1).astype(float)
    lost = adata.layers["dropout_mask"].getnnz(axis=1)
    band = adata.obs["in_edge_band"].to_numpy()
    entries = adata.n_obs * adata.n_vars
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "zeros, truth": 1 - adata.layers["true_counts"].nnz / entries,
        "zeros, observed": 1 - adata.X.nnz / entries,
        "lost, inside": lost[band].sum() / before[band].sum() if band.any() else 0.0,
        "lost, outside": lost[~band].sum() / before[~band].sum(),
        "MSE, raw": raw,
        "MSE, gene mean": truth.var(axis=0).mean(),
    }


def main(seed=0):
    print(f"Seed {seed}, {os.cpu_count()} cores, {platform.machine()}\n")
    by_setting, header, seconds = {}, False, 0.0
    start = time.perf_counter()
    for name, adata in st.datasets.simulated_benchmark(seed=seed):
        took = time.perf_counter() - start
        seconds += took
        row = measure(adata)
        by_setting.setdefault(adata.uns["simulation"]["setting"], []).append(row["MSE, raw"])
        if not header:
            print("| set | " + " | ".join(row) + " | seconds |\n" + "|---" * (len(row) + 2) + "|")
            header = True
        cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()]
        print(f"| {name} | " + " | ".join(cells) + f" | {took:.2f} |", flush=True)
        start = time.perf_counter()
    print("\n| setting | MSE, raw | sd over patterns | published |\n|---|---|---|---|")
    for setting, values in by_setting.items():
        print(f"| {setting} | {np.mean(values):.4f} | {np.std(values, ddof=1):.4f} | {PUBLISHED[setting]} |")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"\n{seconds:.0f} seconds in all; peak memory of the process {memory:.2f} GB.")


if __name__ == "__main__":
    main(*(int(x) for x in sys.argv[1:]))
