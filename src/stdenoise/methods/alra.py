"""ALRA: low-rank approximation that keeps the zeros of genes that are not expressed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic.dataclasses import dataclass

from stdenoise._base.config import STRICT, AtLeastTwo, Count, Positive, Share, Switch
from stdenoise._base.random import torch_generator
from stdenoise.methods._base import Method, MethodInfo
from stdenoise.spatial.graph import select_rows, transpose_csr
from stdenoise.spatial.results import Block, Factors
from stdenoise.stats.lowrank import truncated_svd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from stdenoise.spatial.spots import Spots

logger = logging.getLogger("stdenoise")

# Power iterations for the spectrum that the rank is read from. More would make the gaps of the noise smaller, and the rank
# that stands out from them larger.
_ITERATIONS_CHOOSE = 2
# Entries per block of genes: 8 MB in double precision.
_BLOCK_ENTRIES = 2**20


@dataclass(frozen=True, config=STRICT)
class ALRAConfig:
    """Hyperparameters of ALRA; the defaults are those of the published code.

    Parameters
    ----------
    rank
        Rank of the approximation, at most the number of spots and of genes; `None` chooses it from the gaps between
        singular values.
    n_components
        Number of singular values to choose the rank from (code: 100); at most one less than there are spots or genes.
    noise_start
        First singular value that is taken for noise, counted from 1 (code: 80); `None` for four fifths of the singular
        values.
    threshold
        The rank is the last gap that exceeds the mean gap of the noise by this many standard deviations (code: 6).
    quantile
        Quantile of a gene's fitted values, between 0 and 1, whose magnitude is the limit for being expressed (code: .001).
    only_negative
        Take no limit where that quantile is not negative, as nothing then tells how large the error is (paper); the code
        takes its magnitude in any case.
    """

    rank: Count | None = None
    n_components: AtLeastTwo = 100
    noise_start: AtLeastTwo | None = None
    threshold: Positive = 6.0
    quantile: Share = 0.001
    only_negative: Switch = False

    def __post_init__(self) -> None:
        """Refuse values that do not go together."""
        if self.noise_start is not None and self.noise_start >= self.n_components:
            raise ValueError(f"noise_start={self.noise_start} must lie below n_components={self.n_components}.")


class ALRA(Method):
    """Approximate log-normalised expression by a matrix of low rank, and set back to zero what is no larger than its error.

    The approximation of a gene that a spot does not express scatters around 0. Its negative tail tells how far; positive
    values within that distance become 0 as well. The others are shifted and scaled to the mean and standard deviation of
    the observed non-zero values. No graph is used.

    Parameters
    ----------
    **params
        Fields of `ALRAConfig`.

    References
    ----------
    Linderman, Zhao, Roulis, Bielecki, Flavell, Nadler and Kluger, Nature Communications 2022.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=30)
    >>> st.tl.denoise(adata, st.methods.ALRA(rank=4))
    >>> adata.obsm["X_alra"].shape
    (100, 4)
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="alra",
        summary="low-rank approximation of log-normalised counts that keeps zeros",
        needs=(),
        scale="log1p",
        writes=("mean", "latent"),
        size="time: non-zero counts x rank; memory: spots x genes of the output, once",
        reference="Linderman et al., Nature Communications 2022",
        licence="MIT",
    )
    config_type = ALRAConfig
    config: ALRAConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Return the completed matrix, the scores of the spots and the singular values."""
        # Empty spots have no part in the quantiles; where all are empty, so is the result.
        lognorm = spots.lognorm
        n_spots, n_genes = lognorm.shape
        kept = torch.nonzero(lognorm @ lognorm.values().new_ones(n_genes)).squeeze(1)
        if len(kept) == 0:
            kept = torch.arange(n_spots, device=kept.device)
        observed = select_rows(lognorm, kept)

        generator = torch_generator(seed)
        spectrum: Tensor | None = None
        if self.config.rank is not None:
            rank = min(self.config.rank, *observed.shape)
            if rank < self.config.rank:
                logger.info(
                    "alra: rank %d instead of %d for %d spots x %d genes", rank, self.config.rank, *observed.shape
                )
        else:
            rank, spectrum = self._choose_rank(observed, generator)
        u, s, vt = truncated_svd(observed, rank, generator=generator)

        scores = torch.zeros(n_spots, rank, dtype=torch.float64, device=kept.device)
        scores[kept] = u * s
        error = _rounding(s, observed.shape)
        limit, scale, shift = self._statistics(observed, u * s, vt, error=error)

        def complete(fitted: Tensor, rows: Tensor) -> Tensor:
            """Cut, rescale, and fall back on what was observed."""
            expressed = (fitted > limit) & (fitted.abs() > error)
            completed = (fitted * scale).add_(shift).mul_(expressed).clamp_(min=0)
            return torch.where(completed == 0, select_rows(lognorm, rows).to_dense().double(), completed)

        singular_values = s if spectrum is None else spectrum
        return Block(
            mean=Factors(scores, vt, finish=complete),
            scale="log1p",
            latent=scores.float(),
            history={"singular_values": singular_values.cpu().tolist()},
        )

    def _choose_rank(self, observed: Tensor, generator: torch.Generator) -> tuple[int, Tensor | None]:
        """Return the last rank after which the singular values fall by more than noise does, and those values."""
        n_components = min(self.config.n_components, min(observed.shape) - 1)
        if n_components < 5:
            logger.info("alra: rank 1, as %d spots x %d genes are too few to choose it", *observed.shape)
            return 1, None
        start = self.config.noise_start
        if start is None or start >= n_components:
            start = 4 * n_components // 5
        s = truncated_svd(observed, n_components, generator=generator, n_iterations=_ITERATIONS_CHOOSE)[1]
        gaps = s[:-1] - s[1:]
        # The gap before the first noise value counts as noise, as in the published code.
        noise = gaps[start - 2 :]
        # Singular values that are zero differ by rounding only.
        spread = noise.std().clamp(min=_rounding(s, observed.shape))
        above = (gaps > noise.mean() + self.config.threshold * spread).nonzero()
        rank = int(above[-1]) + 1 if len(above) else 1
        logger.info("alra: rank %d, chosen from %d singular values", rank, n_components)
        return rank, s

    def _statistics(
        self, observed: Tensor, scores: Tensor, components: Tensor, *, error: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for each gene, the limit of fitted values for being expressed, and what these are scaled and shifted by."""
        by_gene = transpose_csr(observed)
        n_genes, n_spots = by_gene.shape
        width = max(1, _BLOCK_ENTRIES // n_spots)
        found = []
        for start in range(0, n_genes, width):
            genes = slice(start, min(start + width, n_genes))
            a = select_rows(by_gene, torch.arange(genes.start, genes.stop, device=observed.device)).to_dense().double()
            b = components[:, genes].t() @ scores.t()
            # A fitted zero comes out as a rounding error of either sign.
            b[b.abs() <= error] = 0
            limit = _quantile(b, self.config.quantile)
            limit = limit.clamp(max=0).abs() if self.config.only_negative else limit.abs()
            expressed = b > limit[:, None]
            mean, deviation = _moments(b, expressed)
            mean_observed, deviation_observed = _moments(a, a > 0)
            # Comparisons with NaN, the deviation of a single value, are false: such genes are left as fitted.
            matched = (deviation > error) & (deviation_observed >= 0)
            scale = torch.where(matched, deviation_observed / deviation, 1.0)
            shift = torch.where(matched, mean_observed - mean * scale, 0.0)
            found.append(torch.stack([limit, scale, shift]))
        limits, scales, shifts = torch.cat(found, dim=1)
        return limits, scales, shifts


def _rounding(singular_values: Tensor, shape: Sequence[int]) -> float:
    """Size up to which an entry or a singular value is a rounding error."""
    return float(singular_values[0]) * max(shape) * torch.finfo(torch.float64).eps


def _quantile(values: Tensor, q: float) -> Tensor:
    """Quantile of each row, by linear interpolation between order statistics."""
    position = q * (values.shape[1] - 1)
    below = int(position)
    low: Tensor = values.kthvalue(below + 1, dim=1).values
    if below == position:
        return low
    high: Tensor = values.kthvalue(below + 2, dim=1).values
    return low.lerp(high, position - below)


def _moments(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the chosen entries of each row; NaN where there are too few."""
    count = chosen.sum(1)
    mean = (values * chosen).sum(1) / count
    squares = ((values - mean[:, None]).square() * chosen).sum(1)
    return mean, (squares / (count - 1)).sqrt()
