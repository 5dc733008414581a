"""Plain baselines: what a denoiser has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from tqdm import tqdm

from stdenoise._base.checks import check_number
from stdenoise._base.random import torch_generator
from stdenoise.methods._base import Method, MethodInfo
from stdenoise.spatial.graph import transpose_csr
from stdenoise.spatial.results import Denoised
from stdenoise.stats.lowrank import principal_components

if TYPE_CHECKING:
    from torch import Tensor

    from stdenoise.spatial.spots import Spots


# Updates between two looks at the deviance.
_CHECK_EVERY = 10


@dataclass(frozen=True)
class NoConfig:
    """A method without hyperparameters."""


@dataclass(frozen=True)
class NeighborMeanConfig:
    """Hyperparameters of the neighbour mean.

    Parameters
    ----------
    n_hops
        Number of passes; after `n_hops` passes a spot has heard from all spots within that many edges.
    """

    n_hops: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_number("n_hops", self.n_hops, minimum=1, integer=True)


@dataclass(frozen=True)
class PCAReconstructionConfig:
    """Hyperparameters of the PCA reconstruction.

    Parameters
    ----------
    n_components
        Number of components; fewer where there are fewer spots or genes.
    """

    n_components: int = 20

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_number("n_components", self.n_components, minimum=1, integer=True)


@dataclass(frozen=True)
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

    rank: int = 15
    n_iterations: int = 500
    tol: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_number("rank", self.rank, minimum=1, integer=True)
        check_number("n_iterations", self.n_iterations, minimum=1, integer=True)
        check_number("tol", self.tol, minimum=0)


def _info(
    name: str, summary: str, *, needs: tuple[str, ...] = (), scale: str = "counts", latent: bool = False
) -> MethodInfo:
    return MethodInfo(
        name=name,
        summary=summary,
        needs=needs,
        scale=scale,
        writes=("mean", "latent") if latent else ("mean",),
        size="memory grows with spots x genes of the output",
        reference="baseline",
        licence="none needed",
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

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Denoised:
        """Return the counts."""
        return Denoised(mean=spots.counts.to_dense(), scale="counts")


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

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Denoised:
        """Return size factor times gene mean, the most likely means of a Poisson model without structure."""
        depth = _depth(spots)
        return Denoised(mean=depth[:, None] * (_gene_sum(spots) / depth.sum()), scale="counts")


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
        "neighbor_mean", "baseline: mean over graph neighbours, n_hops times", needs=("graph",)
    )
    config_type = NeighborMeanConfig
    config: NeighborMeanConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Denoised:
        """Return the pooled profiles."""
        if spots.graph is None:
            raise ValueError("neighbor_mean needs a spatial graph.")
        graph = spots.graph.with_self_loops()
        depth = _depth(spots)
        # One more column carries the size factors, so that both are pooled alike.
        pooled = torch.cat([spots.counts.to_dense(), depth[:, None]], dim=1)
        weights = (1.0 / graph.crow.diff().to(pooled.dtype))[graph.row.long()]
        walk = graph.matrix(weights)
        for _ in range(self.config.n_hops):
            pooled = walk @ pooled
        total = pooled[:, -1:]
        mean = pooled[:, :-1].mul_(torch.where(total > 0, depth[:, None] / total, 0.0))
        return Denoised(mean=mean, scale="counts")


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

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Denoised:
        """Return the reconstruction."""
        n_components = min(self.config.n_components, *spots.lognorm.shape)
        pca = principal_components(spots.lognorm, n_components, generator=torch_generator(seed))
        latent = pca.scores.float()
        mean = (latent @ pca.components.float()).add_(pca.mean.float()).clamp_(min=0)
        return Denoised(mean=mean, scale="log1p", latent=latent)


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

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Denoised:
        """Return the product of the factors."""
        counts, depth = spots.counts, _depth(spots)
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
        return Denoised(mean=(depth[:, None] * w) @ h, scale="counts", latent=w, history={"deviance": deviance})


def _depth(spots: Spots) -> Tensor:
    """Size factors, 0 for an empty spot, which is expected to stay empty."""
    return spots.size_factors * spots.nonempty


def _gene_sum(spots: Spots) -> Tensor:
    ones = spots.counts.values().new_ones(spots.counts.shape[0], 1)
    return (transpose_csr(spots.counts) @ ones).squeeze(1)
