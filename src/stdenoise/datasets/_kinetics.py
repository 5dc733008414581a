"""True counts of simulated cells: promoters that switch on and off, after SymSim."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

# Quantiles of log10 of the kinetic rates fitted to 78 120 genes of real tissues (Zhang, Xu and Yosef 2019).
_SHARES = np.array([0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1])
RATES = {
    "k_on": np.array([-1.599, -1.281, -0.966, -0.560, 0.091, 0.459, 0.944, 1.681, 1.848, 2.011, 2.267]),
    "k_off": np.array([-1.174, -0.677, -0.348, -0.040, 0.576, 0.980, 1.242, 1.428, 1.526, 1.711, 2.154]),
    "s": np.array([0.614, 1.237, 1.343, 1.414, 1.622, 1.915, 2.161, 2.416, 2.594, 2.997, 3.931]),
}

_BLOCK_ENTRIES = 2**20


@dataclass(frozen=True)
class Kinetics:
    """Parameters of the true counts.

    Parameters
    ----------
    n_factors
        Factors that describe a cell ("extrinsic variability factors"), for each of the three rates.
    n_differential
        Factors of the synthesis rate whose mean differs between cell types.
    factor_mean, factor_sd
        Mean of the factors over all cells, and standard deviation within a cell type.
    effect_share
        Share of the factors that act on a gene.
    high_share, high_log2
        Share of the genes that are raised, and the binary logarithm of the factor for the highest of them.
    """

    n_factors: int = 10
    n_differential: int = 9
    factor_mean: float = 1.0
    factor_sd: float = 0.4
    effect_share: float = 0.3
    high_share: float = 0.015
    high_log2: float = 5.0


def true_counts(
    cell_type: np.ndarray, n_genes: int, kinetics: Kinetics, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the molecules of every cell.

    Parameters
    ----------
    cell_type
        Type of each cell, as integers from 0.
    n_genes
        Number of genes.
    kinetics
        Parameters.
    rng
        Source of randomness.

    Returns
    -------
    Counts of shape `(n_cells, n_genes)`, and which genes are highly expressed.
    """
    rates = {}
    for name, quantiles in RATES.items():
        n_differential = kinetics.n_differential if name == "s" else 0
        factors = draw_factors(cell_type, n_differential, kinetics, rng)
        effects = rng.normal(size=(n_genes, kinetics.n_factors))
        effects[rng.random(effects.shape) >= kinetics.effect_share] = 0
        draws = np.interp(rng.random(len(cell_type) * n_genes), _SHARES, quantiles)
        rates[name] = 10 ** match_ranks(factors @ effects.T, draws)

    counts = beta_poisson(rates["k_on"], rates["k_off"], rates["s"], rng)
    high = rng.choice(n_genes, size=int(np.ceil(kinetics.high_share * n_genes)), replace=False)
    high = high[np.argsort(rates["s"][:, high].sum(axis=0))]
    rank = np.arange(1, len(high) + 1)
    counts[:, high] = rng.poisson(rates["s"][:, high] * 2 ** (kinetics.high_log2 - (1 - rank / len(high))))
    return counts, np.isin(np.arange(n_genes), high)


def draw_factors(
    cell_type: np.ndarray, n_differential: int, kinetics: Kinetics, rng: np.random.Generator
) -> np.ndarray:
    """Draw the factors of every cell, shape `(n_cells, n_factors)`; the first `n_differential` differ between types."""
    mean = np.full((int(cell_type.max()) + 1, kinetics.n_factors), kinetics.factor_mean)
    # All types are equally far from each other: the tree of types is a star.
    mean[:, :n_differential] += rng.normal(size=(len(mean), n_differential))
    return np.asarray(rng.normal(mean[cell_type], kinetics.factor_sd))


def match_ranks(scores: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Replace every score by the draw of the same rank among all; equal scores get equal values."""
    rank = rankdata(scores, axis=None).astype(np.int64) - 1
    return np.asarray(np.sort(draws)[rank].reshape(scores.shape))


def beta_poisson(k_on: np.ndarray, k_off: np.ndarray, s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw `Poisson(s * y)` with `y ~ Beta(k_on, k_off)`, in blocks of cells."""
    counts = np.empty(s.shape, dtype=np.int64)
    step = max(1, _BLOCK_ENTRIES // s.shape[1])
    for start in range(0, len(s), step):
        rows = slice(start, start + step)
        counts[rows] = rng.poisson(s[rows] * rng.beta(k_on[rows], k_off[rows]))
    return counts
