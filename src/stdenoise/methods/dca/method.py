"""DCA as a method: from spots to denoised means."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from stdenoise._base.random import torch_generator
from stdenoise.methods._base import MethodInfo, likelihood_arrays
from stdenoise.methods._network import Model, Network, network_memory
from stdenoise.methods.dca.batches import make_batch, standardization
from stdenoise.methods.dca.config import DCAConfig
from stdenoise.methods.dca.module import DCAModule
from stdenoise.nn.counts import BLOCK_ENTRIES
from stdenoise.spatial.results import Block
from stdenoise.train.loop import train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from stdenoise.methods.dca.batches import Batch
    from stdenoise.spatial.spots import Spots
    from stdenoise.train.patches import Patch
    from stdenoise.train.run import Run


class DCA(Network):
    """Deep count autoencoder: each spot on its own, with a count likelihood. No graph is used.

    Parameters
    ----------
    **params
        Fields of `DCAConfig`.

    References
    ----------
    Eraslan, Simon, Mircea, Mueller and Theis, Nature Communications 2019; the published code is `theislab/dca` on GitHub.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=30)
    >>> st.tl.denoise(adata, st.methods.DCA(likelihood="zinb", n_epochs=3))
    >>> adata.layers["dca_mean"].shape
    (100, 30)
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dca",
        summary="deep count autoencoder, (zero-inflated) negative binomial or Poisson",
        needs=(),
        scale="counts",
        writes=("mean", "dispersion", "dropout", "latent"),
        size=(
            "an epoch takes time in proportion to spots x genes; memory grows with non-zero counts and the result, "
            "or is what is allowed, from disk to disk with a .zarr as output"
        ),
        reference="Eraslan et al., Nature Communications 2019",
        licence="Apache-2.0",
        runs=frozenset({"patches", "checkpoint", "model"}),
    )
    config_type = DCAConfig
    config: DCAConfig

    @property
    def writes(self) -> tuple[str, ...]:
        """Arrays that the result has with this likelihood."""
        return likelihood_arrays(self.config.likelihood)

    def train(self, spots: Spots, run: Run) -> Model:
        """Train on most non-empty spots, with the others as validation."""
        config, n_genes = self.config, len(spots.genes)
        generator = torch_generator(run.seed)
        scored = spots.nonempty.nonzero().squeeze(1).cpu()
        module, data = self.start(spots, run, generator)
        for buffer, values in zip(
            (module.input_scale, module.input_of_zero), standardization(data, len(scored)), strict=True
        ):
            buffer.copy_(values)

        def take(rows: Tensor) -> Batch:
            patch = data.patch(rows.cpu().numpy(), len(rows))
            return make_batch(patch, module.input_scale, module.input_of_zero)

        shuffled = scored[torch.randperm(len(scored), generator=generator)]
        # The product may fall short of a whole number by rounding.
        n_validation = int(len(scored) * config.validation_fraction + 1e-9)
        validation, training = shuffled[:n_validation], shuffled[n_validation:]

        def epoch(skip: int) -> Iterator[list[Batch]]:
            order = torch.randperm(len(training), generator=generator)
            return ([take(rows)] for rows in training[order].split(config.batch_size)[skip:])

        def validation_loss() -> Tensor:
            parts = validation.split(max(1, BLOCK_ENTRIES // n_genes))
            return torch.stack([module.loss(take(rows)) * (len(rows) / n_validation) for rows in parts]).sum()

        outcome = train(
            module,
            module.loss,
            batches=epoch,
            generator=generator,
            validation_loss=validation_loss if n_validation else None,
            optimizer="rmsprop",
            lr=config.lr,
            clip=config.clip,
            clip_by="value",
            n_epochs=config.n_epochs,
            reduce_lr=config.reduce_lr,
            early_stop=config.early_stop,
            restore_best=config.restore_best,
            run=run,
            description="dca",
        )
        return Model(module.state_dict(), spots.genes, spots.median_total, outcome.history, outcome.ending)

    def working_memory(self, n_genes: int, counts_per_spot: float) -> tuple[float, float]:
        """Estimate the memory of weights and optimiser; spots are always worked on in small batches."""
        n_weights = 4 * n_genes * max(self.config.hidden)
        fixed, per_spot = network_memory(n_weights, n_genes, counts_per_spot, width=8 * n_genes, n_arrays=3)
        return fixed + per_spot * self.config.batch_size, 0.0

    def build(self, n_genes: int, generator: torch.Generator) -> DCAModule:
        """Make a network that knows nothing yet."""
        return DCAModule(n_genes, self.config, generator=generator)

    def most_spots(self, run: Run, spots: Spots) -> int:
        """As many as keep the dense input in cache."""
        return max(1, BLOCK_ENTRIES // len(spots.genes))

    def predict_patch(self, module: DCAModule, patch: Patch) -> Block:
        """Return the parameters of the likelihood."""
        latent, (mean, *others) = module.predict(make_batch(patch, module.input_scale, module.input_of_zero))
        dispersion, dropout = [*others, None, None][:2]
        return Block(mean=mean, scale="counts", dispersion=dispersion, dropout=dropout, latent=latent)
