"""Held-out molecules: binomial thinning of counts, and the deviance of expected counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise.spatial.results import Array

FLOOR = 1e-3
"""Expected counts are raised to this share of what the gene's mean predicts: no finite loss forgives a 0 that is wrong."""

_DISPERSION_RANGE = (1e-2, 1e4)


@dataclass(frozen=True)
class Deviance:
    """Deviance per entry.

    Parameters
    ----------
    poisson, negative_binomial
        Mean over all spots and genes of the unit deviance.
    floored
        Share of entries whose expectation was raised to the floor.
    """

    poisson: float
    negative_binomial: float
    floored: float


def thin(
    counts: sparse.csr_matrix, fraction: float, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Put each molecule into the held-out part with probability `fraction`.

    If counts are Poisson, both parts are, independently, with means in the ratio `(1 - fraction) : fraction`.

    Parameters
    ----------
    counts
        Whole counts, shape `(n_spots, n_genes)`.
    fraction
        Share of held-out molecules.
    rng
        Source of randomness.

    Returns
    -------
    The remaining and the held-out counts.
    """
    held_out = rng.binomial(counts.data.astype(np.int64), fraction).astype(counts.dtype)
    parts = []
    for values in (counts.data - held_out, held_out):
        part = sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape, copy=True)
        part.eliminate_zeros()
        parts.append(part)
    return parts[0], parts[1]


def mean_profile(counts: sparse.csr_matrix, depth: np.ndarray) -> np.ndarray:
    """Expected counts per unit of depth in a Poisson model without structure, shape `(n_genes,)`.

    Parameters
    ----------
    counts
        Shape `(n_spots, n_genes)`. A gene without a count is given half of one, so that nothing is thought impossible.
    depth
        Relative depth of each spot, shape `(n_spots,)`.
    """
    total = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
    return np.asarray(np.maximum(total, 0.5) / depth.sum())


def moment_dispersion(counts: sparse.csr_matrix, depth: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Inverse dispersion of each gene around `depth x profile` by moments, shape `(n_genes,)`.

    The variance of a negative binomial is `mean + mean^2 / theta`, so that `theta` is the ratio of the summed squared means
    to the summed excess of the squared residuals.
    """
    squared = (depth**2).sum() * profile**2
    # Sum of (y - m)^2 = sum y^2 - 2 sum y m + sum m^2, without a dense array.
    y2 = np.asarray(counts.multiply(counts).sum(axis=0), dtype=np.float64).ravel()
    ym = np.asarray(counts.T @ depth, dtype=np.float64).ravel() * profile
    excess = y2 - 2 * ym + squared - depth.sum() * profile
    theta = np.full(len(profile), _DISPERSION_RANGE[1])
    np.divide(squared, excess, out=theta, where=excess > squared / _DISPERSION_RANGE[1])
    return np.asarray(theta.clip(*_DISPERSION_RANGE))


def count_deviance(
    expected: Array,
    observed: sparse.csr_matrix,
    *,
    spots: np.ndarray,
    odds: float,
    depth: np.ndarray,
    profile: np.ndarray,
    dispersion: np.ndarray,
    block_entries: int = 2**22,
) -> Deviance:
    """Mean Poisson and negative binomial deviance of observed counts, over all entries.

    The unit deviances are `2 (y log(y / m) - y + m)` and `2 (y log(y / m) - (y + t) log((y + t) / (m + t)))`.

    Parameters
    ----------
    expected
        Expected counts of all spots at the depth of the molecules that were kept; `m` is this times the odds.
    observed
        Counts `y` of the scored spots, shape `(n_spots, n_genes)`.
    spots
        Which spots those are, shape `(n_spots,)`.
    odds
        Held-out molecules for each that was kept.
    depth, profile
        The prediction without structure, which sets the floor on `m`.
    dispersion
        Inverse dispersion `t` of each gene.
    block_entries
        Entries per block of spots.
    """
    n_spots, n_genes = observed.shape
    device = expected.device
    positions = torch.from_numpy(spots).to(device)
    profile_t = torch.tensor(profile, dtype=torch.float64, device=device)
    theta = torch.tensor(dispersion, dtype=torch.float64, device=device)
    poisson = negative_binomial = 0.0
    floored = 0
    height = max(1, block_entries // n_genes)
    for start in range(0, n_spots, height):
        rows = slice(start, min(start + height, n_spots))
        floor = FLOOR * torch.tensor(depth[rows], dtype=torch.float64, device=device)[:, None] * profile_t
        given = (expected[positions[rows]] * odds).double()
        floored += int((given < floor).sum())
        m = torch.maximum(given, floor)
        y = torch.tensor(observed[rows].toarray(), dtype=torch.float64, device=device)
        # An entry that is expected to be 0, in an empty spot or of an empty gene, and is 0, costs nothing.
        fit = torch.special.xlogy(y, y / m.clamp(min=torch.finfo(torch.float64).tiny))
        poisson += float((fit - y + m).sum())
        negative_binomial += float((fit - (y + theta) * ((y - m) / (m + theta)).log1p()).sum())
    entries = n_spots * n_genes
    return Deviance(2 * poisson / entries, 2 * negative_binomial / entries, floored / entries)


def poisson_deviance(expected: Tensor, observed: Tensor) -> Tensor:
    """Poisson deviances of counts, summed over spots, in double precision; shape `(n_genes,)`.

    Parameters
    ----------
    expected
        Expected counts, above zero, shape `(n_spots, n_genes)`.
    observed
        Counts, a CSR tensor of the same shape without stored zeros.
    """
    row, col = torch.repeat_interleave(observed.crow_indices().diff()), observed.col_indices().long()
    m, y = expected[row, col].double(), observed.values().double()
    return 2 * expected.sum(0, dtype=torch.float64).index_add_(0, col, y * (y / m).log() - y)
