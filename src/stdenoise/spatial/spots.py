"""All that a method may see: counts, and the tissue around them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise.spatial.graph import SpatialGraph, to_csr_tensor
from stdenoise.spatial.normalize import depth_normalized, lognorm

logger = logging.getLogger("stdenoise")

SPATIAL = "spatial"
"""Name of the graph of neighbours in the tissue."""


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """What is known of the spots beside their counts; on one device.

    Parameters
    ----------
    graphs
        Graphs without self loops, by name; `"spatial"` joins neighbours in the tissue.
    arrays
        A row per spot: `"coordinates"`, double precision, shape `(n_spots, 2)` or `(n_spots, 3)`; `"features"` of the image, shape
        `(n_spots, n_features)`; `"libraries"`, position of each spot's library among the libraries, shape `(n_spots,)`. What a method does
        not need is not there.
    """

    graphs: Mapping[str, SpatialGraph] = field(default_factory=dict)
    arrays: Mapping[str, Tensor] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether there is `"graph"`, `"coordinates"`, `"features"` or `"libraries"`."""
        return SPATIAL in self.graphs if name == "graph" else name in self.arrays

    @property
    def graph(self) -> SpatialGraph:
        """The spatial graph."""
        if SPATIAL not in self.graphs:
            raise ValueError("there is no spatial graph.")
        return self.graphs[SPATIAL]

    @property
    def coordinates(self) -> Tensor:
        """Coordinates of the spots."""
        return self._array("coordinates")

    @property
    def features(self) -> Tensor:
        """Features of the image around each spot."""
        return self._array("features")

    @property
    def libraries(self) -> Tensor | None:
        """Library of each spot; `None` where all are of one."""
        return self.arrays.get("libraries")

    def _array(self, name: str) -> Tensor:
        if name not in self.arrays:
            raise ValueError(f"there are no {name} of the spots.")
        return self.arrays[name]

    def permuted(self, order: np.ndarray) -> Tissue:
        """Return the same tissue with its spots in another order; row `i` of it is row `order[i]` of this one."""
        rows = torch.from_numpy(order)
        return Tissue(
            graphs={name: graph.permuted(order) for name, graph in self.graphs.items()},
            arrays={name: values[rows.to(values.device)] for name, values in self.arrays.items()},
        )

    def without_neighbors(self, n_spots: int) -> Tissue:
        """Return the same tissue with each spot on its own: no edge, and a library for each."""
        alone = sparse.csr_matrix((n_spots, n_spots))
        graphs = {name: SpatialGraph.from_scipy(alone, device=graph.col.device) for name, graph in self.graphs.items()}
        device = next((t.device for t in (*self.arrays.values(), *(g.col for g in graphs.values()))), None)
        return Tissue(graphs=graphs, arrays={**self.arrays, "libraries": torch.arange(n_spots, device=device)})

    def with_counts(
        self, counts: sparse.csr_matrix, genes: Sequence[str], *, positions: np.ndarray | None, device: torch.device
    ) -> Spots:
        """Return what methods see, with checked counts moved to the device.

        Parameters
        ----------
        counts
            Raw counts of all genes, shape `(n_spots, n_all_genes)`; not changed. Size factors are those of all genes.
        genes
            Names of all genes.
        positions
            Columns to model; `None` for all.
        device
            Where the tissue is.
        """
        total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        if positions is not None:
            counts = counts[:, positions]
            genes = [genes[position] for position in positions]
        if not counts.has_canonical_format or not counts.data.all():
            # A stored zero would be taken for a positive count by the zero-inflated likelihoods.
            counts = counts.copy()
            counts.sum_duplicates()
            counts.eliminate_zeros()
        return self.with_totals(to_csr_tensor(counts, dtype=torch.float32, device=device), total, tuple(genes))

    def with_totals(self, counts: Tensor, total: np.ndarray, genes: tuple[str, ...]) -> Spots:
        """Return what methods see, with counts that are where they belong.

        Parameters
        ----------
        counts
            Raw counts of the modelled genes, CSR, shape `(n_spots, n_genes)`.
        total
            Counts per spot over all genes, double precision, shape `(n_spots,)`.
        genes
            Names of the modelled genes.
        """
        nonempty = total > 0
        if not nonempty.any():
            raise ValueError(f"all {len(total)} spots are empty: there is nothing to model.")
        if not nonempty.all():
            logger.info("%d of %d spots are empty: kept, but not scored in training", (~nonempty).sum(), len(nonempty))
        median = float(np.median(total[nonempty]))
        size_factors = np.where(nonempty, total / median, 1.0)
        return Spots(
            counts=counts,
            size_factors=torch.tensor(size_factors, dtype=torch.float32, device=counts.device),
            median_total=median,
            nonempty=torch.tensor(nonempty, device=counts.device),
            genes=genes,
            graphs=self.graphs,
            arrays=self.arrays,
        )


@dataclass(frozen=True, kw_only=True)
class Spots(Tissue):
    """All that a method may see.

    Parameters
    ----------
    counts
        Raw counts, CSR, shape `(n_spots, n_genes)`; where they do not fit into memory, their parts are mapped from files.
    size_factors
        Total count over all genes of the object divided by its median over non-empty spots, shape `(n_spots,)`; 1 for an
        empty spot.
    median_total
        That median.
    nonempty
        Whether a spot has any count, shape `(n_spots,)`.
    genes
        Gene names, in the order of the columns.
    """

    counts: Tensor
    size_factors: Tensor
    median_total: float
    nonempty: Tensor
    genes: tuple[str, ...]

    def at_depth(self, median_total: float) -> Spots:
        """Express the depth of the spots in units of other ones, of which a size factor of 1 has this total; an empty spot keeps 1."""
        in_units = self.size_factors * (self.median_total / median_total)
        return replace(
            self,
            size_factors=torch.where(self.nonempty, in_units, self.size_factors),
            median_total=median_total,
        )

    @cached_property
    def depth(self) -> Tensor:
        """Size factors, 0 for an empty spot, which is expected to stay empty."""
        return self.size_factors * self.nonempty

    @cached_property
    def depth_normalized(self) -> Tensor:
        """Counts scaled to 10 000 per spot over these genes; CSR of the same pattern, double precision."""
        return depth_normalized(self.counts)

    @cached_property
    def lognorm(self) -> Tensor:
        """`log1p` of counts scaled to 10 000 per spot over these genes; CSR of the same pattern."""
        return lognorm(self.counts)
