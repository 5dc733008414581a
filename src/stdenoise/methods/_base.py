"""What a method is: a record about it, its hyperparameters, and `run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import ValidationError

from stdenoise._base.checks import check_choice, near_match
from stdenoise._base.config import describe
from stdenoise.spatial.results import Block, collect
from stdenoise.spatial.spots import Spots
from stdenoise.train.run import Run

if TYPE_CHECKING:
    from torch import Tensor

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
        Arrays that the result can have, see `Method.writes`.
    size
        What limits the size of the data.
    reference
        Publication.
    licence
        Licence of the original code.
    optional
        Inputs that are read where there are any: `"features"` of an image, and `"coordinates"`, by which networks cut patches.
    runs
        What `stdenoise.Compute` and `stdenoise.Checkpoint` can ask of it: `"patches"` (a memory budget, from disk to disk), `"devices"`,
        `"checkpoint"`, `"model"` (a trained network can be kept) and `"bf16"`.
    task
        `"denoise"`: the same spots; `"enhance"`: more of them.
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
    runs: frozenset[str] = frozenset()
    task: Literal["denoise", "enhance"] = "denoise"

    def reads(self, what: str) -> bool:
        """Whether the method reads an input, where there is any."""
        return what in (*self.needs, *self.optional)


class Method:
    """A configured method. It never sees an AnnData.

    Subclasses set `info` and `config_type`, and implement one of `fit` and, where the result comes in blocks, `run`; each calls the other
    here.

    Parameters
    ----------
    **params
        Fields of the method's configuration.
    """

    info: ClassVar[MethodInfo]
    config_type: ClassVar[type]
    config: Any
    genes: tuple[str, ...] | None = None
    """Names of the genes that it is for; `None` for any."""

    def __init__(self, **params: Any) -> None:
        self.config = make_config(self.config_type, params, method=self.info.name)

    def fit(self, spots: Spots, *, seed: int, progress: bool) -> Block:
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
        return collect(self.run(spots, run), len(spots.size_factors), run.report, spots.counts.device)

    def run(self, spots: Spots, run: Run) -> Iterator[tuple[Tensor, Block]]:
        """Yield the result in blocks, each with the positions of its spots; here in one."""
        result = self.fit(spots, seed=run.seed, progress=run.progress)
        run.report["history"] = result.history
        yield torch.arange(len(spots.size_factors)), result

    @property
    def n_hops(self) -> int:
        """How far in the graph a spot sees: what a patch of tissue needs around it."""
        return 0

    def working_memory(self, n_genes: int, counts_per_spot: float) -> tuple[float, float]:
        """Estimate the memory that is needed in any case, and that of each spot that is worked on, in GB; only of what runs in patches."""
        raise NotImplementedError

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
    try:
        return config_type(**{**values, **params})
    except ValidationError as error:
        raise ValueError(f"{method}: {'; '.join(describe(error))}.") from None
