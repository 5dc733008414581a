"""Smoothing of values over a weighted graph."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise.methods.sprod.resistance import Slabs
from stdenoise.spatial.graph import to_csr_tensor
from stdenoise.stats.solve import conjugate_gradients


def smooth(
    values: Tensor,
    coordinates: Tensor,
    row: Tensor,
    col: Tensor,
    weights: Tensor,
    *,
    strength: float,
    edges_only: bool,
    tol: float,
) -> Tensor:
    """Return `W values`, where `W` is the inverse of `I + strength L`, or its part on the edges with rows scaled to one."""
    n = len(values)
    if not edges_only:
        adjacency = _adjacency(row, col, weights, n)
        degree = np.asarray(adjacency.sum(axis=1)).ravel()
        system = sparse.csr_matrix(sparse.diags(1 + strength * degree) - strength * adjacency)
        return conjugate_gradients(to_csr_tensor(system, dtype=torch.float64, device=values.device), values, tol=tol)
    _, diagonal, on_edges = Slabs(coordinates, row, col).solve(weights, scale=strength)
    kept = sparse.csr_matrix(_adjacency(row, col, on_edges, n) + sparse.diags(diagonal.cpu().numpy()))
    kept = sparse.diags(1 / np.asarray(kept.sum(axis=1)).ravel()) @ kept
    return to_csr_tensor(sparse.csr_matrix(kept), dtype=values.dtype, device=values.device) @ values


def weighted_graph(row: Tensor, col: Tensor, weights: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row pointers, sources and weights of the edges in both directions."""
    matrix = to_csr_tensor(_adjacency(row, col, weights, n), dtype=torch.float32, device=weights.device)
    return matrix.crow_indices(), matrix.col_indices(), matrix.values()


def _adjacency(row: Tensor, col: Tensor, weights: Tensor, n: int) -> sparse.csr_matrix:
    half = sparse.coo_matrix((weights.cpu().numpy(), (row.cpu().numpy(), col.cpu().numpy())), shape=(n, n))
    whole = sparse.csr_matrix(half + half.T)
    whole.sort_indices()
    return whole
