"""What methods that train a network share: training in one process or several, prediction, and trained networks on disk."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from stdenoise._base.random import torch_generator
from stdenoise.methods._base import Method
from stdenoise.methods._soundness import Soundness
from stdenoise.spatial.results import Block
from stdenoise.spatial.spots import SPATIAL, Spots
from stdenoise.train.checkpoint import Checkpoint, load_tensors, save_tensors
from stdenoise.train.devices import spawn
from stdenoise.train.patches import Patch, Patches
from stdenoise.train.run import Run

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_KIND = "model"
_WEIGHT_BYTES = 4 * 8
"""Of each weight: itself, its gradient, two moments, the best and the last good values."""
_COUNT_BYTES = 96
"""Of each count of a patch: normalised, transposed, as a target, and what it takes to make these."""
_BLOCK_GB = 0.1
"""Logits and their gradients, block by block."""


@dataclass(frozen=True)
class Model:
    """Weights of a trained network, and what belongs to them.

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


class Network(Method):
    """A method that trains a network: subclasses implement `build`, `train`, `predict_patch` and `working_memory`, and set `n_hops`."""

    def build(self, n_genes: int, generator: torch.Generator) -> nn.Module:
        """Make a network that knows nothing yet."""
        raise NotImplementedError

    def predict_patch(self, module: Any, patch: Patch) -> Block:
        """Return the results of the core of a patch."""
        raise NotImplementedError

    def start(self, spots: Spots, run: Run, generator: torch.Generator) -> tuple[Any, Patches]:
        """Return a new network where it is to be, and the patches that it sees."""
        module = self.build(len(spots.genes), generator).to(run.device or spots.counts.device)
        patches = Patches(
            spots, n_hops=self.n_hops, device=run.device, max_spots=self.most_spots(run, spots), share=run.share
        )
        return module, patches

    def most_spots(self, run: Run, spots: Spots) -> int | None:
        """Spots of a patch, at most; `None` for all."""
        return run.max_spots

    def train(self, spots: Spots, run: Run) -> Model:
        """Train a network on the spots."""
        raise NotImplementedError

    def predict(self, model: Model, spots: Spots, run: Run) -> Iterator[tuple[Tensor, Block]]:
        """Yield the results of a trained network patch by patch, each with the positions of its spots."""
        module, patches = self.start(spots, run, torch_generator(0))
        module.load_state_dict(model.state)
        for patch in patches.cover():
            yield patch.spots[: patch.n_core], self.predict_patch(module, patch)

    def training_work(self, n_spots: int, n_genes: int, n_counts: int) -> tuple[float, float] | None:
        """Estimate a training's floating-point operations and updates of a weight; `None` where the method does not say."""
        return None

    def run(self, spots: Spots, run: Run) -> Iterator[tuple[Tensor, Block]]:
        """Train, and yield the results in blocks."""
        yield from self.predicted(self.trained(spots, run), spots, run)

    def trained(self, spots: Spots, run: Run) -> Model:
        """Train in this process, with others that a launcher has started, or in new ones."""
        if run.saving is not None:
            saving, identity = run.saving, _identity(self, spots, run.seed)
            run = replace(run, checkpoint=Checkpoint(saving.path, saving.minutes, saving.resume, identity))
        compute = run.compute
        if run.fabric is not None or compute.devices == 1:
            return self.train(spots, run)
        device = run.device or spots.counts.device
        try:
            return spawn(_work, self, spots, run, device=device, n_devices=compute.devices, strategy=compute.strategy)
        except (KeyboardInterrupt, ChildProcessError) as error:
            if run.checkpoint is None or not run.checkpoint.path.exists():
                raise
            if isinstance(error, KeyboardInterrupt):
                run.checkpoint.stop()
            advice = f"{str(run.checkpoint.path)!r} is saved: run it again with resume to go on."
            raise ChildProcessError(f"{error} {advice}") from error

    def predicted(self, model: Model, spots: Spots, run: Run) -> Iterator[tuple[Tensor, Block]]:
        """Yield the results of a trained network at the depth of the spots, in units of those that it was trained on."""
        run = run.predicting
        blocks = self.predict(model, spots.at_depth(model.median_total), run)
        soundness = Soundness(spots) if run.inspect else None
        if soundness is not None:
            blocks = soundness.watch(blocks)
        several = run.max_spots is not None or run.scratch is not None
        with tqdm(
            total=len(spots.size_factors), desc="predict", unit="spot", disable=not (run.progress and several)
        ) as bar:
            for rows, block in blocks:
                yield rows, block
                bar.update(len(rows))
        run.report["history"] = model.history
        run.report["training"] = dict(model.ending)
        if soundness is not None:
            run.report["check"] = soundness.report(model.ending, run, label=self.info.name)


