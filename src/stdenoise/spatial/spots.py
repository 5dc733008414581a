"""All that a method may see: counts, and what surrounds the spots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise.spatial.graph import SpatialGraph, to_csr_tensor
from stdenoise.spatial.normalize import log_normalize

logger = logging.getLogger("stdenoise")


@dataclass(frozen=True)
class Context:
    """What a method may know of the spots beside their counts; `None` where it was not asked for.

    Parameters
    ----------
    graph
        Spatial graph without self loops.
    coordinates
        Double precision, shape `(n_spots, 2)` or `(n_spots, 3)`.
    features
        Features of the image around each spot, shape `(n_spots, n_features)`.
    libraries
        Position of each spot's library among the libraries, shape `(n_spots,)`; `None` where all spots are of one.
    """

    graph: SpatialGraph | None = None
    coordinates: Tensor | None = None
    features: Tensor | None = None
    libraries: Tensor | None = None

    def permuted(self, order: np.ndarray) -> Context:
        """Return the context of the same spots in another order; row `i` of it is row `order[i]` of this one."""
        rows = torch.from_numpy(order)
        return Context(
            graph=None if self.graph is None else self.graph.permuted(order),
            **{
                name: None if (values := getattr(self, name)) is None else values[rows.to(values.device)]
                for name in ("coordinates", "features", "libraries")
            },
        )

    def without_neighbors(self, n_spots: int) -> Context:
        """Return the same context with each spot on its own: no edge, and a library for each."""
        device = next((t.device for t in (self.coordinates, self.libraries) if t is not None), torch.device("cpu"))
        graph = self.graph
        if graph is not None:
            device = graph.col.device
            graph = SpatialGraph.from_scipy(sparse.csr_matrix((n_spots, n_spots)), device=device)
        return replace(self, graph=graph, libraries=torch.arange(n_spots, device=device))


@dataclass(frozen=True)
class Spots:
    """All that a method may see; on one device.

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
    graph, coordinates, features, libraries
        As in `Context`: `None` where the method does not need it.
    """

    counts: Tensor
    size_factors: Tensor
    median_total: float
    nonempty: Tensor
    genes: tuple[str, ...]
    graph: SpatialGraph | None = None
    coordinates: Tensor | None = None
    features: Tensor | None = None
    libraries: Tensor | None = None

    def at_depth(self, median_total: float) -> Spots:
        """Express the depth of the spots in units of other ones, of which a size factor of 1 has this total; an empty spot keeps 1."""
        in_units = self.size_factors * (self.median_total / median_total)
        return replace(
            self,
            size_factors=torch.where(self.nonempty, in_units, self.size_factors),
            median_total=median_total,
        )

    @cached_property
    def lognorm(self) -> Tensor:
        """`log1p` of counts scaled to 10 000 per spot over these genes; CSR of the same pattern."""
        return log_normalize(self.counts)


def make_spots(
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    *,
    positions: np.ndarray | None,
    context: Context,
    device: torch.device,
) -> Spots:
    """Move checked counts to the device, with size factors over all genes and normalised values over the modelled ones.

    Parameters
    ----------
    counts
        Raw counts of all genes, shape `(n_spots, n_all_genes)`; not changed.
    genes
        Names of all genes.
    positions
        Columns to model; `None` for all.
    context
        What surrounds the spots, on the device.
    device
        Where the tensors go.
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
    tensor = to_csr_tensor(counts, dtype=torch.float32, device=device)
    return assemble_spots(tensor, total, tuple(genes), context)


def assemble_spots(counts: Tensor, total: np.ndarray, genes: tuple[str, ...], context: Context) -> Spots:
    """Put together what methods see.

    Parameters
    ----------
    counts
        Raw counts of the modelled genes, CSR, shape `(n_spots, n_genes)`, on the device.
    total
        Counts per spot over all genes, double precision, shape `(n_spots,)`.
    genes
        Names of the modelled genes.
    context
        What surrounds the spots, on the device.
    """
    nonempty = total > 0
    if not nonempty.any():
        raise ValueError(f"all {len(total)} spots are empty: there is nothing to model.")
    if not nonempty.all():
        logger.info("%d of %d spots are empty: kept, but not scored in training", (~nonempty).sum(), len(nonempty))
    median = float(np.median(total[nonempty]))
    size_factors = np.where(nonempty, total / median, 1.0)
    device = counts.device
    return Spots(
        counts=counts,
        size_factors=torch.tensor(size_factors, dtype=torch.float32, device=device),
        median_total=median,
        nonempty=torch.tensor(nonempty, device=device),
        genes=genes,
        **vars(context),
    )
