"""Time and memory of the spatial graph of a million scattered spots.

Usage: python benchmarks/spatial_graph.py [N_SPOTS]
"""

import os
import platform
import resource
import sys
import time

import numpy as np
from anndata import AnnData

import stdenoise as st


def main(n_spots=1_000_000):
    rng = np.random.default_rng(0)
    coordinates = rng.random((n_spots, 2)) * np.sqrt(n_spots)
    adata = AnnData(np.zeros((n_spots, 1), dtype=np.float32), obsm={"spatial": coordinates})
    print(f"{n_spots} spots in two dimensions, {os.cpu_count()} cores, {platform.machine()}\n")
    print("| call | seconds | mean degree | peak memory of the process so far, GB |\n|---|---|---|---|")
    for settings in ({}, {"radius": 1.4}, {"n_neighbors": 6}):
        start = time.perf_counter()
        st.pp.spatial_graph(adata, **settings)
        seconds = time.perf_counter() - start
        arguments = ", ".join(f"{k}={v}" for k, v in settings.items())
        degree = adata.uns["spatial_neighbors"]["stats"]["mean_degree"]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(f"| `spatial_graph({arguments})` | {seconds:.1f} | {degree:.2f} | {memory:.2f} |")


if __name__ == "__main__":
    main(*(int(x) for x in sys.argv[1:]))