class Trained(Method):
    """A trained network: a method that is applied as it is. It comes from `stdenoise.tl.train` or `stdenoise.methods.load`.

    Its genes are found by name in other sections; means are predicted at the depth of each spot, in units of the section that the network
    was trained on.

    Parameters
    ----------
    network
        The configured method.
    model
        Weights, genes and history.
    """

    def __init__(self, network: Network, model: Model) -> None:
        # What concerns training has no effect any more.
        self.info = replace(network.info, runs=network.info.runs & {"patches", "bf16"})  # type: ignore[misc]
        self.config, self.genes = network.config, model.genes
        self.network, self.model = network, model

    @property
    def n_hops(self) -> int:
        """How far in the graph the network sees."""
        return self.network.n_hops

    @property
    def writes(self) -> tuple[str, ...]:
        """Arrays that the result has."""
        return self.network.writes

    def run(self, spots: Spots, run: Run) -> Iterator[tuple[Tensor, Block]]:
        """Predict, and yield the results in blocks."""
        yield from self.network.predicted(self.model, spots, run)

    def working_memory(self, n_genes: int, counts_per_spot: float) -> tuple[float, float]:
        """Estimate the memory of the network, and that of each spot that is worked on, both in GB."""
        return self.network.working_memory(n_genes, counts_per_spot)

    def save(self, path: str | Path) -> None:
        """Write the network, its hyperparameters and its history to a file, which `stdenoise.methods.load` reads.

        Parameters
        ----------
        path
            The file; replaced only if it is a model.

        Raises
        ------
        FileExistsError
            Something else is there.
        OSError
            It cannot be written.
        """
        content = {"method": self.info.name, "params": asdict(self.config), **vars(self.model)}
        content["state"] = {name: tensor.cpu() for name, tensor in self.model.state.items()}
        save_tensors(Path(path), _KIND, content)


def read_model(path: Path) -> dict[str, Any]:
    """Read what `Trained.save` wrote; nothing in the file is executed."""
    return load_tensors(path, _KIND)


def network_memory(
    n_weights: int, n_genes: int, counts_per_spot: float, *, width: int, n_arrays: int
) -> tuple[float, float]:
    """Estimate the memory of a network, and that of each spot that is worked on, both in GB.

    Parameters
    ----------
    n_weights
        Number of weights.
    n_genes
        Number of genes.
    counts_per_spot
        Non-zero counts of a spot.
    width
        Numbers that a spot has in hidden layers, values and gradients together.
    n_arrays
        Arrays of the result: a patch has them whole before they are stored.
    """
    per_spot = 4 * width + _COUNT_BYTES * counts_per_spot + 4 * n_arrays * n_genes
    return n_weights * _WEIGHT_BYTES / 1e9 + _BLOCK_GB, per_spot / 1e9


def _work(fabric: Any, network: Network, spots: Spots, run: Run) -> Model:
    """Train as one of several processes."""
    run = replace(run, fabric=fabric, device=fabric.device, progress=run.progress and fabric.global_rank == 0)
    model = network.train(spots, run)
    return replace(model, state={name: tensor.cpu() for name, tensor in model.state.items()})


def _identity(network: Network, spots: Spots, seed: int) -> dict[str, Any]:
    """What makes a training this one and no other: all that its result depends on."""
    counts = spots.counts
    parts = [counts.crow_indices(), counts.col_indices(), counts.values(), spots.size_factors]
    graphs = {
        name if name != SPATIAL else "graph": f"{graph.n_edges} edges ({_checksum(graph.crow, graph.col)})"
        for name, graph in spots.graphs.items()
    }
    return {
        "method": network.info.name,
        "parameters": str(asdict(network.config)),
        "seed": seed,
        "spots": len(spots.size_factors),
        "genes": f"{len(spots.genes)} ({zlib.crc32(chr(0).join(spots.genes).encode()):08x})",
        "counts": f"{counts.values().shape[0]} above 0 ({_checksum(*parts)}), median total {spots.median_total:.9g}",
        **graphs,
        **{name: _checksum(values) for name, values in spots.arrays.items()},
    }


def _checksum(*tensors: Tensor) -> str:
    checksum = 0
    for tensor in tensors:
        # Not copied: counts may be mapped from files.
        checksum = zlib.crc32(tensor.cpu().contiguous().numpy().reshape(-1).view("uint8").data, checksum)
    return f"{checksum:08x}"
