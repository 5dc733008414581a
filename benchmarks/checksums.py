"""Checksums of what every method and every metric gives, to show that a change of structure changes no result.

Usage: python benchmarks/checksums.py OUT.txt                 write them
       python benchmarks/checksums.py OUT.txt --against BEFORE.txt   write them, and show what differs

Three small sections made in code: a hexagonal array with six patterns of genes, two libraries in mixed order with an empty spot, an empty
gene and two spots at one place, and cells in space. Each registered method denoises each of them (those with a network for a few
epochs, with both schedules), in memory, and the networks from disk to disk and on four genes, too. Each metric is taken once. A line names
a place such as `layers/dusted_mean` and the CRC of the bits of its float32 or integer values. One thread on the CPU: bits are the
same on one machine, not between machines.
"""

import argparse
import tempfile
import warnings
import zlib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import stdenoise as st

torch.set_num_threads(1)

NETWORKS = {
    "dusted": [
        {"n_epochs": 4},
        {"n_epochs": 4, "schedule": "fast"},
        {"n_epochs": 4, "likelihood": "nb", "schedule": "fast"},
    ],
    "stagate": [{"n_epochs": 4}],
    "dca": [{"n_epochs": 4}],
}
SCVI = {"scvi": [{"n_epochs": 2}]}


def counts(rng, n_spots, n_genes):
    return sparse.csr_matrix(rng.poisson(rng.gamma(0.7, 3.0, size=(n_spots, n_genes))), dtype=np.float32)


def array():
    adata = st.datasets.tissue(n_spots=300, n_genes=40)
    st.pp.spatial_graph(adata)
    adata.obsm["features"] = np.random.default_rng(3).normal(size=(300, 5))
    adata.obs["region"] = pd.Categorical(
        np.where(adata.obsm["spatial"][:, 0] > adata.obsm["spatial"][:, 0].mean(), "right", "left")
    )
    return adata


def libraries():
    rng = np.random.default_rng(5)
    xy = rng.uniform(0, 10, size=(121, 2))
    xy[60:] += 50
    xy[5] = xy[4]
    matrix = counts(rng, 121, 20).toarray()
    matrix[7], matrix[:, 3] = 0, 0
    adata = ad.AnnData(sparse.csr_matrix(matrix), obsm={"spatial": xy})
    adata.obs["library"] = pd.Categorical(np.repeat(["a", "b"], [60, 61]))
    adata = adata[rng.permutation(121)].copy()
    st.pp.spatial_graph(adata, library_key="library")
    return adata


def cells():
    rng = np.random.default_rng(8)
    adata = ad.AnnData(counts(rng, 200, 16), obsm={"spatial": rng.uniform(0, 10, size=(200, 3))})
    st.pp.spatial_graph(adata)
    return adata


SECTIONS = {"array": (array, {}), "libraries": (libraries, {"library_key": "library"}), "cells": (cells, {})}


def crc(values):
    if sparse.issparse(values):
        values = values.tocsr()
        return ".".join(crc(part) for part in (values.indptr, values.indices, values.data))
    values = np.asarray(values)
    if values.dtype.kind in "OUST":
        return f"{zlib.crc32(repr(values.tolist()).encode()):08x}"
    if values.dtype.kind in "iub":
        values = values.astype(np.int64)
    return f"{zlib.crc32(np.ascontiguousarray(values).tobytes()):08x}"


def table_crc(table):
    """Of a table of numbers, without the seconds."""
    frame = pd.DataFrame(table).drop(columns="seconds", errors="ignore")
    return ".".join(crc(frame[column].to_numpy()) for column in frame)


def results_of(adata, key):
    """Yield each place that a run wrote to, and its checksum; the record without versions and device."""
    for place in adata.uns[key]["written"]:
        attribute, name = place.split("/", 1)
        if attribute != "uns":
            yield place, crc(getattr(adata, attribute)[name])
    record = adata.uns[key]
    for name, values in record["history"].items():
        yield f"history/{name}", crc(values)
    for part in ("training", "check"):
        yield part, f"{zlib.crc32(repr(sorted(map(str, record.get(part, {}).items()))).encode()):08x}"


