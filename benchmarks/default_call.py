"""What the call of the README does to real sections, beside the raw counts, plain baselines and the fast schedule.

Usage: python benchmarks/default_call.py FOLDER OUT.jsonl [--sections NAME ...] [--methods NAME ...] [--seeds 0 1 2] [--no-held-out]
       python benchmarks/default_call.py OUT.jsonl --table

FOLDER has the sections as .h5ad: raw counts in X, coordinates in obsm["spatial"], annotated regions, if any, in obs["region"]. Each unit
(section, method, seed) is

    st.pp.spatial_graph(adata)
    st.tl.denoise(adata, method="dusted")

on all genes and all molecules, and then `st.metrics.held_out` on the same section, which trains once more. Each of the two adds a line
to OUT.jsonl; what is there already is not run again. Then the table is printed.

Reported: the processor seconds of `tl.denoise`; the share of variance of the first two principal components of log1p of counts per
10 000, and the effective rank, exp(entropy) of the shares of the first 50; the share of marker genes whose mean is still highest in
the region where the raw one is (three markers for each region, those with the largest t of the region against the second highest one);
the adjusted Rand index of a Gaussian mixture on 20 components, mean of three starts; and the share of the gene means' Poisson deviance
of held-out molecules that is explained.
"""

import argparse
import json
import os
import platform
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

SECTIONS = (
    "dlpfc_151673",
    "dlpfc_151676",
    "her2st_A1",
    "mob_rep11_st",
    "visium_mbrain_withbackground",
    "cosmx_nsclc_lung5",
    "xenium_mouse_brain",
)
METHODS = {
    "raw": ("raw", {}),
    "two-hop mean": ("neighbor_mean", {"n_hops": 2}),
    "8 Poisson factors": ("poisson_factorization", {"rank": 8}),
    "default": ("dusted", {}),
    "fast": ("dusted", {"schedule": "fast"}),
}
DETERMINISTIC = ("raw", "two-hop mean")
LAYER_GENES = ("PCP4", "HPCAL1")


def log_normalized(values):
    values = np.asarray(values, dtype=np.float32)
    return np.log1p(values * (1e4 / np.maximum(values.sum(axis=1, keepdims=True), 1e-12)))


def spectrum(expression):
    """Share of the first two components, and effective rank."""
    from sklearn.decomposition import PCA

    n_components = min(50, *expression.shape)
    pca = PCA(n_components, svd_solver="randomized", random_state=0).fit(expression)
    shares = pca.explained_variance_ / pca.explained_variance_.sum()
    total = expression.var(axis=0, ddof=1).sum()
    return pca.explained_variance_[:2].sum() / total, np.exp(-(shares * np.log(shares)).sum())


def markers(raw, regions):
    """Names of the markers of the raw counts, and the region of each."""
    groups = raw.groupby(regions, observed=True)
    mean, error = groups.mean(), groups.sem()
    found = {}
    for region in mean.index:
        second = mean.drop(index=region).idxmax()
        gap = mean.loc[region] - mean.drop(index=region).max()
        spread = np.sqrt(error.loc[region] ** 2 + [error.at[other, gene] ** 2 for gene, other in second.items()])
        best = (gap / spread.replace(0, np.nan)).nlargest(3)
        found.update(dict.fromkeys(best[best > 0].index, region))
    return found


def load(path):
    import anndata

    import stdenoise as st

    adata = anndata.read_h5ad(path)
    adata.var_names_make_unique()
    st.pp.spatial_graph(adata)
    return adata


def denoised(adata, method, seed):
    import stdenoise as st

    name, params = METHODS[method]
    start = time.process_time()
    st.tl.denoise(adata, method=name, seed=seed, progress=False, **params)
    row = {"seconds": time.process_time() - start, "spots": adata.n_obs, "genes": adata.n_vars}
    record = adata.uns[name]
    row["epochs"] = len(record["history"].get("loss", []))
    counts = np.asarray(adata.X.todense()) if method == "raw" else adata.layers[f"{name}_mean"]
    expression = log_normalized(counts)
    row["first two"], row["effective rank"] = map(float, spectrum(expression))
    if "region" in adata.obs:
        table = st.metrics.clustering(adata, "region", layer=None if method == "raw" else name, n_runs=3)
        row["ari"] = float(table["ari"].mean())
        raw = pd.DataFrame(log_normalized(adata.X.todense()), adata.obs_names, adata.var_names)
        after = pd.DataFrame(expression, adata.obs_names, adata.var_names)
        regions = adata.obs["region"]
        means = after.groupby(regions, observed=True).mean()
        found = markers(raw, regions)
        row["markers"] = float(np.mean([means[gene].idxmax() == region for gene, region in found.items()]))
        for gene in LAYER_GENES:
            if gene in means:
                row[gene] = str(means[gene].idxmax())
        if set(LAYER_GENES) <= set(means):
            row["r"] = float(np.corrcoef(after["PCP4"], after["ENC1"])[0, 1])
    return row


def held_out(adata, method, seed):
    import stdenoise as st

    name, params = METHODS[method]
    score = st.metrics.held_out(adata, name, seed=seed, progress=False, **params)
    return {"deviance": float(score["poisson_deviance"].item()), "explained": float(score["explained"].item())}


# What is measured of a unit, and the field that tells that it was.
PARTS = {"epochs": denoised, "explained": held_out}


def table(rows):
    print(f"{os.cpu_count()} cores ({platform.machine()}), one thread: mean (least to greatest) over seeds\n")
    names = ("seconds", "first two", "effective rank", "markers", "ari", "explained")
    digits = (0, 3, 2, 2, 3, 4)
    print("| section | method | seeds | epochs | " + " | ".join([*names, *LAYER_GENES]) + " |")
    print("|---|---|---:|---:|" + "---:|" * len(names) + "---|" * len(LAYER_GENES))
    frame = pd.DataFrame(rows).groupby(["section", "method", "seed"], sort=False).first().reset_index()
    for section in dict.fromkeys(frame["section"]):
        for method in METHODS:
            part = frame[(frame["section"] == section) & (frame["method"] == method)]
            if part.empty:
                continue
            cells = []
            for name, places in zip(names, digits, strict=True):
                values = part[name].dropna() if name in part else pd.Series(dtype=float)
                cell = "–" if values.empty else f"{values.mean():.{places}f}"
                spread = f" ({values.min():.{places}f} to {values.max():.{places}f})" if len(values) > 1 else ""
                cells.append(cell + spread)
            for gene in LAYER_GENES:
                found = part[gene].dropna() if gene in part else []
                cells.append(", ".join(map(str, dict.fromkeys(found))) or "–")
            print(f"| {section} | {method} | {len(part)} | {part['epochs'].mean():.0f} | {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("out", type=Path)
    parser.add_argument("--sections", nargs="*", default=SECTIONS)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--no-held-out", dest="held_out", action="store_false")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(row["section"], row["method"], row["seed"], part) for row in rows for part in PARTS if part in row}
    parts = ["epochs", "explained"] if args.held_out else ["epochs"]
    for method in [] if args.table else args.methods:
        for name in args.sections:
            for seed in args.seeds[:1] if method in DETERMINISTIC else args.seeds:
                for part in parts:
                    if (name, method, seed, part) in done:
                        continue
                    print(name, method, seed, file=sys.stderr, flush=True)
                    row = {"section": name, "method": method, "seed": seed}
                    row |= PARTS[part](load(args.folder / f"{name}.h5ad"), method, seed)
                    rows.append(row)
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    table(rows)


if __name__ == "__main__":
    main()
