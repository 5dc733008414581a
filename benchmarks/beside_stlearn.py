"""SME beside stLearn: agreement of the values, processor seconds and peak memory, on one Visium section.

Each runs in a process of its own, from the same log-normalised values, principal components included, and within the radius that
stLearn used. No network runs: the image components are waves over the tissue, the same for both, so that the weights have their
third factor. Where stlearn is missing, only ours is measured.

Usage: python benchmarks/beside_stlearn.py VISIUM.h5ad [PYTHON_THAT_HAS_STLEARN]

The section has raw counts in X, pixels in obsm["spatial"], and array_row and array_col in obs.
"""

import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

# Ours, and what stLearn calls the same.
WEIGHTS = {
    "physical_expression": "weights_matrix_pd_gd",
    "physical_morphology": "weights_matrix_pd_md",
    "physical_morphology_expression": "weights_matrix_all",
}
VALUES = {"normalize": "raw_SME_normalized", "impute": "raw_SME_imputed"}


def prepare(path):
    """Log-normalised values of the 3000 most variable genes, with places and image components of ten waves, centred."""
    import anndata as ad
    import scanpy as sc

    from stdenoise.spatial.normalize import lognorm

    whole = sc.read_h5ad(path)
    sc.pp.highly_variable_genes(whole, flavor="seurat_v3", n_top_genes=min(3000, whole.n_vars), subset=True)
    places = np.asarray(whole.obsm["spatial"], dtype=float)
    adata = ad.AnnData(lognorm(whole.X).astype(np.float32), obs=whole.obs[["array_row", "array_col"]].copy())
    adata.obs["imagecol"], adata.obs["imagerow"] = places.T
    rng = np.random.default_rng(0)
    waves = np.sin((places / np.ptp(places, axis=0)) @ rng.normal(0, 20, size=(2, 10)) + rng.uniform(0, 6, 10))
    adata.obsm["X_morphology"] = waves - waves.mean(axis=0)
    return adata


def peak_memory():
    """Largest resident set of this program so far, in GB; Linux only."""
    # Not ru_maxrss, which a new process takes over from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def run_ours(adata, weights, mode, radius):
    """Adjust with this package."""

    import torch

    from stdenoise.methods.sme import SME
    from stdenoise.spatial.graph import to_csr_tensor
    from stdenoise.spatial.spots import Tissue

    tissue = Tissue(
        arrays={
            "coordinates": torch.tensor(adata.obs[["imagecol", "imagerow"]].to_numpy()),
            "features": torch.tensor(adata.obsm["X_morphology"], dtype=torch.float32),
        }
    )
    spots = tissue.with_counts(adata.X, list(adata.var_names), positions=None, device=torch.device("cpu"))
    # The values are on the scale of the result already.
    vars(spots)["lognorm"] = to_csr_tensor(adata.X, dtype=torch.float32)
    method = SME(weights=weights, mode=mode, radius=radius)
    before, start = peak_memory(), time.process_time()
    mean = method.fit(spots, seed=0, progress=False).mean.numpy()
    return mean, time.process_time() - start, before, peak_memory(), radius


def run_theirs(adata, weights, mode, _radius):
    """Adjust with stLearn; its radius is seen from the pairs it joined."""
    import scanpy as sc
    import stlearn
    from scipy.spatial.distance import cdist

    before, start = peak_memory(), time.process_time()
    sc.pp.pca(adata, n_comps=50)
    adata.X = adata.X.toarray()
    run = stlearn.spatial.SME.SME_normalize if mode == "normalize" else stlearn.spatial.SME.SME_impute0
    run(adata, use_data="raw", weights=WEIGHTS[weights])
    seconds = time.process_time() - start
    peak = peak_memory()
    places = adata.obs[["imagecol", "imagerow"]].to_numpy()
    joined = next(store["physical_distance"] for store in (adata.obsm, adata.uns) if "physical_distance" in store)
    farthest = float(cdist(places, places)[np.asarray(joined) > 0].max())
    return np.asarray(adata.obsm[VALUES[mode]]), seconds, before, peak, farthest * (1 + 1e-9)


def worker(which, weights, mode, radius, source, target):
    """Measure one run, in a process of its own."""
    import anndata as ad

    warnings.simplefilter("ignore")
    run = {"ours": run_ours, "theirs": run_theirs}[which]
    mean, *measured = run(ad.read_h5ad(source), weights, mode, "auto" if radius == "auto" else float(radius))
    np.save(target, mean.astype(np.float32))
    print(*measured)


def correlations(one, other):
    """Pearson correlation of each gene, where it varies."""
    one, other = (values.astype(float) - values.mean(axis=0, dtype=float) for values in (one, other))
    size = np.sqrt((one**2).sum(axis=0) * (other**2).sum(axis=0))
    return (one * other).sum(axis=0)[size > 0] / size[size > 0]


def main(path, python=sys.executable):
    """Prepare the values, run both, and print the table."""
    found = subprocess.run([python, "-c", "import stlearn"], capture_output=True, check=False)
    names = ["theirs", "ours"] if found.returncode == 0 else ["ours"]
    if len(names) == 1:
        print(f"stlearn cannot be imported by {python}: measuring ours alone.\n")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "values.h5ad"), Path(folder, "mean.npy")
        adata = prepare(path)
        adata.write_h5ad(source)
        print(f"{Path(path).stem}, {adata.n_obs} spots x {adata.n_vars} genes\n")
        columns = ["weights", "mode", "which", "radius", "processor seconds", "peak memory, GB", "above the start, GB"]
        columns += ["Pearson per gene, median", "least"]
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for weights in WEIGHTS:
            for mode in VALUES:
                radius, means = "auto", {}
                for name in names:
                    interpreter = python if name == "theirs" else sys.executable
                    command = [interpreter, __file__, "--worker", name, weights, mode, radius, str(source), str(target)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    seconds, before, peak, radius = done.stdout.split()[-4:]
                    grown = float(peak) - float(before)
                    means[name] = np.load(target)
                    r = correlations(means["theirs"], means["ours"]) if len(means) == 2 else None
                    agreement = " | " if r is None else f"{np.median(r):.6f} | {r.min():.6f}"
                    shown = radius if radius == "auto" else f"{float(radius):.1f}"
                    print(
                        f"| {weights} | {mode} | {name} | {shown} | {float(seconds):.1f} | {float(peak):.2f} | {grown:.2f} | {agreement} |",
                        flush=True,
                    )


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