def denoised(folder):
    for section, (make, keys) in SECTIONS.items():
        for method in st.methods.table().index:
            for params in (NETWORKS | SCVI).get(method, [{}]):
                name = f"{section} {method} {params or ''}".strip()
                adata = make()
                extra = {"features_key": "features"} if method == "sprod" and section == "array" else {}
                try:
                    st.tl.denoise(adata, method=method, progress=False, **keys, **extra, **params)
                except (ValueError, ImportError, TypeError) as error:
                    yield f"{name}: {type(error).__name__}"
                    continue
                for place, value in results_of(adata, method):
                    yield f"{name} {place} {value}"
                genes = list(make().var_names[[7, 2, 11, 3]])
                if method in NETWORKS:
                    path = folder / "in.zarr"
                    make().write_zarr(path)
                    streamed = ad.io.read_zarr(from_disk(path, folder / "out.zarr", method, keys, params))
                    for place, value in results_of(streamed, method):
                        yield f"{name} from disk {place} {value}"
                    st.tl.denoise(adata, method=method, genes=genes, key_added="few", progress=False, **keys, **params)
                    for place, value in results_of(adata, "few"):
                        yield f"{name} few genes {place} {value}"


def from_disk(path, out, method, keys, params):
    st.tl.denoise(
        ad.experimental.read_lazy(path), method=method, out=out, dtype="float32", progress=False, **keys, **params
    )
    return out


def metrics():
    adata = array()
    st.tl.denoise(adata, method="neighbor_mean")
    st.tl.denoise(adata, method="poisson_factorization")
    adata.obs["protein"] = np.random.default_rng(0).normal(size=adata.n_obs)
    layer = "neighbor_mean"
    truth = adata.layers["poisson_factorization_mean"]
    image = np.random.default_rng(1).integers(0, 255, size=(200, 200, 3)).astype(np.uint8)
    size = float(np.ptp(adata.obsm["spatial"], axis=0).max())
    adata.obsm["pixels"] = 10 + 180 * (adata.obsm["spatial"] - adata.obsm["spatial"].min(0)) / size
    quick = {"progress": False}
    yield "morans_i", st.metrics.morans_i(adata, layer=layer, n_permutations=9, **quick)
    yield "gearys_c", st.metrics.gearys_c(adata, layer=layer, scale="log1p", n_permutations=9, **quick)
    yield "clustering", st.metrics.clustering(adata, "region", layer=layer, n_components=5, n_runs=2)
    yield "clustering refined", st.metrics.clustering(adata, "region", layer=layer, n_components=5, refine=6)
    yield (
        "gene_protein_correlation",
        st.metrics.gene_protein_correlation(adata, "gene3", protein="protein", layer=layer, n_bootstrap=20),
    )
    yield "reconstruction", st.metrics.reconstruction(adata, layer, truth=truth)
    yield "reconstruction per gene", st.metrics.reconstruction(adata, layer, truth=truth, per="gene")
    yield "smoothing", st.metrics.smoothing(adata, layer, labels="region")
    yield (
        "spot_intensity",
        st.metrics.spot_intensity(adata, image=image, scale_factor=1.0, diameter=8.0, spatial_key="pixels"),
    )
    yield "held_out", st.metrics.held_out(adata, "poisson_factorization", **quick)
    yield "held_out dusted", st.metrics.held_out(adata, "dusted", n_epochs=3, **quick)
    yield "masked_recovery", st.metrics.masked_recovery(adata, "neighbor_mean", fraction=[0.1, 0.3], **quick)
    yield "null_test", st.metrics.null_test(adata, "neighbor_mean", **quick)
    yield "cross_validate", st.tl.cross_validate(adata, ["neighbor_mean", "alra"], n_splits=2, **quick)
    st.tl.cluster(adata, 3, layer=layer, n_components=5)
    yield "cluster", {"label": adata.obs["cluster"].cat.codes}
    st.pp.image_features(adata, image=image, scale_factor=1.0, diameter=8.0, spatial_key="pixels", progress=False)
    yield "image_features", pd.DataFrame(np.asarray(adata.obsm["image_features"]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        lines += denoised(Path(folder))
    lines += [f"metric {name} {table_crc(table)}" for name, table in metrics()]
    args.out.write_text("".join(f"{line}\n" for line in lines))
    if args.against is None:
        print(f"{len(lines)} checksums")
        return
    before, after = (set(path.read_text().splitlines()) for path in (args.against, args.out))
    for line in sorted(before ^ after):
        print("-" if line in before else "+", line)
    print(f"{len(before & after)} equal, {len(before - after)} gone or other, {len(after - before)} new or other")


if __name__ == "__main__":
    main()
