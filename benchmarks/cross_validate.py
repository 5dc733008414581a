"""Which method expects held-out molecules best, section by section.

Usage: python benchmarks/cross_validate.py SECTION.h5ad ...

Each section has raw counts in X and coordinates in obsm["spatial"]. One molecule in ten is hidden, once. Of sections with more than
2000 genes, the 1000 most variable ones are modelled. Methods have their defaults, but DUSTED trains for 150 epochs, STAGATE for 300 and DCA for at most
60. The columns give the share of the gene means' deviance that a method explains.
"""

import os
import platform
import sys
import warnings
from pathlib import Path

import anndata as ad

import stdenoise as st
from stdenoise.pp._highly_variable import mark_highly_variable

METHODS = {
    "neighbor_mean": ("neighbours, 2 hops", {"n_hops": 2}),
    "poisson_factorization": ("Poisson factors 8", {"rank": 8}),
    "magic": ("MAGIC", {}),
    "knn_smoothing": ("kNN-smoothing", {}),
    "alra": ("ALRA", {}),
    "smoother": ("Smoother", {}),
    "sme": ("SME", {}),
    "sprod": ("Sprod", {}),
    "dca": ("DCA", {"n_epochs": 60}),
    "stagate": ("STAGATE", {"n_epochs": 300}),
    "dusted": ("DUSTED", {"schedule": "paper", "n_epochs": 150}),
}
N_GENES = 1000


def explained(path):
    from stdenoise.methods._registry import make_method

    adata = ad.read_h5ad(path)
    genes = None
    if adata.n_vars > 2 * N_GENES:
        mark_highly_variable(adata, N_GENES, None)
        genes = "highly_variable"
    st.pp.spatial_graph(adata)
    methods = [make_method(name, params) for name, (_, params) in METHODS.items()]
    names = {method.label: title for method, (title, _) in zip(methods, METHODS.values(), strict=True)}
    table = st.tl.cross_validate(adata, methods, genes=genes, n_splits=1, progress=False).set_index("method")
    chosen = [names[method] for method in table.index[table["recommended"]]]
    return {
        **{title: f"{table.loc[label, 'explained']:.3f}" for label, title in names.items()},
        "raw": f"{table.loc['raw', 'explained']:.3f}",
        "recommended": chosen[0] if chosen else "do not denoise",
    }


def main(paths):
    warnings.simplefilter("ignore")
    columns = [*(title for title, _ in METHODS.values()), "raw", "recommended"]
    print(f"{os.cpu_count()} cores ({platform.machine()}), CPU\n")
    print("| section | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|", flush=True)
    for path in map(Path, paths):
        row = explained(path)
        print(f"| {path.stem} | " + " | ".join(row[column] for column in columns) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
