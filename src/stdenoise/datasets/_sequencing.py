"""Observed counts of simulated cells: capture, amplification and sequencing, after SymSim."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import ndtr, ndtri

# Lengths of 59 371 transcripts: quantiles of log10; the longest 1 % are set to the last one.
_LENGTH_SHARES = np.array([0, 0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 0.99])
_LENGTHS = np.log10([101, 103, 116, 451, 960, 2538, 6172, 10512])

_PREAMPLIFICATION_CYCLES = 16
_PCR_CYCLES = 10
_EFFICIENCY = 0.8
_LENGTH_BINS = 20
_BIAS_PER_BIN = 0.02
_RANDOM_BIAS = 0.01
_BASES_PER_FRAGMENT = 250.0

# So many molecules at a time keep the arrays of one block within a few megabytes.
_BLOCK_MOLECULES = 2**17


@dataclass(frozen=True)
class Protocol:
    """Parameters of a sequencing protocol.

    Parameters
    ----------
    umi
        Count molecules (unique molecular identifiers), or reads.
    capture, capture_sd
        Mean and standard deviation over cells of the share of molecules that is captured.
    depth, depth_sd
        Mean and standard deviation over cells of the number of reads.
    """

    umi: bool
    capture: float
    capture_sd: float
    depth: float
    depth_sd: float = 3e3


def draw_cells(n_cells: int, protocol: Protocol, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the capture rate, within (0.0005, 1), and the depth, above 200, of every cell."""
    capture = _truncated_normal(protocol.capture, protocol.capture_sd, 0.0005, 1.0, n_cells, rng)
    return capture, _truncated_normal(protocol.depth, protocol.depth_sd, 200.0, np.inf, n_cells, rng)


def draw_genes(n_genes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the length and the amplification rate of every gene; long genes are amplified less."""
    length = np.rint(10 ** np.interp(rng.random(n_genes), _LENGTH_SHARES, _LENGTHS))
    bins = np.argsort(np.argsort(length, kind="stable")) * _LENGTH_BINS // n_genes
    bias = _BIAS_PER_BIN * ((_LENGTH_BINS - 1) / 2 - bins)
    noise = np.clip(rng.normal(0, _RANDOM_BIAS, n_genes), -_RANDOM_BIAS, _RANDOM_BIAS)
    return length, _EFFICIENCY + bias + noise


def _truncated_normal(
    mean: float, sd: float, low: float, high: float, size: int, rng: np.random.Generator
) -> np.ndarray:
    lower, upper = ndtr((np.array([low, high]) - mean) / sd)
    drawn = mean + sd * ndtri(rng.uniform(lower, upper, size))
    return np.asarray(np.clip(drawn, low, high))


def capture_molecules(true: sparse.csr_matrix, capture: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Keep each molecule with the capture rate of its cell."""
    kept = rng.binomial(true.data, np.repeat(capture, np.diff(true.indptr)))
    captured = sparse.csr_matrix((kept, true.indices.copy(), true.indptr.copy()), shape=true.shape)
    captured.eliminate_zeros()
    return captured


def sequence(
    captured: sparse.csr_matrix,
    *,
    umi: bool,
    depth: np.ndarray,
    length: np.ndarray,
    rate: np.ndarray,
    rng: np.random.Generator,
) -> sparse.csr_matrix:
    """Amplify and sequence the captured molecules; a cell without any has an empty row.

    Parameters
    ----------
    captured
        Captured molecules, shape `(n_cells, n_genes)`, integers.
    umi
        Count molecules seen at least once, or reads.
    depth
        Reads of every cell.
    length, rate
        Length and amplification rate of every gene.
    rng
        Source of randomness.
    """
    observed = np.zeros(captured.nnz, dtype=np.int64)
    for cells in _blocks_of_cells(captured):
        entries = slice(captured.indptr[cells.start], captured.indptr[cells.stop])
        number, gene = captured.data[entries], captured.indices[entries]
        cell = np.repeat(np.arange(cells.stop - cells.start), np.diff(captured.indptr[cells.start : cells.stop + 1]))
        entry = np.repeat(np.arange(len(number)), number)
        copies = _preamplify(rate[gene][entry], rng)
        if umi:
            fragments = _amplify_fragments(
                rng.binomial(copies, np.where(length[gene] >= 1000, 0.7, 0.78)[entry]), _PCR_CYCLES - 1, rng
            )
            share = _sequenced_share(fragments, cell[entry], depth[cells])
            # Chance of at least one read, without drawing how many.
            with np.errstate(divide="ignore"):
                unseen = np.exp(np.where(fragments > 0, fragments * np.log1p(-share), 0.0))
            seen = rng.random(len(fragments)) >= unseen
            observed[entries] = np.bincount(entry[seen], minlength=len(number))
        else:
            copies = np.bincount(entry, weights=copies, minlength=len(number))
            fragments = _amplify_fragments(
                rng.poisson(copies * length[gene] / _BASES_PER_FRAGMENT), _PCR_CYCLES - 2, rng
            )
            observed[entries] = rng.binomial(fragments, _sequenced_share(fragments, cell, depth[cells]))
    counts = sparse.csr_matrix((observed, captured.indices.copy(), captured.indptr.copy()), shape=captured.shape)
    counts.eliminate_zeros()
    return counts


def _blocks_of_cells(captured: sparse.csr_matrix) -> Iterator[slice]:
    """Yield runs of cells that hold about `_BLOCK_MOLECULES` molecules."""
    molecules = np.asarray(captured.sum(axis=1)).ravel()
    block = np.cumsum(molecules) // _BLOCK_MOLECULES
    borders = [0, *(np.flatnonzero(np.diff(block)) + 1), captured.shape[0]]
    for start, stop in zip(borders, borders[1:], strict=False):
        yield slice(int(start), int(stop))


def _preamplify(rate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Copies of every molecule after pre-amplification at its rate."""
    copies = 1.0 + (rng.random(len(rate)) < rate)
    for _ in range(_PREAMPLIFICATION_CYCLES - 1):
        unchanged = np.floor(copies * (1 - rng.random(len(rate)) * rate) + rng.random(len(rate)))
        copies = 2 * copies - unchanged
    return copies.astype(np.int64)


def _amplify_fragments(fragments: np.ndarray, n_fixed: int, rng: np.random.Generator) -> np.ndarray:
    """Amplify in two random cycles, then `n_fixed` ones without scatter."""
    for _ in range(2):
        fragments = fragments + rng.binomial(fragments, _EFFICIENCY)
    return np.asarray(np.rint(fragments * (1 + _EFFICIENCY) ** n_fixed)).astype(np.int64)


def _sequenced_share(fragments: np.ndarray, cell: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Share of the fragments of its cell that is sequenced, per row of `fragments`."""
    total = np.bincount(cell, weights=fragments, minlength=len(depth))
    return np.asarray(np.minimum(1.0, depth / np.maximum(total, 1))[cell])
