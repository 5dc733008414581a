"""DUSTED as a method: from spots to denoised means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from stdenoise._base.random import torch_generator
from stdenoise.methods._base import MethodInfo, likelihood_arrays, make_config
from stdenoise.methods._network import Model, Network, network_memory
from stdenoise.methods.dusted.config import PRESETS, SCHEDULES, DUSTEDConfig
from stdenoise.methods.dusted.module import DUSTEDModule, make_batch
from stdenoise.methods.dusted.training import batch_size_of, passes_of, train_as_published, train_fast
from stdenoise.spatial.results import Block

if TYPE_CHECKING:
    from stdenoise.spatial.spots import Spots
    from stdenoise.train.patches import Patch
    from stdenoise.train.run import Run


class DUSTED(Network):
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
        size="time grows with spots x genes; memory is what is allowed, from disk to disk with a .zarr as output",
        reference="DUSTED, AAAI-25",
        licence="Apache-2.0",
        optional=("coordinates",),
        runs=frozenset({"patches", "devices", "checkpoint", "model", "bf16"}),
    )
    config_type = DUSTEDConfig
    config: DUSTEDConfig

    def __init__(self, *, preset: str | None = None, **params: Any) -> None:
        self.config = make_config(DUSTEDConfig, params, method="dusted", preset=preset, presets=PRESETS)

    @property
    def n_hops(self) -> int:
        """Two layers on the way in, one on the way out, and the heads."""
        return 4

    @property
    def writes(self) -> tuple[str, ...]:
        """Arrays that the result has with this likelihood."""
        return likelihood_arrays(self.config.likelihood)

    def train(self, spots: Spots, run: Run) -> Model:
        """Train on the spots."""
        generator = torch_generator(run.seed)
        module, data = self.start(spots, run, generator)
        module.product_dtype = torch.bfloat16 if run.precision == "bf16-mixed" else None
        train = train_fast if self.config.schedule == "fast" else train_as_published
        outcome = train(module, self.config, data, run, generator)
        return Model(module.state_dict(), spots.genes, spots.median_total, outcome.history, outcome.ending)

    def build(self, n_genes: int, generator: torch.Generator) -> DUSTEDModule:
        """Make a network that knows nothing yet."""
        return DUSTEDModule(n_genes, self.config, generator=generator)

    def predict_patch(self, module: DUSTEDModule, patch: Patch) -> Block:
        """Return the parameters of the likelihood."""
        latent, attention, (mean, dispersion, *dropout) = module.predict(make_batch(patch, per_entry=True))
        return Block(
            mean=mean,
            scale="counts",
            dispersion=dispersion,
            dropout=dropout[0] if dropout else None,
            latent=latent,
            attention=patch.core_edges(attention) if self.config.return_attention else None,
        )

    def working_memory(self, n_genes: int, counts_per_spot: float) -> tuple[float, float]:
        """Estimate the memory of weights and optimiser, and that of each spot that is worked on."""
        config = self.config
        n_heads = 3 if config.likelihood == "zinb" else 2
        # Of each hidden layer and head: values, gradients and what autograd keeps.
        return network_memory(
            self._n_weights(n_genes),
            n_genes,
            counts_per_spot,
            width=(5 + 2 * n_heads) * config.n_hidden,
            n_arrays=n_heads,
        )

    def training_work(self, n_spots: int, n_genes: int, n_counts: int) -> tuple[float, float]:
        """Estimate a training's operations (products of the input layer and the heads) and updates of a weight."""
        config, schedule = self.config, SCHEDULES[self.config.schedule]
        n_steps = -(-n_spots // (batch_size_of(config, n_spots) or n_spots))
        n_passes = (config.n_epochs or schedule.n_epochs) * passes_of(config, n_steps)
        n_heads = 3 if config.likelihood == "zinb" else 2
        full_batch = (4 * n_counts + 6 * n_heads * n_spots * n_genes) * config.n_hidden
        return full_batch * n_passes * schedule.pass_cost, self._n_weights(n_genes) * n_steps * n_passes

    def _n_weights(self, n_genes: int) -> int:
        config = self.config
        n_weights = (4 if config.likelihood == "zinb" else 3) * n_genes * config.n_hidden
        if config.gene_attention:
            n_weights += 2 * n_genes * max(1, n_genes // config.gate_reduction)
        return n_weights
