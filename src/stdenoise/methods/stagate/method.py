"""STAGATE as a method: from spots to denoised log-normalised expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stdenoise._base.random import torch_generator
from stdenoise.methods._base import MethodInfo
from stdenoise.methods._network import Model, Network, network_memory
from stdenoise.methods.stagate.config import STAGATEConfig
from stdenoise.methods.stagate.module import STAGATEModule, make_batch
from stdenoise.spatial.results import Denoised
from stdenoise.train.loop import train
from stdenoise.train.patches import Feed, Patches

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from stdenoise.spatial.spots import Spots
    from stdenoise.train.run import Run


class STAGATE(Network):
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
            "memory is what is allowed, from disk to disk with a .zarr as output"
        ),
        reference="Dong and Zhang, Nature Communications 2022",
        licence="MIT",
        optional=("coordinates",),
        runs=frozenset({"patches", "devices", "checkpoint", "model"}),
    )
    config_type = STAGATEConfig
    config: STAGATEConfig

    def train(self, spots: Spots, run: Run) -> Model:
        """Train on the spots."""
        config, generator = self.config, torch_generator(run.seed)
        module = self._module(spots, run, generator)
        outcome = train(
            module,
            module.loss,
            batches=Feed(self._patches(spots, run), make_batch, config.batch_size, generator),
            generator=generator,
            lr=config.lr,
            weight_decay=config.weight_decay,
            clip=config.clip,
            n_epochs=config.n_epochs,
            restore_best=config.restore_best,
            run=run,
            description="stagate",
        )
        return Model(module.state_dict(), spots.genes, spots.median_total, outcome.history, outcome.ending)

    def predict(self, model: Model, spots: Spots, run: Run) -> Iterator[tuple[Tensor, Denoised]]:
        """Yield the reconstruction of one final pass, patch by patch."""
        module = self._module(spots, run, torch_generator(0))
        module.load_state_dict(model.state)
        for patch in self._patches(spots, run).cover():
            latent, mean = module.predict(make_batch(patch))
            yield patch.spots[: patch.n_core], Denoised(mean=mean, scale="log1p", latent=latent)

    def working_memory(self, n_genes: int, counts_per_spot: float) -> tuple[float, float]:
        """Estimate the memory of weights and optimiser, and that of each spot that is worked on."""
        n_hidden = self.config.n_hidden
        return network_memory(n_genes * n_hidden, n_genes, counts_per_spot, width=7 * n_hidden, n_arrays=1)

    def _module(self, spots: Spots, run: Run, generator: torch.Generator) -> STAGATEModule:
        module = STAGATEModule(len(spots.genes), self.config, generator=generator)
        return module.to(run.device or spots.counts.device)

    def _patches(self, spots: Spots, run: Run) -> Patches:
        if spots.graph is None:
            raise ValueError("stagate needs a spatial graph.")
        # One layer on the way in, one on the way out.
        return Patches(spots, n_hops=2, device=run.device, max_spots=run.max_spots, share=run.share)
