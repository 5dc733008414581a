"""Spots and results without an AnnData."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.spots import Spots, Tissue


def spots_of(counts, coordinates=None, *, features=None, libraries=None, links=None, positions=None):
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    given = {
        "coordinates": (coordinates, float),
        "features": (features, np.float32),
        "libraries": (libraries, np.int64),
    }
    tissue = Tissue(
        graphs={} if links is None else {"spatial": SpatialGraph.from_scipy(sparse.csr_matrix(links))},
        arrays={name: torch.tensor(np.asarray(x, dtype=kind)) for name, (x, kind) in given.items() if x is not None},
    )
    genes = [f"gene{j}" for j in range(counts.shape[1])]
    return tissue.with_counts(counts, genes, positions=positions, device=torch.device("cpu"))


@pytest.fixture(scope="session", name="spots_of")
def spots_of_fixture():
    """What methods see of counts, coordinates and what else is given."""
    return spots_of


@pytest.fixture(scope="session")
def fit():
    """The result of a method on spots, or on what `spots_of` takes, its mean expanded."""

    def fit(method, data, *coordinates, seed=0, **context):
        spots = data if isinstance(data, Spots) else spots_of(data, *coordinates, **context)
        result = method.fit(spots, seed=seed, progress=False)
        return replace(result, mean=result.mean[:])

    return fit


@pytest.fixture(scope="session")
def drawn():
    """Overdispersed counts, of which one at least is not zero."""

    def drawn(seed, n_spots, n_genes):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(rng.gamma(0.7, 3.0, size=(n_spots, n_genes)))
        counts[0, 0] += 1
        return counts

    return drawn
