"""Draw two layer genes of a section of cortex as counted, as the plain mean of neighbours, and as the README's call denoises them.

Usage: stdenoise denoise dlpfc_151673.h5ad out.h5ad
       python benchmarks/dlpfc_figure.py out.h5ad docs/_static/dlpfc_151673.webp

The first command makes the same call as the README: the spatial graph, then `tl.denoise(adata, method="dusted")` on all genes.
PCP4 marks layer 5, HPCAL1 layer 2. Values are log1p of counts per 10,000. Each gene has one colour scale for its three panels,
from the least to the greatest of the 2nd and 98th percentiles of the two smoothed ones: a spot without a molecule and a spot
with two lie beyond it.

Printed: the mean of each gene in each annotated layer (`obs["region"]`), its Moran's I and the share of its variance that is
kept, for these two genes and for the median gene.
"""

import sys

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import scanpy as sc

import stdenoise as st

GENES = {"PCP4": "layer 5", "HPCAL1": "layer 2"}


def log_normalized(values, adata):
    result = ad.AnnData(values, adata.obs, adata.var)
    sc.pp.normalize_total(result, target_sum=1e4)
    sc.pp.log1p(result)
    return result.to_df()


def draw(adata, panels, target):
    import matplotlib.pyplot as plt

    xy = adata.obsm["spatial"]
    regions = adata.obs["region"].astype("category")
    figure, axes = plt.subplots(len(GENES), len(panels) + 1, figsize=(13, 6.6), layout="constrained")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.invert_yaxis()
        ax.spines[:].set_visible(False)
    colors = [*matplotlib.colormaps["tab10"].colors[: len(regions.cat.categories)], "lightgrey"]
    axes[0, 0].scatter(*xy.T, c=[colors[code] for code in regions.cat.codes], s=5, lw=0)
    handles = [
        plt.Line2D([], [], marker="o", lw=0, color=color, label=name)
        for color, name in zip(colors, [*regions.cat.categories, "not annotated"], strict=True)
    ]
    axes[1, 0].legend(handles=handles, loc="upper center", ncols=2, frameon=False)
    for row, (gene, layer) in zip(axes[:, 1:], GENES.items(), strict=True):
        row[0].set_ylabel(f"{gene}, known in {layer}", fontsize=11)
        smooth = [values[gene] for name, values in panels.items() if name != "raw"]
        low, high = np.percentile(smooth, 2, axis=1).min(), np.percentile(smooth, 98, axis=1).max()
        for ax, values in zip(row, panels.values(), strict=True):
            dots = ax.scatter(*xy.T, c=values[gene], s=5, lw=0, vmin=low, vmax=high)
        figure.colorbar(dots, ax=row[-1], shrink=0.8, extend="both").outline.set_visible(False)
    for ax, title in zip(axes[0], ["annotated layers", *panels], strict=True):
        ax.set_title(title)
    figure.savefig(target, dpi=80, pil_kwargs={"quality": 82})


def main(source, target):
    matplotlib.use("agg")
    adata = ad.read_h5ad(source)
    st.tl.denoise(adata, method="neighbor_mean", n_hops=2)
    panels = {
        "raw": log_normalized(adata.X.copy(), adata),
        "mean over two hops": log_normalized(adata.layers["neighbor_mean_mean"], adata),
        "DUSTED": log_normalized(adata.layers["dusted_mean"], adata),
    }
    draw(adata, panels, target)
    graph = adata.obsp["spatial_connectivities"]
    for name, values in panels.items():
        means = values[list(GENES)].groupby(adata.obs["region"], observed=True).mean().T.round(2)
        print(f"{name}\n{means.to_string()}")
    table = pd.DataFrame(
        {name: sc.metrics.morans_i(graph, values.to_numpy().T.copy()) for name, values in panels.items()},
        index=adata.var_names,
    )
    kept = panels["DUSTED"].var() / panels["raw"].var()
    table["variance kept"] = kept
    print(
        f"\nMoran's I\n{table.loc[list(GENES)].round(3).to_string()}\nmedian over genes\n{table.median().round(3).to_string()}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
