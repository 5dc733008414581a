"""How well and how fast DUSTED learns with its fast schedule, and with the published one, in one run.

Usage: python benchmarks/time_to_quality.py FOLDER [DATASET ...] [--likelihood zinb] [--seeds 3] [--published-seeds 1]
       [--passes N ...] [--device cpu]

FOLDER has the sections as .h5ad. A tenth of the molecules is held out before anything else, always the same one; each schedule is trained on
the rest, of which the fast one holds out another part for itself; with --passes, the fast one is also run with at most so many
passes. Reported are the seconds of the fit, the Poisson deviance of the
held-out molecules per entry, Moran's I of the 50 genes with the highest one in the raw counts, and, where the section has regions, the
adjusted Rand index of a Gaussian mixture on 20 principal components of the denoised means.
"""

import argparse
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import numpy as np

DATASETS = ("dlpfc_151673", "dlpfc_151676", "starmap_visp_1020")
FAST = {"schedule": "fast"}
PUBLISHED = {"schedule": "paper"}


def read(path):
    import anndata

    import stdenoise as st
    from stdenoise.pp._highly_variable import mark_highly_variable

    adata = anndata.read_h5ad(path)
    adata.var_names_make_unique()
    genes = None
    if adata.n_vars > 3000:
        mark_highly_variable(adata, 3000, None)
        genes = "highly_variable"
    st.pp.spatial_graph(adata)
    return adata, genes


def measure(adata, genes, params, *, seed, device):
    import stdenoise as st
    from stdenoise._base.device import resolve_device
    from stdenoise._io.section import open_section
    from stdenoise.methods._registry import inputs_of
    from stdenoise.methods._trial import Trial

    method = st.methods.DUSTED(**params)
    keys = {"graph_key": "spatial", "library_key": None, "spatial_key": "spatial", "features_key": None}
    section = open_section(adata, inputs_of([method]), layer=None, genes=genes, **keys)
    whole = Trial.of(section, [method], resolve_device(device))
    rest, held_out = whole.thinned(0.1, 100)
    start = time.perf_counter()
    result = rest.fit(method, seed=seed, progress=False)
    seconds = time.perf_counter() - start
    deviance = rest.deviance(rest.expected(result), held_out, 0.1).poisson
    denoised = adata[:, rest.modelled_genes].copy()
    denoised.layers["denoised"] = result.mean.cpu().numpy()
    raw = st.metrics.morans_i(denoised)
    top = raw["morans_i"].nlargest(50).index
    moran = st.metrics.morans_i(denoised, layer="denoised", genes=list(top))["morans_i"].mean()
    ari = np.nan
    if "region" in adata.obs:
        ari = st.metrics.clustering(denoised, "region", layer="denoised", seed=seed)["ari"].iloc[0]
    return {"seconds": seconds, "deviance": deviance, "moran": moran, "ari": ari, "epochs": len(result.history["loss"])}


def spread(values, digits):
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("datasets", nargs="*", default=DATASETS)
    parser.add_argument("--likelihood", default="zinb")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--published-seeds", type=int, default=1)
    parser.add_argument("--passes", nargs="*", type=int, default=[])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    capped = {f"fast, at most {n} passes": {**FAST, "n_epochs": n} for n in args.passes}
    schedules = {"fast": FAST, **capped, "published": PUBLISHED}
    warnings.simplefilter("ignore")
    print(f"{os.cpu_count()} cores ({platform.machine()}), {args.device}, {args.likelihood}: mean (range) over seeds\n")
    print("| section | schedule | seeds | passes | seconds | share of published | deviance | Moran's I | ARI |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in args.datasets:
        adata, genes = read(args.folder / f"{name}.h5ad")
        rows = {}
        for label, params in schedules.items():
            print(name, label, file=sys.stderr)
            runs = [
                measure(adata, genes, {**params, "likelihood": args.likelihood}, seed=seed, device=args.device)
                for seed in range(args.published_seeds if params is PUBLISHED else args.seeds)
            ]
            rows[label] = {key: [run[key] for run in runs] for key in runs[0]}
        longest = np.mean(rows["published"]["seconds"])
        for label, row in rows.items():
            ari = "–" if np.isnan(row["ari"]).any() else spread(row["ari"], 3)
            print(
                f"| {name} | {label} | {len(row['seconds'])} | {np.mean(row['epochs']):.0f} | {np.mean(row['seconds']):.1f} | "
                f"{np.mean(row['seconds']) / longest:.3f} | {spread(row['deviance'], 5)} | {spread(row['moran'], 3)} | {ari} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
