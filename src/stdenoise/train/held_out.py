"""Molecules that a training does not see, to tell when it has learnt enough."""

from __future__ import annotations

import torch
from torch import Tensor

from stdenoise.spatial.graph import select_rows, with_values


class HeldOut:
    """A share of the molecules of some spots.

    Parameters
    ----------
    counts
        Counts of all spots, CSR, shape `(n_spots, n_genes)`; not changed.
    spots
        Positions of the spots that molecules are taken from, ascending.
    fraction
        Share of their molecules.
    generator
        Source of randomness.
    """

    def __init__(self, counts: Tensor, spots: Tensor, fraction: float, generator: torch.Generator) -> None:
        whole = select_rows(counts, spots.to(counts.device))
        values = whole.values().cpu()
        taken = torch.binomial(values, torch.full_like(values, fraction), generator=generator)
        self.fraction = fraction
        # Entry by entry as in the counts, zeros included.
        self._taken = with_values(whole, taken.to(whole.device))
        self._place = torch.full((counts.shape[0],), -1, device=counts.device)
        self._place[spots.to(counts.device)] = torch.arange(len(spots), device=counts.device)

    def of(self, positions: Tensor) -> Tensor:
        """Held-out counts of these spots, CSR; all of them must be spots that molecules were taken from."""
        return _without_zeros(select_rows(self._taken, self._place[positions.to(self._place.device)]))

    def thin_counts(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Take the held-out molecules from the counts of these spots."""
        place = self._place[positions.to(self._place.device)]
        touched = place >= 0
        if not touched.any():
            return rows
        values = rows.values().clone()
        values[touched.repeat_interleave(rows.crow_indices().diff())] -= select_rows(
            self._taken, place[touched]
        ).values()
        return _without_zeros(with_values(rows, values))

    def thin_size_factors(self, size_factors: Tensor, positions: Tensor) -> Tensor:
        """Lower the depth of these spots by the share that is held out."""
        touched = self._place[positions.to(self._place.device)] >= 0
        return torch.where(touched.to(size_factors.device), size_factors * (1 - self.fraction), size_factors)


def _without_zeros(matrix: Tensor) -> Tensor:
    kept = matrix.values() != 0
    crow = torch.zeros_like(matrix.crow_indices())
    row = torch.repeat_interleave(matrix.crow_indices().diff())[kept]
    crow[1:] = torch.bincount(row, minlength=matrix.shape[0]).cumsum(0)
    return torch.sparse_csr_tensor(crow, matrix.col_indices()[kept], matrix.values()[kept], size=matrix.shape)
