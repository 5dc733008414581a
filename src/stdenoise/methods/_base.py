"""What a denoising method is: a record about it, its hyperparameters, and `fit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from stdenoise._base.checks import check_choice, near_match
from stdenoise.spatial.results import collect
from stdenoise.train.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from stdenoise.spatial.results import Denoised
    from stdenoise.spatial.spots import Spots

Config = TypeVar("Config")


@dataclass(frozen=True)
class MethodInfo:
    """Facts about a method, as shown by `st.methods.table()`.

    Parameters
    ----------
    name
        Name to pass as `method`; also the default key of the results.
    summary
        One line.
    needs
        Inputs beyond counts: `"graph"`, `"coordinates"`.
    scale
        Scale of the denoised values, `"counts"` or `"log1p"`.
    writes
        Arrays that the result can have, see `Denoiser.writes`.
    size
        What limits the size of the data.
    reference
        Publication.
    licence
        Licence of the original code.
    optional
        Inputs that are read where there are any: `"features"` of an image, and `"coordinates"`, by which networks cut patches.
    """

    name: str
    summary: str
    needs: tuple[str, ...]
    scale: str
    writes: tuple[str, ...]
    size: str
    reference: str
    licence: str
    optional: tuple[str, ...] = ()

    def reads(self, what: str) -> bool:
        """Whether the method reads an input, where there is any."""
        return what in (*self.needs, *self.optional)


@dataclass(frozen=True)
class Model:
    """A trained network.

    Parameters
    ----------
    state
        Weights, and what else prediction needs, by name.
    genes
        Names of the genes, in the order of the columns.
    median_total
        Median count of the training spots over all genes: the depth that a size factor of 1 stands for.
    history
        Named values per epoch.
    ending
        Why the training ended, which epoch was the best one, and what was found out about it.
    """

    state: Mapping[str, Tensor]
    genes: tuple[str, ...]
    median_total: float
    history: Mapping[str, Sequence[float]]
    ending: Mapping[str, str | float] = field(default_factory=dict)


class Denoiser:
    """A configured method. It never sees an AnnData.

    Subclasses set `info` and `config_type`, and implement `fit`; or, for a network, `train` and `predict`, which add checkpoints,
    models that can be saved, results that are streamed and, with patches, memory and devices to choose.

    Parameters
    ----------
    **params
        Fields of the method's configuration.
    """

    info: ClassVar[MethodInfo]
    config_type: ClassVar[type]
    config: Any
    has_network: ClassVar[bool] = False
    """Whether stdenoise itself trains the network of the method, which can be saved and applied to other spots."""
    precisions: ClassVar[tuple[str, ...]] = ("32-true",)
    """Precisions that its training knows."""

    def __init_subclass__(cls) -> None:
        cls.has_network = cls.train is not Denoiser.train

    def __init__(self, **params: Any) -> None:
        self.config = make_config(self.config_type, params, method=self.info.name)

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Denoised:
        """Denoise the spots.

        Parameters
        ----------
        spots
            Counts, normalised values and graph, on one device.
        seed
            Source of all randomness.
        progress
            Show a progress bar on standard error.
        """
        run = Run(seed=seed, progress=progress)
        model = self.train(spots, run)
        return collect(self.predict(model, spots, run), len(spots.size_factors), model.history, spots.counts.device)

    def train(self, spots: Spots, run: Run) -> Model:
        """Train a network on the spots."""
        raise NotImplementedError(f"{self.info.name} has no network to train.")

    def working_memory(self, n_genes: int, counts_per_spot: float) -> tuple[float, float]:
        """Estimate the memory of a network and its training, and that of each spot that is worked on, both in GB."""
        raise NotImplementedError(f"{self.info.name} has no network to train.")

    def training_work(self, n_spots: int, n_genes: int, n_counts: int) -> tuple[float, float] | None:
        """Estimate a training's floating-point operations and updates of a weight; `None` where the method does not say."""
        return None

    def predict(self, model: Model, spots: Spots, run: Run) -> Iterator[tuple[Tensor, Denoised]]:
        """Yield the results of a trained network in blocks, each with the positions of its spots."""
        raise NotImplementedError(f"{self.info.name} has no network to train.")

    @property
    def writes(self) -> tuple[str, ...]:
        """Arrays that the result has with this configuration."""
        return self.info.writes

    @property
    def label(self) -> str:
        """Name, with the hyperparameters that are not at their defaults."""
        changed = [f"{f.name}={v!r}" for f in fields(self.config) if (v := getattr(self.config, f.name)) != f.default]
        return f"{self.info.name}({', '.join(changed)})" if changed else self.info.name

    def __repr__(self) -> str:
        """Show the method with its hyperparameters."""
        settings = ", ".join(f"{f.name}={getattr(self.config, f.name)!r}" for f in fields(self.config))
        return f"{type(self).__name__}({settings})"


def likelihood_arrays(likelihood: str) -> tuple[str, ...]:
    """Arrays of a result with the parameters of `"poisson"`, an `"nb…"` or a `"zinb…"` likelihood, and latent variables."""
    dispersion = () if likelihood == "poisson" else ("dispersion",)
    dropout = ("dropout",) if likelihood.startswith("zinb") else ()
    return ("mean", *dispersion, *dropout, "latent")


def make_config(
    config_type: type[Config],
    params: Mapping[str, Any],
    *,
    method: str,
    preset: str | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Build a method's hyperparameters from a preset and explicit values, which win.

    Raises
    ------
    TypeError
        A parameter is unknown.
    ValueError
        The preset is unknown, or a value is out of range.
    """
    known = [f.name for f in fields(config_type)]  # type: ignore[arg-type]
    choices = [*known, "preset"] if presets else known
    unknown = [name for name in params if name not in known]
    if unknown:
        raise TypeError(f"{method} has no parameter {unknown[0]!r}; it has {choices}.{near_match(unknown[0], choices)}")
    values: dict[str, Any] = {}
    if preset is not None:
        presets = presets or {}
        check_choice("preset", preset, list(presets))
        values.update(presets[preset])
    return config_type(**{**values, **params})
