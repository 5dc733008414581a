"""Compare raw and denoised expression of a denoised section, for the most spatial gene of each of three layers.

Usage: stdenoise denoise dlpfc_151673.h5ad out.h5ad --n-top-genes 3000 --set preset=dlpfc
       python benchmarks/dlpfc_figure.py out.h5ad docs/_static/dlpfc_151673.webp

A gene belongs to the annotated layer (`obs["region"]`) in which its raw mean is highest. Moran's I is taken on log1p of
counts per 10,000 of the modelled genes, raw and denoised.
"""

import sys

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import scanpy as sc

import stdenoise as st


def log_normalized(adata):
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def main(source, target):
    matplotlib.use("agg")
    adata = ad.read_h5ad(source)
    denoised = st.get.denoised(adata)
    raw = log_normalized(adata[:, denoised.var_names].copy())
    denoised = log_normalized(denoised)
    graph = raw.obsp["spatial_connectivities"]
    table = pd.DataFrame(
        {
            "layer": raw.to_df().groupby(raw.obs["region"], observed=True).mean().idxmax(),
            "raw": sc.metrics.morans_i(graph, raw.X.T.tocsr()),
            "denoised": sc.metrics.morans_i(graph, np.ascontiguousarray(denoised.X.T)),
            "variance kept": denoised.X.var(axis=0) / raw.to_df().var(ddof=0),
        },
        index=raw.var_names,
    )
    best = table.sort_values("raw", ascending=False).groupby("layer", observed=True).head(1)
    print(best.round(3).to_string())
    print("\nmedian over genes\n" + table[["raw", "denoised", "variance kept"]].median().round(3).to_string())
    axes = st.pl.compare(adata, list(best.index[:3]))
    axes[0, 0].figure.savefig(target, dpi=90, pil_kwargs={"quality": 80})


if __name__ == "__main__":
    main(*sys.argv[1:])
