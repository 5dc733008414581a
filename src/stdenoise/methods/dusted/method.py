"""DUSTED as a method: from spots to denoised means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from stdenoise._random import torch_generator
from stdenoise.methods._base import Denoiser, MethodInfo, make_config
from stdenoise.methods.dusted.config import PRESETS, DUSTEDConfig

if TYPE_CHECKING:
    from stdenoise._spots import Denoised, Spots


class DUSTED(Denoiser):
    """Graph-attention autoencoder with gene channel attention and count likelihoods.

    Parameters
    ----------
    preset
        One of the paper's settings: `"dlpfc"`, `"hocwta"` or `"simulated"`.
    **params
        Fields of `DUSTEDConfig`; they win over the preset.

    Raises
    ------
    TypeError
        A parameter is unknown.
    ValueError
        A value or the preset is not valid.

    References
    ----------
    DUSTED, AAAI-25; the published code is `Lifeomics/DUSTED` on GitHub.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.DUSTED(preset="simulated", n_epochs=200).config.likelihood
    'nb'
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="dusted",
        summary="graph-attention autoencoder with gene channel attention, (zero-inflated) negative binomial",
        needs=("graph",),
        scale="counts",
        writes=("mean", "dispersion", "dropout", "latent"),
        size="memory grows with spots x genes of the output; training is full-batch",
        reference="DUSTED, AAAI-25",
        licence="Apache-2.0",
    )
    config_type = DUSTEDConfig
    config: DUSTEDConfig

    def __init__(self, *, preset: str | None = None, **params: Any) -> None:
        self.config = make_config(DUSTEDConfig, params, method="dusted", preset=preset, presets=PRESETS)

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Denoised:
        """Train on the spots and return the means of one final pass."""
        from stdenoise._spots import Denoised
        from stdenoise.methods.dusted.module import DUSTEDModule, make_batch
        from stdenoise.train.loop import train

        if spots.graph is None:
            raise ValueError("dusted needs a spatial graph.")
        config = self.config
        zero_inflated = config.likelihood == "zinb"
        module = DUSTEDModule(len(spots.genes), config, generator=torch_generator(seed)).to(spots.counts.device)
        batch = make_batch(
            spots.lognorm,
            spots.counts,
            spots.size_factors,
            spots.graph,
            spots.nonempty,
            per_entry=zero_inflated or config.reduction == "mean",
        )
        history = train(
            module,
            lambda: module.loss(batch),
            lr=config.lr,
            weight_decay=config.weight_decay,
            clip=config.clip,
            n_epochs=config.n_epochs,
            restore_best=config.restore_best,
            progress=progress,
            description="dusted",
        )
        latent, attention, (mean, dispersion, *dropout) = module.predict(batch)
        return Denoised(
            mean=mean,
            scale="counts",
            dispersion=dispersion,
            dropout=dropout[0] if dropout else None,
            latent=latent,
            attention=(batch.graph, attention) if config.return_attention else None,
            history=history,
        )
