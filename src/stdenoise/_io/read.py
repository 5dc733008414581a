"""The front door between AnnData and tensors, and what passes through it: `Spots` in, `Denoised` out.

Nothing else reads counts from an AnnData that is in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_counts, lookup, near_match
from stdenoise._io.expression import TARGET_SUM
from stdenoise.spatial.context import Context, read_context
from stdenoise.spatial.graph import SpatialGraph, row_sum, to_csr_tensor, with_values

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stdenoise")


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

    @cached_property
    def lognorm(self) -> Tensor:
        """`log1p` of counts scaled to 10 000 per spot over these genes; CSR of the same pattern."""
        return log_normalize(self.counts)


@dataclass(frozen=True)
class Denoised:
    """All that a method returns.

    Parameters
    ----------
    mean
        Denoised expression, shape `(n_spots, n_genes)`.
    scale
        Scale of the mean.
    dispersion, dropout
        Inverse dispersion and dropout probability, of the shape of the mean, where the model has them.
    latent
        Shape `(n_spots, n_latent)`.
    attention
        Row pointers, sources and weights of a CSR matrix of shape `(n_spots, n_spots)`.
    history
        Named values per epoch.
    """

    mean: Tensor
    scale: Literal["counts", "log1p"]
    dispersion: Tensor | None = None
    dropout: Tensor | None = None
    latent: Tensor | None = None
    attention: tuple[Tensor, Tensor, Tensor] | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)


def log_normalize(counts: Tensor) -> Tensor:
    """`log1p` of counts scaled to 10 000 per spot, CSR of the same pattern; computed in double precision."""
    values = counts.values().double()
    factor = TARGET_SUM / row_sum(with_values(counts, values))
    values = values * factor.repeat_interleave(counts.crow_indices().diff())
    return with_values(counts, values.log1p_().to(counts.dtype))


def collect(
    blocks: Iterable[tuple[Tensor, Denoised]],
    n_spots: int,
    history: Mapping[str, Sequence[float]],
    device: torch.device | None = None,
) -> Denoised:
    """Put blocks of spots together.

    Parameters
    ----------
    blocks
        Positions of some spots, and their results; together each spot once. The attention of a block has a row for each of its
        spots, and columns for all spots there are.
    n_spots
        Number of spots.
    history
        Of the result.
    device
        Where the result goes.
    """
    whole: dict[str, Tensor] = {}
    edges: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = []
    scale: Literal["counts", "log1p"] = "counts"
    for rows, block in blocks:
        scale = block.scale
        if block.attention is not None:
            edges.append((rows, block.attention))
        for name in ("mean", "dispersion", "dropout", "latent"):
            part: Tensor | None = getattr(block, name)
            if part is None:
                continue
            if len(rows) == n_spots and bool((rows.diff() == 1).all()):
                whole[name] = part if device is None else part.to(device)
                continue
            if name not in whole:
                whole[name] = torch.empty(n_spots, part.shape[1], dtype=part.dtype, device=device or part.device)
            target = whole[name]
            target[rows.to(target.device)] = part.to(target.device)
    return Denoised(scale=scale, attention=_join(edges, n_spots) if edges else None, history=history, **whole)


def _join(edges: Sequence[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]], n_spots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Put blocks of rows of a CSR matrix together, in order."""
    row = torch.cat([rows.repeat_interleave(crow.diff()) for rows, (crow, _, _) in edges])
    order = row.argsort(stable=True)
    crow = torch.zeros(n_spots + 1, dtype=torch.int64, device=row.device)
    crow[1:] = torch.bincount(row, minlength=n_spots).cumsum(0)
    col, weights = (torch.cat([block[i] for _, block in edges])[order] for i in (1, 2))
    return crow, col, weights


def select_genes(adata: AnnData, genes: str | Sequence[str] | None) -> np.ndarray | None:
    """Resolve a gene choice to column positions in `var` order; `None` stands for all genes."""
    if genes is None:
        return None
    if isinstance(genes, str):
        if genes != _keys.HIGHLY_VARIABLE:
            raise ValueError(
                f"genes={genes!r} is not valid; choose None (all genes), 'highly_variable' or a list of gene names."
            )
        chosen = lookup(
            adata.var, _keys.HIGHLY_VARIABLE, where="adata.var", advice="Run sc.pp.highly_variable_genes first."
        )
        if chosen.isna().any():
            raise ValueError(f"adata.var['highly_variable'] has {chosen.isna().sum()} missing values.")
        positions = np.flatnonzero(chosen.to_numpy(dtype=bool))
    else:
        if not isinstance(genes, Iterable):
            raise TypeError(f"genes must be None, 'highly_variable' or a list of gene names, not {genes!r}.")
        names = list(genes)
        unknown = [name for name in names if name not in adata.var_names]
        if unknown:
            hint = near_match(str(unknown[0]), adata.var_names)
            raise KeyError(f"{len(unknown)} of {len(names)} genes are not in adata.var_names: {unknown[:5]}.{hint}")
        if len(set(names)) < len(names):
            raise ValueError(f"genes lists {len(names) - len(set(names))} names twice.")
        positions = np.sort(adata.var_names.get_indexer(names))
    if len(positions) == 0:
        raise ValueError(f"genes={genes!r} selects no gene.")
    return positions


def read_counts(adata: AnnData, layer: str | None, *, allow_fractions: bool = False) -> sparse.csr_matrix:
    """Read and check the raw counts of all genes, as a CSR matrix that may share memory with the AnnData."""
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    matrix = adata.X if layer is None else lookup(adata.layers, layer, where="adata.layers")
    if matrix is None:
        raise ValueError(f"adata.X is None; pass layer=, one of {list(adata.layers)}.")
    if not sparse.issparse(matrix) and not isinstance(matrix, np.ndarray):
        raise TypeError(f"{where} must be a numpy array or a scipy sparse matrix, not {type(matrix).__name__}.")
    check_counts(
        matrix.data if sparse.issparse(matrix) else matrix[matrix != 0], where=where, allow_fractions=allow_fractions
    )
    return sparse.csr_matrix(matrix)


def read_spots(
    adata: AnnData,
    *,
    layer: str | None,
    positions: np.ndarray | None,
    graph_key: str | None,
    library_key: str | None,
    spatial_key: str | None = None,
    features_key: str | None = None,
    allow_fractions: bool,
    device: torch.device,
) -> Spots:
    """Open the front door: validate an AnnData and move what a method needs to the device.

    Parameters
    ----------
    adata
        Annotated data; not changed.
    layer
        Layer of raw counts; `None` for `X`.
    positions
        Columns to model, from `select_genes`.
    graph_key, spatial_key, features_key
        Keys of graph, coordinates and image features; `None` for methods without them.
    library_key
        Column of `obs` that no edge may cross.
    allow_fractions
        Accept fractional values.
    device
        Where the tensors go.
    """
    counts = read_counts(adata, layer, allow_fractions=allow_fractions)
    context = read_context(
        adata,
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
        device=device,
    )
    return make_spots(counts, tuple(map(str, adata.var_names)), positions=positions, context=context, device=device)


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
