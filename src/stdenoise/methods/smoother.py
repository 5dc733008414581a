"""Smoother: a Gaussian random field over the tissue as a prior of every gene."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy import sparse
from tqdm import tqdm

from stdenoise._base.config import STRICT, Count, NonNegative, NonNegativeInt, Positive, Switch
from stdenoise._base.random import torch_generator
from stdenoise.methods._base import Method, MethodInfo
from stdenoise.spatial.graph import to_csr_tensor, transpose_csr
from stdenoise.spatial.neighbors import neighborhoods
from stdenoise.spatial.results import Block
from stdenoise.stats.lowrank import principal_components
from stdenoise.stats.solve import conjugate_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from stdenoise.spatial.spots import Spots

logger = logging.getLogger("stdenoise")

# Far below the single precision of the result.
_TOL = 1e-7
# Width of the Gaussian that turns image distances, relative to the largest coordinate, into weights.
_BANDWIDTH = 0.1
# Training of the published code.
_LR, _N_EPOCHS, _LEAST_DECREASE, _MOST_INCREASES = 1e-3, 1000, 1e-5, 10
_BLOCK_ENTRIES = 2**24


@dataclass(frozen=True, config=STRICT)
class SmootherConfig:
    """Hyperparameters of Smoother; code and documentation below are those of the original.

    Parameters
    ----------
    k
        Nearest neighbours; only mutual ones are joined (code: 6).
    prior
        Precision of the field: `"icar"`, `"car"`, `"sar"` or `"isar"` (documentation: icar).
    rho
        Autocorrelation, the weight of the neighbours in the prior (documentation: .99 for tissue with clear anatomy, .9 for
        tumours; code: 1). `"car"` and `"sar"` do not divide by the number of neighbours and want values well below
        `1 / k`.
    strength
        Weight of the prior (code: 1).
    center
        Smooth the deviations from each gene's mean in the library. Otherwise a `rho` below 1 shrinks levels towards 0, as in the
        published code.
    scale_by
        Weight the edges: `"expression"` by the cosine similarity of expression, negative ones as 0; `"features"` by a
        Gaussian of the distance of image features; `None` for weights of 1.
    n_components
        Principal components of the z-scored values that these weights compare (code: 10); 0 for the values as they are.
    compat
        `"exact"` solves for the minimiser. `"reference"` imitates the training of the published code, which stops short
        of it.
    """

    k: Count = 6
    prior: Literal["icar", "car", "sar", "isar"] = "icar"
    rho: Annotated[Positive, Field(le=1)] = 0.99
    strength: NonNegative = 1.0
    center: Switch = True
    scale_by: Literal["expression", "features"] | None = None
    n_components: NonNegativeInt = 10
    compat: Literal["exact", "reference"] = "exact"


class Smoother(Method):
    """Gaussian random field: the log-normalised values nearest to the data among those that vary smoothly over the tissue.

    Parameters
    ----------
    **params
        Fields of `SmootherConfig`.

    References
    ----------
    Su, Reynier, Fu et al., Genome Biology 24:291, 2023; the published code is `JiayuSuPKU/Smoother` on GitHub.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.Smoother(rho=0.9).label
    'smoother(rho=0.9)'
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="smoother",
        summary="Gaussian random field over nearest neighbours, solved exactly",
        needs=("coordinates",),
        scale="log1p",
        writes=("mean",),
        size="time grows with edges x genes, memory with spots x genes of the output",
        reference="Smoother, Genome Biology 2023",
        licence="BSD-3-Clause",
        optional=("features",),
    )
    config_type = SmootherConfig
    config: SmootherConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Return the minimiser of the distance to the data plus the weighted roughness."""
        config = self.config
        weights = edge_weights(spots, config, generator=torch_generator(seed))
        prior = config.strength * precision(weights, config.prior, config.rho)

        values = spots.lognorm.to_dense()
        means = _library_means(spots, values) if config.center else None
        # An empty spot is no observation of zeros: the prior alone decides there.
        seen = spots.nonempty.to(values.dtype)[:, None]
        if means is not None:
            values -= means[0][means[1]]
            values *= seen
        history: dict[str, list[float]] = {}
        if config.compat == "reference":
            matrix = to_csr_tensor(prior, dtype=values.dtype, device=values.device)
            values, history["loss"] = _train(matrix, values, seen, progress=progress)
        else:
            system = sparse.csr_matrix(sparse.diags(spots.nonempty.cpu().numpy().astype(np.float64)) + prior)
            matrix = to_csr_tensor(system, dtype=torch.float64, device=values.device)
            try:
                values = conjugate_gradients(matrix, values, tol=_TOL)
            except ValueError as error:
                raise ValueError(
                    f"smoother has no minimum with prior={config.prior!r}, rho={config.rho:g}: the prior is not positive "
                    f"definite. Lower rho, for 'car' below {1 / config.k:.2g}."
                ) from error
        if means is not None:
            values += means[0][means[1]]
        # Only sar and isar can undershoot, beyond rounding; the scale has no negative values.
        return Block(mean=values.clamp_(min=0), scale="log1p", history=history)


def edge_weights(spots: Spots, config: SmootherConfig, *, generator: torch.Generator) -> sparse.csr_matrix:
    """Symmetric weights of the mutual nearest neighbours; a spot without any gets a loop of weight 1."""
    graph, _ = neighborhoods(spots.coordinates, spots.libraries, k=config.k)
    directed = sparse.csr_matrix(graph.to_scipy(), dtype=np.float64)
    weights = sparse.csr_matrix(directed.multiply(directed.T))
    if config.scale_by is not None:
        n_before = weights.nnz // 2
        pairs = weights.tocoo()
        row, col = (torch.from_numpy(part).long().to(spots.coordinates.device) for part in (pairs.row, pairs.col))
        similarity = _similarity(spots, config, row, col, generator=generator)
        weights = sparse.csr_matrix((similarity.cpu().numpy(), (pairs.row, pairs.col)), shape=pairs.shape)
        weights.eliminate_zeros()
        logger.info("smoother: %d of %d edges survive the scaling by %s", weights.nnz // 2, n_before, config.scale_by)
    alone = np.diff(weights.indptr) == 0
    if alone.any():
        logger.info("smoother: %d of %d spots have no neighbour", alone.sum(), len(alone))
    return sparse.csr_matrix(weights + sparse.diags(alone.astype(np.float64)))


def precision(weights: sparse.csr_matrix, prior: str, rho: float) -> sparse.csr_matrix:
    """Precision matrix of the field, up to its scale."""
    degree = np.asarray(weights.sum(axis=1)).ravel()
    if prior == "icar":
        return sparse.csr_matrix(sparse.diags(degree) - rho * weights)
    if prior == "isar":
        weights = sparse.diags(1 / degree) @ weights
    factor = sparse.identity(len(degree)) - rho * weights
    return sparse.csr_matrix(factor if prior == "car" else factor.T @ factor)


def _similarity(
    spots: Spots, config: SmootherConfig, row: Tensor, col: Tensor, *, generator: torch.Generator
) -> Tensor:
    """Similarity of the two ends of each edge, between 0 and 1."""
    if config.scale_by == "expression":
        values = _components(spots.lognorm, config.n_components, generator)
        norm = values.norm(dim=1, keepdim=True)
        values = values / torch.where(norm > 0, norm, 1.0)
    else:
        if not spots.has("features"):
            raise ValueError("scale_by='features' needs image features; name their key with features_key=.")
        values = _components(spots.features, config.n_components, generator)
        largest = values.abs().max()
        values = values / torch.where(largest > 0, largest, 1.0)
    out = torch.empty(len(row), dtype=torch.float64, device=row.device)
    width = max(1, _BLOCK_ENTRIES // values.shape[1])
    for start in range(0, len(row), width):
        edges = slice(start, start + width)
        left, right = values[row[edges]], values[col[edges]]
        if config.scale_by == "expression":
            out[edges] = (left * right).sum(1).clamp_(min=0)
        else:
            out[edges] = torch.exp((left - right).square().sum(1) / (-2 * _BANDWIDTH**2))
    return out


def _components(values: Tensor, n_components: int, generator: torch.Generator) -> Tensor:
    """Principal components of the z-scored columns, or with 0 components the values, dense and in double precision."""
    if n_components == 0:
        return values.to_dense().double()
    values = (values.to_sparse_csr() if values.layout == torch.strided else values).double()
    n = values.shape[0]
    by_column = transpose_csr(values)
    squared = torch.sparse_csr_tensor(
        by_column.crow_indices(), by_column.col_indices(), by_column.values().square(), by_column.shape
    )
    ones = values.values().new_ones(n, 1)
    sums, squares = ((matrix @ ones).squeeze(1) for matrix in (by_column, squared))
    variance = (squares - sums.square() / n) / max(n - 1, 1)
    # Constant columns drop out, up to rounding.
    scale = torch.where(variance > 1e-12 * squares / n, variance, torch.inf).rsqrt()
    crow, col = values.crow_indices(), values.col_indices()
    scored = torch.sparse_csr_tensor(crow, col, values.values() * scale[col.long()], values.shape)
    return principal_components(scored, min(n_components, *values.shape), generator=generator).scores


def _library_means(spots: Spots, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each gene over the spots with counts of each library, and the library of each spot."""
    n = len(values)
    codes = np.zeros(n, dtype=np.int64) if spots.libraries is None else spots.libraries.cpu().numpy()
    codes = np.unique(codes, return_inverse=True)[1]
    seen = spots.nonempty.cpu().numpy().astype(np.float64)
    share = seen / np.maximum(np.bincount(codes, seen), 1)[codes]
    average = sparse.csr_matrix((share, (codes, np.arange(n))))
    means = to_csr_tensor(average, dtype=values.dtype, device=values.device) @ values
    return means, torch.from_numpy(codes).to(values.device)


