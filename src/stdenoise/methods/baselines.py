"""Plain baselines: what a denoiser has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic.dataclasses import dataclass as checked
from tqdm import tqdm

from stdenoise._base.config import STRICT, Count, NonNegative
from stdenoise._base.random import torch_generator
from stdenoise.methods._base import Method, MethodInfo
from stdenoise.spatial.graph import transpose_csr
from stdenoise.spatial.results import Block, Factors
from stdenoise.stats.lowrank import principal_components
from stdenoise.train.patches import Patches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from stdenoise.spatial.spots import Spots
    from stdenoise.train.run import Run


# Updates between two looks at the deviance.
_CHECK_EVERY = 10


@dataclass(frozen=True)
class NoConfig:
    """A method without hyperparameters."""


@checked(frozen=True, config=STRICT)
class NeighborMeanConfig:
    """Hyperparameters of the neighbour mean.

    Parameters
    ----------
    n_hops
        Number of passes; after `n_hops` passes a spot has heard from all spots within that many edges.
    """

    n_hops: Count = 1


@checked(frozen=True, config=STRICT)
class PCAReconstructionConfig:
    """Hyperparameters of the PCA reconstruction.

    Parameters
    ----------
    n_components
        Number of components; fewer where there are fewer spots or genes.
    """

    n_components: Count = 20


@checked(frozen=True, config=STRICT)
class PoissonFactorizationConfig:
    """Hyperparameters of the Poisson factorisation.

    Parameters
    ----------
    rank
        Number of factors.
    n_iterations
        Number of updates, at most.
    tol
        Stop when the deviance per entry has changed by less than this share of itself in ten updates.
    """

    rank: Count = 15
    n_iterations: Count = 500
    tol: NonNegative = 1e-4


def _info(name: str, summary: str, *, scale: str = "counts", latent: bool = False, **others: Any) -> MethodInfo:
    facts = {"needs": (), "size": "memory grows with spots x genes of the output", **others}
    writes = ("mean", "latent") if latent else ("mean",)
    return MethodInfo(
        name=name, summary=summary, scale=scale, writes=writes, reference="baseline", licence="none needed", **facts
    )


class Raw(Method):
    """The counts as they are: no denoising.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.Raw()
    Raw()
    """

    info: ClassVar[MethodInfo] = _info("raw", "baseline: the counts as they are")
    config_type = NoConfig
    config: NoConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Return the counts."""
        return Block(mean=spots.counts.to_dense(), scale="counts")


class GeneMean(Method):
    """The same profile for every spot, scaled to its depth: no structure at all.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.GeneMean()
    GeneMean()
    """

    info: ClassVar[MethodInfo] = _info("gene_mean", "baseline: each gene's mean, scaled to the depth of the spot")
    config_type = NoConfig
    config: NoConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Return size factor times gene mean, the most likely means of a Poisson model without structure."""
        depth = spots.depth
        return Block(mean=Factors(depth[:, None], (_gene_sum(spots) / depth.sum())[None]), scale="counts")


class NeighborMean(Method):
    """Pool the counts of a spot with those of its neighbours, once or several times.

    One pass replaces every spot by the mean of itself and its neighbours; passes are repeated `n_hops` times, on counts and
    on size factors, and the pooled profile is scaled to the depth of the spot.

    Parameters
    ----------
    **params
        Fields of `NeighborMeanConfig`.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.NeighborMean(n_hops=4)
    NeighborMean(n_hops=4)
    """

    info: ClassVar[MethodInfo] = _info(
        "neighbor_mean",
        "baseline: mean over graph neighbours, n_hops times",
        needs=("graph",),
        optional=("coordinates",),
        size="memory is what is allowed, from disk to disk with a .zarr as output",
        runs=frozenset({"patches"}),
    )
    config_type = NeighborMeanConfig
    config: NeighborMeanConfig

    @property
    def n_hops(self) -> int:
        """How far a spot hears."""
        return int(self.config.n_hops)

    def run(self, spots: Spots, run: Run) -> Iterator[tuple[Tensor, Block]]:
        """Yield the pooled profiles, patch by patch."""
        patches = Patches(spots, n_hops=self.n_hops, device=run.device, max_spots=run.max_spots)
        for patch in patches.cover():
            if patch.graph is None:
                raise ValueError("neighbor_mean needs a spatial graph.")
            depth = spots.depth[patch.spots.to(spots.depth.device)].to(patch.counts.device)
            # One more column carries the size factors, so that both are pooled alike.
            pooled = torch.cat([patch.counts.to_dense(), depth[:, None]], dim=1)
            for hop in reversed(range(self.n_hops)):
                graph = patch.graph.within(hop)
                weights = (1.0 / graph.crow.diff().to(pooled.dtype))[graph.row.long()]
                pooled = graph.matrix(weights) @ pooled
            total = pooled[:, -1:]
            mean = pooled[:, :-1].mul_(torch.where(total > 0, depth[: patch.n_core, None] / total, 0.0))
            yield patch.spots[: patch.n_core], Block(mean=mean, scale="counts")

    def working_memory(self, n_genes: int, counts_per_spot: float) -> tuple[float, float]:
        """Estimate the memory of each spot: its counts, dense, before and after a pass."""
        return 0.0, (3 * 4 * n_genes + 16 * counts_per_spot) / 1e9


class PCAReconstruction(Method):
    """Reconstruct log-normalised expression from its first principal components; negative values become 0.

    Parameters
    ----------
    **params
        Fields of `PCAReconstructionConfig`.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.PCAReconstruction(n_components=30)
    PCAReconstruction(n_components=30)
    """

    info: ClassVar[MethodInfo] = _info(
        "pca_reconstruction",
        "baseline: first principal components of log-normalised counts",
        scale="log1p",
        latent=True,
    )
    config_type = PCAReconstructionConfig
    config: PCAReconstructionConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Return the reconstruction."""
        n_components = min(self.config.n_components, *spots.lognorm.shape)
        pca = principal_components(spots.lognorm, n_components, generator=torch_generator(seed))
        latent = pca.scores.float()
        mean = pca.mean.float()
        reconstruction = Factors(latent, pca.components.float(), finish=lambda rows, _: rows.add_(mean).clamp_(min=0))
        return Block(mean=reconstruction, scale="log1p", latent=latent)


