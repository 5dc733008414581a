"""MAGIC beside the package of its authors: agreement of the values, processor seconds and peak memory, on one matrix.

Each runs in a process of its own: with 100 principal components, where two seeds of one package give a yardstick of how far
random starts alone move the values, and without components, where nothing is random. Where the authors' package,
magic-impute, is missing, only ours is measured.

Usage: python benchmarks/beside_magic.py DATA.h5ad [PYTHON_THAT_HAS_MAGIC]
"""

import resource
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import sparse


def prepare(path):
    """Square root of counts per 10 000 of the 3000 most variable genes, or of all where there are fewer."""
    import scanpy as sc

    adata = sc.read_h5ad(path)
    if adata.n_vars > 3000:
        sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=3000, subset=True)
    counts = sparse.csr_matrix(adata.X, dtype=np.float64)
    total = np.asarray(counts.sum(axis=1))
    return sparse.csr_matrix(counts.multiply(1e4 / np.maximum(total, 1)).sqrt(), dtype=np.float32)


def run_ours(matrix, n_pca, seed):
    """Diffuse with this package."""

    import torch

    from stdenoise.methods.magic import MAGIC
    from stdenoise.spatial.graph import to_csr_tensor
    from stdenoise.spatial.spots import Tissue

    genes = [str(number) for number in range(matrix.shape[1])]
    spots = Tissue().with_counts(matrix, genes, positions=None, device=torch.device("cpu"))
    # The matrix is taken as it is: nothing is transformed, nothing squared afterwards.
    vars(spots)["lognorm"] = to_csr_tensor(matrix, dtype=torch.float32)
    method = MAGIC(transform="log1p", n_pca=n_pca)
    start = time.process_time()
    mean = method.fit(spots, seed=seed, progress=False).mean.numpy()
    return mean, time.process_time() - start


def run_theirs(matrix, n_pca, seed):
    """Diffuse with the authors' package; dense, because it centres only then."""
    import magic

    values = matrix.toarray()
    start = time.process_time()
    mean = magic.MAGIC(t=3, n_pca=n_pca, random_state=seed, verbose=0).fit_transform(values)
    return np.asarray(mean), time.process_time() - start


def worker(which, n_pca, seed, source, target):
    """Measure one run, in a process of its own."""
    run = {"ours": run_ours, "theirs": run_theirs}[which]
    mean, seconds = run(sparse.load_npz(source), int(n_pca) or None, int(seed))
    np.save(target, mean)
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def correlations(one, other):
    """Pearson correlation of each gene, where it varies."""
    one, other = (values.astype(float) - values.mean(axis=0, dtype=float) for values in (one, other))
    size = np.sqrt((one**2).sum(axis=0) * (other**2).sum(axis=0))
    return ((one * other).sum(axis=0)[size > 0]) / size[size > 0]


def main(path, python=sys.executable):
    """Prepare the matrix, run both, and print the tables."""
    # Name, components (0 for none), seed.
    runs = [
        ("ours", 100, 0),
        ("ours", 100, 1),
        ("theirs", 100, 0),
        ("theirs", 100, 1),
        ("ours", 0, 0),
        ("theirs", 0, 0),
    ]
    if subprocess.run([python, "-c", "import magic"], capture_output=True, check=False).returncode:
        print(f"magic-impute cannot be imported by {python}: measuring ours alone.\n")
        runs = [run for run in runs if run[0] == "ours"]
    means = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "matrix.npz"), Path(folder, "mean.npy")
        matrix = prepare(path)
        sparse.save_npz(source, matrix)
        print(f"{Path(path).stem}, {matrix.shape[0]} spots x {matrix.shape[1]} genes, knn 5, t 3\n")
        print("| which | components | seed | processor seconds | peak memory, GB |\n|---|---|---|---|---|")
        for run in runs:
            which, n_pca, seed = run
            interpreter = python if which == "theirs" else sys.executable
            command = [interpreter, __file__, "--worker", which, str(n_pca), str(seed), str(source), str(target)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, memory = map(float, done.stdout.split()[-2:])
            print(f"| {which} | {n_pca or 'none'} | {seed} | {seconds:.1f} | {memory:.2f} |")
            means[run] = np.load(target)
    print("\n| compared | components | Pearson per gene, median | least | largest difference |\n|---|---|---|---|---|")
    for one, other in combinations(runs, 2):
        if one[1] == other[1] and (one[0] == other[0] or one[2] == other[2]):
            r = correlations(means[one], means[other])
            difference = np.abs(means[one] - means[other]).max()
            names = " and ".join(f"{which} (seed {seed})" for which, _, seed in (one, other))
            print(f"| {names} | {one[1] or 'none'} | {np.median(r):.6f} | {r.min():.6f} | {difference:.2g} |")


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