def _train(prior: Tensor, values: Tensor, seen: Tensor, *, progress: bool) -> tuple[Tensor, list[float]]:
    """Imitate the published training: Adam from the data, with a small step, few epochs and an early stop."""
    estimate = torch.nn.Parameter(values + (1 - seen) * (seen * values).sum(0) / seen.sum())
    optimizer = torch.optim.Adam([estimate], lr=_LR)
    losses: list[float] = []
    n_increases = 0
    with torch.no_grad(), tqdm(total=_N_EPOCHS, desc="smoother", unit="epoch", disable=not progress) as bar:
        for _ in range(_N_EPOCHS):
            gap = seen * (estimate - values)
            gradient = prior @ estimate
            losses.append(float((gap.square().sum() + (estimate * gradient).sum()) / values.numel()))
            decrease = losses[-2] - losses[-1] if len(losses) > 1 else np.inf
            n_increases += decrease < 0
            if 0 <= decrease < _LEAST_DECREASE or n_increases > _MOST_INCREASES:
                break
            estimate.grad = gradient.add_(gap).mul_(2 / values.numel())
            optimizer.step()
            bar.update()
    if not np.isfinite(losses[-1]):
        raise FloatingPointError(f"smoother: the loss is {losses[-1]}; lower rho or use compat='exact'.")
    return estimate.detach(), losses
