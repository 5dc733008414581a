"""STAGATE as a method: from spots to denoised log-normalised expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from stdenoise._base.random import torch_generator
from stdenoise.methods._base import MethodInfo
from stdenoise.methods._network import Model, Network, network_memory
from stdenoise.methods.stagate.config import STAGATEConfig
from stdenoise.methods.stagate.module import STAGATEModule, make_batch
from stdenoise.spatial.results import Block
from stdenoise.train.loop import train
from stdenoise.train.patches import Feed

if TYPE_CHECKING:
    import torch

    from stdenoise.spatial.spots import Spots
    from stdenoise.train.patches import Patch
    from stdenoise.train.run import Run


class STAGATE(Network):
    """Graph-attention autoencoder on log-normalised expression.

    Parameters
    ----------
    **params
        Fields of `STAGATEConfig`.

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

    @property
    def n_hops(self) -> int:
        """One layer on the way in, one on the way out."""
        return 2

    def train(self, spots: Spots, run: Run) -> Model:
        """Train on the spots."""
        config, generator = self.config, torch_generator(run.seed)
        module, data = self.start(spots, run, generator)
        outcome = train(
            module,
            module.loss,
            batches=Feed(data, make_batch, config.batch_size, generator),
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

    def build(self, n_genes: int, generator: torch.Generator) -> STAGATEModule:
        """Make a network that knows nothing yet."""
        return STAGATEModule(n_genes, self.config, generator=generator)

    def predict_patch(self, module: STAGATEModule, patch: Patch) -> Block:
        """Return the reconstruction."""
        latent, mean = module.predict(make_batch(patch))
        return Block(mean=mean, scale="log1p", latent=latent)

    def working_memory(self, n_genes: int, counts_per_spot: float) -> tuple[float, float]:
        """Estimate the memory of weights and optimiser, and that of each spot that is worked on."""
        n_hidden = self.config.n_hidden
        return network_memory(n_genes * n_hidden, n_genes, counts_per_spot, width=7 * n_hidden, n_arrays=1)