class PoissonFactorization(Method):
    """Poisson factorisation: non-negative spot factors times gene factors, scaled to the depth of the spot.

    Minimises the Kullback-Leibler divergence by multiplicative updates. Only the non-zero counts are visited, so that an
    update costs (number of non-zero counts) x rank. No graph is used.

    Parameters
    ----------
    **params
        Fields of `PoissonFactorizationConfig`.

    References
    ----------
    Lee and Seung, NIPS 2000 (the updates).

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.PoissonFactorization(rank=8).config.rank
    8
    """

    info: ClassVar[MethodInfo] = _info(
        "poisson_factorization", "baseline: non-negative factors of the counts, without a graph", latent=True
    )
    config_type = PoissonFactorizationConfig
    config: PoissonFactorizationConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Return the product of the factors."""
        counts, depth = spots.counts, spots.depth
        n_spots, n_genes = counts.shape
        crow, col, y = counts.crow_indices(), counts.col_indices(), counts.values()
        # The transpose holds the same entries in another order; positions as values tell which.
        position = torch.arange(len(y), dtype=torch.float64, device=y.device)
        transposed = transpose_csr(torch.sparse_csr_tensor(crow, col, position, counts.shape))
        order = transposed.values().long()
        row = torch.repeat_interleave(torch.arange(n_spots, device=y.device), crow.diff())
        constant = float(torch.special.xlogy(y.double(), y / depth[row]).sum() - y.sum(dtype=torch.float64))

        def at_counts() -> torch.Tensor:
            product: torch.Tensor = torch.sparse.sampled_addmm(pattern, w, h, beta=0.0).values()
            return product.clamp_(min=tiny)

        generator = torch_generator(seed)
        # Around the gene means, so that the first iterate has the right total.
        w = torch.rand(n_spots, self.config.rank, generator=generator).add_(0.5).to(y.device)
        h = torch.rand(self.config.rank, n_genes, generator=generator).add_(0.5).to(y.device)
        h *= _gene_sum(spots) / (depth.sum() * self.config.rank)
        tiny = torch.finfo(y.dtype).tiny
        pattern = torch.sparse_csr_tensor(crow, col, torch.zeros_like(y), counts.shape)
        deviance: list[float] = []
        with tqdm(total=self.config.n_iterations, desc=self.info.name, unit="update", disable=not progress) as bar:
            for iteration in range(self.config.n_iterations):
                product = at_counts()
                if iteration % _CHECK_EVERY == 0:
                    expected = ((depth @ w) @ h.sum(1)).double()
                    likely = (y * product.log()).sum(dtype=torch.float64)
                    deviance.append(2 * float(constant - likely + expected) / (n_spots * n_genes))
                    if len(deviance) > 1 and deviance[-2] - deviance[-1] < self.config.tol * deviance[-1]:
                        break
                # The size factor cancels in the numerators: y / (s w h) is weighted with s.
                ratio = torch.sparse_csr_tensor(crow, col, y / product, counts.shape)
                w = w * (ratio @ h.T) / (depth[:, None] * h.sum(1)).clamp(min=tiny)
                ratio = torch.sparse_csr_tensor(
                    transposed.crow_indices(), transposed.col_indices(), (y / at_counts())[order], (n_genes, n_spots)
                )
                h = h * (ratio @ w).T / (depth @ w)[:, None].clamp(min=tiny)
                bar.update()
        return Block(mean=Factors(w, h, depth), scale="counts", latent=w, history={"deviance": deviance})


def _gene_sum(spots: Spots) -> Tensor:
    ones = spots.counts.values().new_ones(spots.counts.shape[0], 1)
    return (transpose_csr(spots.counts) @ ones).squeeze(1)
