"""DCA as a method: from spots to denoised means."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stdenoise._random import torch_generator
from stdenoise.methods._base import Denoiser, MethodInfo
from stdenoise.methods.dca.config import DCAConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from stdenoise._spots import Denoised, Spots
    from stdenoise.methods.dca.batches import Batch


class DCA(Denoiser):
    """Deep count autoencoder: each spot on its own, with a count likelihood. No graph is used.

    Parameters
    ----------
    **params
        Fields of `DCAConfig`.

    Raises
    ------
    TypeError
        A parameter is unknown.
    ValueError
        A value is not valid.

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
            "an epoch takes time in proportion to spots x genes; training memory grows with non-zero counts, "
            "the result with spots x genes of the output"
        ),
        reference="Eraslan et al., Nature Communications 2019",
        licence="Apache-2.0",
    )
    config_type = DCAConfig
    config: DCAConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Denoised:
        """Train on most non-empty spots, with the others as validation, and predict all."""
        import torch

        from stdenoise._spots import Denoised
        from stdenoise.methods.dca.batches import Batches
        from stdenoise.methods.dca.module import DCAModule
        from stdenoise.nn.counts import BLOCK_ENTRIES
        from stdenoise.train.loop import train

        config, n_genes, device = self.config, len(spots.genes), spots.counts.device
        generator = torch_generator(seed)
        module = DCAModule(n_genes, config, generator=generator).to(device)
        scored = spots.nonempty.nonzero().squeeze(1)
        batches = Batches(spots.counts, spots.size_factors, len(scored))
        shuffled = scored[torch.randperm(len(scored), generator=generator).to(device)]
        # The product may fall short of a whole number by rounding.
        n_validation = int(len(scored) * config.validation_fraction + 1e-9)
        validation, training = shuffled[:n_validation], shuffled[n_validation:]

        def epoch() -> Iterator[Batch]:
            order = torch.randperm(len(training), generator=generator).to(device)
            return (batches.take(rows) for rows in training[order].split(config.batch_size))

        def validation_loss() -> Tensor:
            parts = validation.split(max(1, BLOCK_ENTRIES // n_genes))
            return torch.stack([module.loss(batches.take(rows)) * (len(rows) / n_validation) for rows in parts]).sum()

        history = train(
            module,
            module.loss,
            batches=epoch,
            validation_loss=validation_loss if n_validation else None,
            optimizer="rmsprop",
            lr=config.lr,
            clip=config.clip,
            clip_by="value",
            n_epochs=config.n_epochs,
            reduce_lr=config.reduce_lr,
            early_stop=config.early_stop,
            restore_best=config.restore_best,
            progress=progress,
            description="dca",
        )
        latent, arrays = module.predict(batches)
        mean, *others = arrays
        dispersion, dropout = [*others, None, None][:2]
        return Denoised(
            mean=mean, scale="counts", dispersion=dispersion, dropout=dropout, latent=latent, history=history
        )
