"""scVI: an adapter to scvi-tools, for comparison."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd
import torch
from anndata import AnnData
from pydantic.dataclasses import dataclass
from scipy import sparse

from stdenoise._base.config import STRICT, AtLeastTwo, Count
from stdenoise.methods._base import Method, MethodInfo, likelihood_arrays
from stdenoise.spatial.graph import select_rows
from stdenoise.spatial.results import Block

if TYPE_CHECKING:
    from torch import Tensor

    from stdenoise.spatial.spots import Spots

# Rows that are predicted at once.
_BLOCK_ROWS = 512


@dataclass(frozen=True, config=STRICT)
class SCVIConfig:
    """Hyperparameters of scVI; the defaults are those of scvi-tools.

    Parameters
    ----------
    n_latent
        Width of the latent representation (scvi-tools: 10).
    n_hidden
        Width of the hidden layers (scvi-tools: 128).
    n_layers
        Number of hidden layers of the encoder and of the decoder (scvi-tools: 1).
    gene_likelihood
        `"zinb"` (zero-inflated negative binomial; scvi-tools), `"nb"` (negative binomial) or `"poisson"`.
    n_epochs
        Passes over the spots; `None` for the heuristic of scvi-tools, 400 up to 20 000 spots and in inverse proportion
        to their number above.
    batch_size
        Spots per step (scvi-tools: 128); one fewer, or a few, where a single spot would be left over.
    """

    n_latent: Count = 10
    n_hidden: Count = 128
    n_layers: Count = 1
    gene_likelihood: Literal["zinb", "nb", "poisson"] = "zinb"
    n_epochs: Count | None = None
    batch_size: AtLeastTwo = 128


class SCVI(Method):
    """Variational autoencoder of counts, as implemented by scvi-tools.

    Needs scvi-tools: `pip install "stdenoise[scvi]"`. No graph is used; libraries are passed on as batches.

    Parameters
    ----------
    **params
        Fields of `SCVIConfig`.

    References
    ----------
    Lopez, Regier, Cole, Jordan and Yosef, Nature Methods 2018.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.SCVI(gene_likelihood="nb").label
    "scvi(gene_likelihood='nb')"
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        name="scvi",
        summary="variational autoencoder of counts; calls scvi-tools, which is installed apart",
        needs=(),
        scale="counts",
        writes=("mean", "dispersion", "dropout", "latent"),
        size="time: epochs x spots x genes; memory: spots x genes of the output, three times",
        reference="Lopez et al., Nature Methods 2018",
        licence="BSD-3-Clause",
    )
    config_type = SCVIConfig
    config: SCVIConfig

    @property
    def writes(self) -> tuple[str, ...]:
        """Arrays that the result has with this likelihood."""
        return likelihood_arrays(self.config.gene_likelihood)

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
        """Train the model and return the parameters of its likelihood at the posterior mean of the latent variables.

        Raises
        ------
        ImportError
            scvi-tools is not installed.
        FloatingPointError
            Training diverged.
        """
        try:
            import scvi  # noqa: F401
        except ImportError as error:
            raise ImportError('method "scvi" needs scvi-tools: pip install "stdenoise[scvi]"') from error

        device, (n_spots, n_genes) = spots.counts.device, spots.counts.shape
        # The library size of an empty spot has no logarithm: it is neither trained on nor predicted.
        kept = torch.nonzero(spots.counts @ spots.counts.values().new_ones(n_genes)).squeeze(1)
        mean = torch.zeros(n_spots, n_genes, device=device)
        latent = torch.zeros(n_spots, self.config.n_latent, device=device)
        if len(kept) == 0:
            return Block(mean=mean, scale="counts", latent=latent)
        # Batch normalisation needs two spots.
        rows = kept if len(kept) > 1 else kept.repeat(2)
        counts = select_rows(spots.counts, rows)
        libraries = torch.zeros_like(rows) if spots.libraries is None else spots.libraries[rows]
        libraries = libraries.unique(return_inverse=True)[1]
        adata = AnnData(_to_scipy(counts), obs={"library": pd.Categorical(libraries.cpu().numpy())})

        dropout = torch.zeros_like(mean) if self.config.gene_likelihood == "zinb" else None
        with _quiet(), _seeded(seed):
            model = self._train(adata, device, progress)
            module = model.module.to(device).eval()
            for start in range(0, len(kept), _BLOCK_ROWS):
                block = torch.arange(start, min(start + _BLOCK_ROWS, len(kept)), device=device)
                with torch.inference_mode():
                    batch = libraries[block, None]
                    inferred = module.inference(select_rows(counts, block).to_dense(), batch)
                    # The mean of the posterior, not a draw from it.
                    z = inferred["qz"].loc
                    likelihood = module.generative(z, inferred["library"], batch)["px"]
                    mean[kept[block]] = likelihood.rate if self.config.gene_likelihood == "poisson" else likelihood.mu
                    latent[kept[block]] = z
                    if dropout is not None:
                        dropout[kept[block]] = likelihood.zi_probs
        if not bool(mean.isfinite().all()):
            raise FloatingPointError("scvi: training diverged, as not all expected counts are finite.")
        dispersion = None
        if self.config.gene_likelihood != "poisson":
            dispersion = module.px_r.detach().exp().repeat(n_spots, 1)
        return Block(
            mean=mean,
            scale="counts",
            dispersion=dispersion,
            dropout=dropout,
            latent=latent,
            # Negative evidence lower bound per spot.
            history={"loss": model.history["elbo_train"]["elbo_train"].tolist()},
        )

    def _train(self, adata: AnnData, device: torch.device, progress: bool) -> Any:
        """Return a trained model of scvi-tools."""
        import scvi

        options = {name: getattr(self.config, name) for name in ("n_latent", "n_hidden", "n_layers", "gene_likelihood")}
        scvi.model.SCVI.setup_anndata(adata, batch_key="library")
        model = scvi.model.SCVI(adata, **options)
        try:
            model.train(
                self.config.n_epochs,
                accelerator="cpu" if device.type == "cpu" else "gpu",
                devices=1 if device.type == "cpu" else [device.index or 0],
                train_size=1.0,
                batch_size=_batch_size(adata.n_obs, self.config.batch_size),
                enable_progress_bar=progress,
            )
        except ValueError as error:
            # What torch.distributions says to NaN.
            if "invalid values" not in str(error):
                raise
            raise FloatingPointError("scvi: training diverged, as the parameters became NaN.") from error
        finally:
            # Else the class would hold the counts for good.
            model.deregister_manager(adata)
        return model


def _batch_size(n_spots: int, wanted: int) -> int:
    """Size next to the one wanted that leaves no batch of one or two spots, whose normalisation is unstable."""
    sizes = (size for size in range(2, n_spots + 1) if n_spots % size not in (1, 2))
    return min(sizes, key=lambda size: abs(size - wanted))


def _to_scipy(matrix: Tensor) -> Any:
    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    return sparse.csr_matrix(tuple(part.cpu().numpy() for part in parts), shape=matrix.shape)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed scvi-tools, which draws from the global generators, and leave these and its settings as they were."""
    import scvi
    from lightning.pytorch.utilities.seed import isolate_rng

    environment, previous = dict(os.environ), scvi.settings.seed
    flags = torch.backends.cudnn
    with isolate_rng(), flags.flags(enabled=flags.enabled, deterministic=True, allow_tf32=flags.allow_tf32):
        try:
            scvi.settings.seed = seed % 2**32
            yield
        finally:
            scvi.settings.seed = previous
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what lightning says about devices and data loaders."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
