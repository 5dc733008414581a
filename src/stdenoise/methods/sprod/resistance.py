"""Log-determinant and effective resistances of a weighted graph on a tissue, exactly and without a spots x spots array."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_MIN_SLAB = 64


class Slabs:
    """A section cut into slabs so that edges join spots of one slab or of two that follow each other.

    With the spots in this order, `Q = I + scale L` is block tridiagonal, and block elimination gives its determinant and the
    wanted entries of its inverse with dense algebra on one slab at a time.

    Parameters
    ----------
    coordinates
        Shape `(n_spots, n_dims)`; the axis of the largest range is cut.
    row, col
        The two spots of each edge, both of shape `(n_edges,)`.
    """

    def __init__(self, coordinates: Tensor, row: Tensor, col: Tensor) -> None:
        n = len(coordinates)
        device = coordinates.device
        axis = (coordinates.amax(0) - coordinates.amin(0)).argmax()
        rank = torch.empty(n, dtype=torch.int64, device=device)
        rank[torch.argsort(coordinates[:, axis], stable=True)] = torch.arange(n, device=device)
        first, second = torch.minimum(rank[row], rank[col]), torch.maximum(rank[row], rank[col])
        self.ends = _ends(n, first.cpu().numpy(), second.cpu().numpy())
        self.rank, self.n_edges = rank, len(row)
        # Edges of each spot, in the order of the spots: sums over segments, without atomics.
        touched, edge = torch.cat([first, second]).sort(stable=True)
        self._crow = _pointers(touched, n)
        self._edge = edge % max(len(row), 1)

        ends = torch.tensor(self.ends, device=device)
        order = torch.argsort(first, stable=True)
        cuts = torch.searchsorted(first[order], ends).tolist()
        self.inside: list[tuple[Tensor, Tensor, Tensor]] = []
        self.across: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        start = begin = 0
        for end, cut, width in zip(self.ends, cuts, [*self.widths[1:], 0], strict=True):
            edges = order[begin:cut]
            stays = second[edges] < end
            near, far = edges[stays], edges[~stays]
            self.inside.append((near, first[near] - start, second[near] - start))
            # Rows of the block below the diagonal are spots of the next slab.
            far = far[torch.argsort(second[far], stable=True)]
            below = second[far] - end
            self.across.append((far, _pointers(below, width), first[far] - start, below))
            start, begin = end, cut

    @property
    def widths(self) -> list[int]:
        """Number of spots of each slab."""
        return [end - start for start, end in zip([0, *self.ends], self.ends, strict=False)]

    def solve(self, weights: Tensor, *, scale: float) -> tuple[float, Tensor, Tensor]:
        """Log-determinant of `Q`, and the entries of its inverse on the diagonal and on the edges."""
        widths = self.widths
        degree = torch.segment_reduce(weights[self._edge], "sum", offsets=self._crow)
        # Downwards: inverses of the Schur complements.
        log_det, inverses, below = 0.0, [], []
        correction: Tensor | None = None
        for k, width in enumerate(widths):
            edges, a, b = self.inside[k]
            block = weights.new_zeros(width, width)
            block[a, b] = -scale * weights[edges]
            block += block.t().clone()
            start = self.ends[k] - width
            block.diagonal().add_(1 + scale * degree[start : self.ends[k]])
            if correction is not None:
                block -= correction
            factor = torch.linalg.cholesky(block)
            log_det += 2 * float(factor.diagonal().log().sum())
            inverses.append(torch.cholesky_inverse(factor))
            if k + 1 < len(widths):
                far, crow, left, _ = self.across[k]
                lower = torch.sparse_csr_tensor(crow, left, -scale * weights[far], size=(widths[k + 1], width))
                below.append(lower)
                correction = lower @ (lower @ inverses[k]).t().contiguous()
        # Upwards: blocks of the inverse, of which only the wanted entries are kept.
        diagonal, on_edges = weights.new_empty(len(self.rank)), weights.new_empty(self.n_edges)
        corner = inverses[-1]
        for k in reversed(range(len(widths))):
            if k + 1 < len(widths):
                reach = below[k] @ inverses[k]
                side = -(corner @ reach)
                far, _, left, lower_row = self.across[k]
                on_edges[far] = side[lower_row, left]
                corner = torch.addmm(inverses[k], reach.t(), side, alpha=-1)
            edges, a, b = self.inside[k]
            on_edges[edges] = corner[a, b]
            diagonal[self.ends[k] - widths[k] : self.ends[k]] = corner.diagonal()
        return log_det, diagonal[self.rank], on_edges


def _pointers(rows: Tensor, n: int) -> Tensor:
    """Row pointers of CSR entries sorted by row."""
    return torch.searchsorted(rows.contiguous(), torch.arange(n + 1, device=rows.device))


def _ends(n: int, first: np.ndarray, second: np.ndarray) -> list[int]:
    """Ends of the slabs: each takes in all that the one before reaches, and some more where that is little."""
    reach = np.arange(n)
    np.maximum.at(reach, first, second)
    reach = np.maximum.accumulate(reach) + 1
    ends = [min(_MIN_SLAB, n)]
    while ends[-1] < n:
        ends.append(min(max(int(reach[ends[-1] - 1]), ends[-1] + _MIN_SLAB), n))
    return ends
