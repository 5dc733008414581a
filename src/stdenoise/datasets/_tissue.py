"""A small tissue made in code, whose true expression is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stdenoise._base.checks import check_number
from stdenoise._base.random import check_seed

_REGIONS = ("core", "inner", "outer", "rim", "islet")
_PITCH = 100.0


def tissue(n_spots: int = 1200, n_genes: int = 300, *, seed: int = 0) -> AnnData:
    """Make a round section with five regions on a hexagonal array.

    Wavy rings around a core and one small islet differ in the expression of two thirds of the genes; the rest are the same
    everywhere. Depth varies between spots, and counts are negative binomial with inverse dispersion 5 around their means.

    Parameters
    ----------
    n_spots
        Number of spots.
    n_genes
        Number of genes.
    seed
        The same seed gives the same tissue.

    Returns
    -------
    AnnData with counts in `X` (CSR, float32), `layers["true_mean"]` (expected counts, float32), `obs["region"]` and
    `obsm["spatial"]` (centres, 100 apart).

    Examples
    --------
    >>> import stdenoise as st
    >>> st.datasets.tissue(n_spots=50, n_genes=10).shape
    (50, 10)
    """
    check_number("n_spots", n_spots, minimum=1, integer=True)
    check_number("n_genes", n_genes, minimum=1, integer=True)
    check_seed(seed)

    rng = np.random.default_rng(seed)
    xy = _hexagonal_disc(n_spots)
    extent = max(1.0, float(np.abs(xy).max()))
    angle, depth = np.arctan2(xy[:, 1], xy[:, 0]), np.hypot(xy[:, 0], xy[:, 1]) / extent
    wavy = depth * (1 + 0.12 * np.sin(3 * angle) + 0.05 * np.cos(7 * angle))
    region = np.digitize(wavy, [0.35, 0.6, 0.85])
    region[np.hypot(xy[:, 0] / extent - 0.45, xy[:, 1] / extent + 0.4) < 0.16] = len(_REGIONS) - 1

    # Each patterned gene is raised in one region, and lower or higher in others at random.
    effect = rng.normal(0, 0.4, size=(len(_REGIONS), n_genes))
    effect[rng.integers(len(_REGIONS), size=n_genes), np.arange(n_genes)] += 1.5
    effect[:, rng.random(n_genes) < 1 / 3] = 0
    baseline = rng.normal(-1.2, 1.0, size=n_genes)
    size = rng.lognormal(0, 0.35, size=n_spots)
    mean = size[:, None] * np.exp(baseline + effect[region])
    counts = rng.poisson(mean * rng.gamma(5.0, 1 / 5.0, size=mean.shape))

    return AnnData(
        X=sparse.csr_matrix(counts, dtype=np.float32),
        obs=pd.DataFrame(
            {"region": pd.Categorical.from_codes(region, categories=pd.Index(_REGIONS))},
            index=[f"spot{i}" for i in range(n_spots)],
        ),
        var=pd.DataFrame(index=[f"gene{j}" for j in range(n_genes)]),
        layers={"true_mean": mean.astype(np.float32)},
        obsm={"spatial": xy + extent},
    )


def _hexagonal_disc(n_spots: int) -> np.ndarray:
    """The `n_spots` points of a hexagonal lattice nearest to the origin."""
    reach = int(np.ceil(np.sqrt(n_spots))) + 1
    row, col = (x.ravel() for x in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    points = _PITCH * np.column_stack([col + 0.5 * (row % 2), row * np.sqrt(0.75)])
    order = np.lexsort((points[:, 0], points[:, 1], np.round(np.hypot(*points.T), 6)))
    return points[order[:n_spots]]
