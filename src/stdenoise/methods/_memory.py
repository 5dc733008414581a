"""What networks take of memory, estimated."""

from __future__ import annotations

_WEIGHT_BYTES = 4 * 8
"""Of each weight: itself, its gradient, two moments, the best and the last good values."""
_COUNT_BYTES = 96
"""Of each count of a patch: normalised, transposed, as a target, and what it takes to make these."""
_BLOCK_GB = 0.1
"""Logits and their gradients, block by block."""


def network_memory(
    n_weights: int, n_genes: int, counts_per_spot: float, *, width: int, n_arrays: int
) -> tuple[float, float]:
    """Estimate the memory of a network, and that of each spot that is worked on, both in GB.

    Parameters
    ----------
    n_weights
        Number of weights.
    n_genes
        Number of genes.
    counts_per_spot
        Non-zero counts of a spot.
    width
        Numbers that a spot has in hidden layers, values and gradients together.
    n_arrays
        Arrays of the result: a patch has them whole before they are stored.
    """
    per_spot = 4 * width + _COUNT_BYTES * counts_per_spot + 4 * n_arrays * n_genes
    return n_weights * _WEIGHT_BYTES / 1e9 + _BLOCK_GB, per_spot / 1e9
