"""Where simulated cells lie: six layouts of cell types, after the random patterns of scCube."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdenoise.datasets._sequencing import Protocol

EXTENT = 30
"""Side of the square that holds the cells, in grid units."""

# The spread of the capture rate keeps the ratio to its mean that SymSim's example has, 0.02 / 0.05.
_UMI_02 = Protocol(umi=True, capture=0.02, capture_sd=0.008, depth=5e4)
_UMI_05 = Protocol(umi=True, capture=0.05, capture_sd=0.02, depth=5e4)
_UMI_10 = Protocol(umi=True, capture=0.10, capture_sd=0.04, depth=5e4)
_READS_10 = Protocol(umi=False, capture=0.10, capture_sd=0.05, depth=1e5)


@dataclass(frozen=True)
class Pattern:
    """One simulated tissue.

    Parameters
    ----------
    n_spots, n_genes
        Size.
    shares
        Share of the cells that each type has.
    correlation_length
        Of the random field whose level bands are the types, in grid units.
    purity
        Share of the cells that keep the type of their band; the others exchange theirs.
    protocol
        How the cells are sequenced.
    n_patterned
        So many types, the first ones, form bands; the others are mixed among themselves.
    """

    n_spots: int
    n_genes: int
    shares: tuple[float, ...]
    correlation_length: float
    purity: float
    protocol: Protocol
    n_patterned: int


PATTERNS = {
    "P1": Pattern(1000, 500, (1 / 3,) * 3, 25, 0.95, _UMI_05, 3),
    "P2": Pattern(1500, 800, (1 / 4,) * 4, 15, 0.90, _UMI_05, 4),
    "P3": Pattern(2000, 1000, (0.2375,) * 4 + (0.05,), 10, 0.90, _UMI_10, 5),
    "P4": Pattern(2000, 1500, (1 / 6,) * 6, 6, 0.85, _UMI_05, 6),
    "P5": Pattern(2500, 2000, (0.25, 0.18, 0.15, 0.12, 0.10, 0.10, 0.10), 8, 0.80, _UMI_02, 7),
    "P6": Pattern(3000, 2000, (1 / 5,) * 5, 12, 0.75, _READS_10, 3),
}


def type_sizes(n_cells: int, shares: tuple[float, ...]) -> np.ndarray:
    """Cells of each type: what rounding leaves goes to the largest remainders, and no type is empty."""
    if n_cells < len(shares):
        raise ValueError(f"n_spots must be an integer >= {len(shares)}, one for each cell type, not {n_cells}.")
    exact = n_cells * np.array(shares) / np.sum(shares)
    sizes = np.asarray(np.floor(exact + 1e-9)).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: n_cells - sizes.sum()]] += 1
    for empty in np.flatnonzero(sizes == 0):
        sizes[sizes.argmax()] -= 1
        sizes[empty] = 1
    return sizes


def lay_out(pattern: Pattern, n_cells: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw positions within the square, shape `(n_cells, 2)`, and the type of each cell."""
    sizes = type_sizes(n_cells, pattern.shares)
    positions = rng.uniform(0, EXTENT, size=(n_cells, 2))
    grid = label_bands(gaussian_field(EXTENT, pattern.correlation_length, rng), sizes, rng)
    cell = np.minimum(positions.astype(np.int64), EXTENT - 1)
    types = fix_composition(grid[cell[:, 0], cell[:, 1]], sizes, rng)
    _shuffle(types, np.flatnonzero(types >= pattern.n_patterned), rng)
    _shuffle(types, rng.permutation(n_cells)[: round((1 - pattern.purity) * n_cells)], rng)
    return positions, types


def gaussian_field(side: int, correlation_length: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a field on a square grid with covariance `exp(-(distance / correlation_length)**2)`."""
    axis = np.arange(side)
    # The covariance is a product over the two axes, so its root is one as well.
    along = np.exp(-(((axis[:, None] - axis) / correlation_length) ** 2))
    values, vectors = np.linalg.eigh(along)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    return np.asarray(root @ rng.normal(size=(side, side)) @ root.T)


def label_bands(field: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each type the lowest values that are left, as many as its share; the rest, such as the maximum, at random."""
    labels = np.full(field.shape, -1)
    for kind, size in enumerate(sizes):
        free = labels < 0
        labels[free & (field < np.quantile(field[free], size / sizes[kind:].sum()))] = kind
    rest = labels < 0
    labels[rest] = rng.integers(len(sizes), size=int(rest.sum()))
    return labels


def fix_composition(types: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move randomly chosen cells of types that have too many to types that have too few."""
    types = types.copy()
    missing = sizes - np.bincount(types, minlength=len(sizes))
    surplus = [
        rng.choice(np.flatnonzero(types == kind), size=-missing[kind], replace=False)
        for kind in np.flatnonzero(missing < 0)
    ]
    if surplus:
        types[rng.permutation(np.concatenate(surplus))] = np.repeat(np.arange(len(sizes)), np.maximum(missing, 0))
    return types


def _shuffle(types: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> None:
    types[chosen] = rng.permutation(types[chosen])
