"""STAGATE as a method: from spots to denoised log-normalised expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stdenoise._random import torch_generator
from stdenoise.methods._base import Denoiser, MethodInfo
from stdenoise.methods.stagate.config import STAGATEConfig

if TYPE_CHECKING:
    from stdenoise._spots import Denoised, Spots


class STAGATE(Denoiser):
    """Graph-attention autoencoder on log-normalised expression.

    Parameters
    ----------
    **params
        Fields of `STAGATEConfig`.

    Raises
    ------
    TypeError
        A parameter is unknown.
    ValueError
        A value is not valid.

    References
    ----------
    Dong and Zhang, Nature Communications 2022; the published code is `QIFEIDKN/STAGATE_pyG` on GitHub.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.STAGATE(n_epochs=200).label
    'stagate(n_epochs=200)'
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="stagate",
        summary="graph-attention autoencoder on log-normalised expression, mean squared error",
        needs=("graph",),
        scale="log1p",
        writes=("mean", "latent"),
        size=(
            "an epoch takes time in proportion to (non-zero counts + spots x hidden + genes x hidden + edges) x hidden; "
            "memory grows with spots x hidden and with spots x genes of the output; training is full-batch"
        ),
        reference="Dong and Zhang, Nature Communications 2022",
        licence="MIT",
    )
    config_type = STAGATEConfig
    config: STAGATEConfig

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Denoised:
        """Train on the spots and return the reconstruction of one final pass."""
        from stdenoise._spots import Denoised
        from stdenoise.methods.stagate.module import STAGATEModule, make_batch
        from stdenoise.train.loop import train

        if spots.graph is None:
            raise ValueError("stagate needs a spatial graph.")
        config = self.config
        module = STAGATEModule(len(spots.genes), config, generator=torch_generator(seed)).to(spots.counts.device)
        batch = make_batch(spots.lognorm, spots.graph, spots.nonempty)
        history = train(
            module,
            lambda: module.loss(batch),
            lr=config.lr,
            weight_decay=config.weight_decay,
            clip=config.clip,
            n_epochs=config.n_epochs,
            restore_best=config.restore_best,
            progress=progress,
            description="stagate",
        )
        latent, mean = module.predict(batch)
        return Denoised(mean=mean, scale="log1p", latent=latent, history=history)
