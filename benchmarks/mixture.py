"""Likelihood, agreement with an annotation, and time of the tied Gaussian mixture, beside mclust on the same numbers.

Usage: python benchmarks/mixture.py [SECTION.h5ad ...]

Each section has counts in X and classes in obs["region"]. Its 3000 most variable genes, or all where there are fewer, are
normalised and reduced to 20 principal components, which both programs read. A simulated section comes first. Seconds are those
of one fit: in R of the call to Mclust alone. Without Rscript and mclust, only the fit of stdenoise is shown.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.metrics import adjusted_rand_score

import stdenoise as st
from stdenoise.stats import clusters as _clusters
from stdenoise.stats.mixture import fit_mixture

SEEDS = range(5)
STARTS = (1, 2, 10)
R_CODE = """
suppressPackageStartupMessages(library(mclust))
a <- commandArgs(TRUE); n <- as.integer(a[2]); d <- as.integer(a[3]); seed <- as.integer(a[5])
x <- matrix(readBin(a[1], "double", n * d), nrow = n, byrow = TRUE)
set.seed(seed)
seconds <- system.time(fit <- Mclust(x, as.integer(a[4]), "EEE", verbose = FALSE))[["elapsed"]]
cat(sprintf("%.6f %.4f\\n", fit$loglik, seconds)); cat(fit$classification)
"""


def embed(adata):
    adata.var_names_make_unique()
    genes = None
    if adata.n_vars > 3000:
        sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=3000)
        genes = "highly_variable"
    return _clusters.read_points(adata, layer=None, genes=genes, use_rep=None, n_components=20, scale="log1p")


def run_r(folder, points, n_clusters, seed):
    (folder / "code.R").write_text(R_CODE)
    np.ascontiguousarray(points, dtype=np.float64).tofile(folder / "points.bin")
    arguments = [folder / "code.R", folder / "points.bin", *points.shape, n_clusters, seed]
    done = subprocess.run(["Rscript", *map(str, arguments)], capture_output=True, text=True, check=True)
    numbers, labels = done.stdout.split("\n")[:2]
    loglik, seconds = map(float, numbers.split())
    return loglik, np.array(labels.split(), dtype=int), seconds


def run_native(points, n_clusters, seed, n_starts):
    start = time.perf_counter()
    fit = fit_mixture(points, n_clusters, seed=seed, n_starts=n_starts)
    return fit.loglik, fit.labels, time.perf_counter() - start


def show(name, program, fits, truth):
    scored = truth >= 0
    logliks, seconds = [fit[0] for fit in fits], [fit[2] for fit in fits]
    agreement = [adjusted_rand_score(truth[scored], fit[1][scored]) for fit in fits]
    print(
        f"| {name} | {program} | {np.mean(logliks):.1f} | {min(logliks):.1f} to {max(logliks):.1f} | "
        f"{np.mean(agreement):.3f} | {min(agreement):.3f} to {max(agreement):.3f} | {np.mean(seconds):.2f} |"
    )


def main(*paths):
    has_r = shutil.which("Rscript") is not None
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"Seeds {SEEDS[0]} to {SEEDS[-1]}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}, {platform.machine()}\n")
    print(
        "| section | fit | log-likelihood, mean | range | ARI, mean | range | seconds |\n|---|---|---|---|---|---|---|"
    )
    sections = {"simulated": st.datasets.tissue(n_spots=3000, n_genes=500)}
    sections |= {Path(path).stem: ad.read_h5ad(path) for path in paths}
    for name, adata in sections.items():
        points = embed(adata)
        truth, classes = pd.factorize(adata.obs["region"])
        for n_starts in STARTS:
            fits = [run_native(points, len(classes), seed, n_starts) for seed in SEEDS]
            show(name, f"stdenoise, {n_starts} start{'s' * (n_starts > 1)}", fits, truth)
        if has_r:
            with tempfile.TemporaryDirectory() as folder:
                show(name, "mclust", [run_r(Path(folder), points, len(classes), seed) for seed in SEEDS], truth)


if __name__ == "__main__":
    main(*sys.argv[1:])
