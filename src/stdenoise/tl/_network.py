"""Running a network: in how many processes, within which memory, with which files on the way."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stdenoise._base.checks import check_choice, check_number, near_match
from stdenoise.methods._base import Denoiser, Model
from stdenoise.methods._registry import registered
from stdenoise.spatial.results import Denoised
from stdenoise.spatial.spots import Spots
from stdenoise.tl._soundness import Soundness
from stdenoise.train.checkpoint import Checkpoint
from stdenoise.train.devices import join, spawn
from stdenoise.train.run import Run

if TYPE_CHECKING:
    from anndata import AnnData

PRECISIONS = ("32-true", "bf16-mixed")
ARRAYS = ("mean", "dispersion", "dropout", "latent")


@dataclass(frozen=True)
class Circumstances:
    """What `denoise` was told of how to run a network; the names are those of its arguments."""

    memory: float | None
    devices: int
    strategy: str
    precision: str
    checkpoint: Path | None
    checkpoint_minutes: float
    resume: bool
    save_model: Path | None

    def __post_init__(self) -> None:
        """Refuse what is not valid."""
        check_number("devices", self.devices, minimum=1, integer=True)
        check_number("checkpoint_minutes", self.checkpoint_minutes, minimum=0)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("resume", self.resume, [True, False])
        if not isinstance(self.strategy, str):
            raise TypeError(f"strategy must be a name, not {self.strategy!r}.")
        if self.resume and self.checkpoint is None:
            raise ValueError("resume=True needs checkpoint=, the file to go on from.")
        for name in ("checkpoint", "save_model"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.absolute().parent.is_dir():
                raise FileNotFoundError(f"{name}={str(path)!r}: there is no folder {str(path.absolute().parent)!r}.")

    def check_applies_to(self, denoiser: Denoiser, *, is_trained: bool) -> None:
        """Raise where something was asked for that the method has no use for."""
        given = [f.name for f in fields(self) if getattr(self, f.name) != _DEFAULTS[f.name]]
        if given and not denoiser.has_network:
            names = [name for name, cls in registered().items() if cls.has_network]
            raise TypeError(
                f"{given} do not apply to {denoiser.info.name}: they are for the networks that stdenoise trains itself, {names}."
            )
        check_choice(f"precision of {denoiser.info.name}", self.precision, denoiser.precisions)
        useless = [name for name in given if name not in ("memory", "precision")]
        if useless and is_trained:
            raise TypeError(f"{useless} do not apply with model=: nothing is trained.")


_DEFAULTS = {
    "memory": None,
    "devices": 1,
    "strategy": "auto",
    "precision": "32-true",
    "checkpoint": None,
    "checkpoint_minutes": 10.0,
    "resume": False,
    "save_model": None,
}


def train_network(denoiser: Denoiser, spots: Spots, how: Circumstances, run: Run, *, device: torch.device) -> Model:
    """Train on one device or several.

    Parameters
    ----------
    denoiser
        The network.
    spots
        The data; in each process, where a launcher has started several.
    how
        Devices and checkpoints.
    run
        Seed, memory, progress; and Fabric, where a launcher has started several processes.
    device
        Where the network is.
    """
    if how.checkpoint is not None:
        checkpoint = Checkpoint(
            how.checkpoint, how.checkpoint_minutes, how.resume, _identity(denoiser, spots, run.seed)
        )
        run = replace(run, checkpoint=checkpoint)
    if run.fabric is None and how.devices > 1:
        try:
            return spawn(_work, denoiser, spots, run, device=device, n_devices=how.devices, strategy=how.strategy)
        except (KeyboardInterrupt, ChildProcessError) as error:
            if run.checkpoint is None or not run.checkpoint.path.exists():
                raise
            if isinstance(error, KeyboardInterrupt):
                run.checkpoint.stop()
            advice = f"{str(run.checkpoint.path)!r} is saved: run it again with resume to go on."
            raise ChildProcessError(f"{error} {advice}") from error
    return denoiser.train(spots, run)


def _work(fabric: Any, denoiser: Denoiser, spots: Spots, run: Run) -> Model:
    """Train as one of several processes."""
    progress = run.progress and fabric.global_rank == 0
    run = replace(run, fabric=fabric, device=fabric.device, progress=progress)
    model = denoiser.train(spots, run)
    return replace(model, state={name: tensor.cpu() for name, tensor in model.state.items()})


def open_run(how: Circumstances, *, seed: int, progress: bool, device: torch.device) -> Run:
    """Return how this process trains, connected to the others where a launcher has started several."""
    fabric = join(device, how.strategy)
    return Run(
        seed=seed,
        progress=progress and (fabric is None or fabric.global_rank == 0),
        device=device if fabric is None else fabric.device,
        precision=how.precision,
        fabric=fabric,
    )


def align_genes(adata: AnnData, model: Model, path: Path) -> np.ndarray:
    """Return the columns of a model's genes, in its order."""
    columns = adata.var_names.get_indexer(list(model.genes))
    missing = [gene for gene, column in zip(model.genes, columns, strict=True) if column < 0]
    if missing:
        hint = near_match(missing[0], adata.var_names)
        raise KeyError(
            f"{len(missing)} of the {len(model.genes)} genes of {str(path)!r} are not in adata.var_names: {missing[:5]}.{hint}"
        )
    return np.asarray(columns)


def at_depth_of(spots: Spots, model: Model) -> Spots:
    """Express the depth of spots in units of a model's training spots; that of an empty spot stays 1."""
    in_units = spots.size_factors * (spots.median_total / model.median_total)
    return replace(
        spots,
        size_factors=torch.where(spots.nonempty, in_units, spots.size_factors),
        median_total=model.median_total,
    )


def chosen(
    blocks: Iterable[tuple[Tensor, Denoised]], arrays: Sequence[str], n_spots: int, *, progress: bool
) -> Iterator[tuple[Tensor, Denoised]]:
    """Drop the arrays that were not asked for, and show a progress bar over the spots."""
    dropped: dict[str, Any] = {name: None for name in ARRAYS[1:] if name not in arrays}
    with tqdm(total=n_spots, desc="predict", unit="spot", disable=not progress) as bar:
        for rows, block in blocks:
            yield rows, replace(block, **dropped)
            bar.update(len(rows))


def network_record(model: Model, soundness: Soundness, run: Run, denoiser: Denoiser) -> dict[str, Any]:
    """What is recorded of a network beside its history: how its training ended, and a look at its result."""
    return {"training": dict(model.ending), "check": soundness.report(model.ending, run, label=denoiser.info.name)}


def _identity(denoiser: Denoiser, spots: Spots, seed: int) -> dict[str, Any]:
    """What makes a training this one and no other."""
    return {
        "method": denoiser.info.name,
        "parameters": str(asdict(denoiser.config)),
        "seed": seed,
        "spots": len(spots.size_factors),
        "genes": f"{len(spots.genes)} ({zlib.crc32(chr(0).join(spots.genes).encode()):08x})",
        "counts": f"{zlib.crc32((spots.size_factors * spots.median_total).cpu().numpy().tobytes()):08x}",
    }
