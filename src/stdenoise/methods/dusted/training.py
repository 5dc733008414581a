"""The two schedules of DUSTED."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stdenoise.methods.dusted.config import SCHEDULES, DUSTEDConfig
from stdenoise.methods.dusted.module import Batch, DUSTEDModule, make_batch
from stdenoise.spatial.results import Block
from stdenoise.stats.deviance import poisson_deviance
from stdenoise.train.held_out import HeldOut
from stdenoise.train.loop import train
from stdenoise.train.patches import Feed, Patches
from stdenoise.train.run import Run
from stdenoise.train.schedule import Anneal, Outcome

# Of the spots, at least this share and at most this number lose molecules, of each this share.
_VALIDATION_SHARE, _VALIDATION_SPOTS, _HELD_OUT = 0.25, 8192, 0.1
# Steps over which the learning rate rises, and passes at a falling one, as a share of those before.
_WARMUP, _ANNEALING = 30, 0.5
_PATIENCE = 5
# Steps of a pass, as far as the spots per step stay between two bounds: below, a patch is mostly halo.
_STEPS, _BATCH_SIZES = 24, (128, 2048)
# Steps between two looks at the held-out molecules, at least: of a few hundred spots a pass says little.
_LEAST_STEPS = 12
# Passes before which the molecules that are held out do not judge: until then a network of many genes expects little more than the mean
# of each, on a plateau, and what it would return has two components.
_LEAST_EPOCHS = 8
# Genes up to which the weight decay is the one that was published for 3000 of them. The gradient of a mean over more genes is smaller, and
# the decay beside it leaves a result of rank one.
_DECAY_GENES = 3000
# Held-out molecules of a gene, at least, for its own share to say something.
_EXPRESSED = 20
# Least expected count: a dropout probability that rounds to 1 would let one molecule cost more than all others.
_LEAST = 1e-6


def train_as_published(
    module: DUSTEDModule, config: DUSTEDConfig, data: Patches, run: Run, generator: torch.Generator
) -> Outcome:
    """Train at a constant learning rate."""
    module.set_pooled(data)
    feed = _feed(data, config, generator)
    return train(module, module.loss, **_common(config, run, feed), restore_best=config.restore_best)


def train_fast(
    module: DUSTEDModule, config: DUSTEDConfig, data: Patches, run: Run, generator: torch.Generator
) -> Outcome:
    """Train until held-out molecules are no longer expected better, then on all molecules to a learning rate of zero."""
    feed = _feed(data, config, generator)
    validation = _Validation(data, feed.batch_size or data.n_spots, generator, run)
    feed.data = validation.training
    module.set_pooled(feed.data)

    def begin() -> dict[str, float]:
        notes = validation.explained(module)
        feed.data = data
        module.set_pooled(data)
        return notes

    return train(
        module,
        module.loss,
        **_common(config, run, feed),
        restore_best=True,
        validation_loss=lambda: validation.loss(module),
        anneal=Anneal(
            n_steps=feed.n_steps,
            warmup=_WARMUP,
            least=_LEAST_EPOCHS,
            patience=config.patience or _PATIENCE,
            share=_ANNEALING,
            begin=begin,
        ),
    )


class _Validation:
    """Some patches of tissue, of whose molecules some are held out."""

    def __init__(self, data: Patches, batch_size: int, generator: torch.Generator, run: Run) -> None:
        spots = data.spots
        cores = data.sample(batch_size, _VALIDATION_SHARE, _VALIDATION_SPOTS, generator)
        held_out = HeldOut(spots.counts, torch.cat(cores).sort().values, _HELD_OUT, generator)
        self.training, self._run = data.without(held_out), run
        self._n_entries = sum(map(len, cores)) * spots.counts.shape[1]
        depth = held_out.thin_size_factors(spots.size_factors, torch.arange(data.n_spots))[spots.nonempty].sum()
        total = torch.zeros(spots.counts.shape[1], dtype=torch.float64)
        for block in self.training.row_blocks():
            total.index_add_(0, block.col_indices().long().cpu(), block.values().double().cpu())
        # Expected counts of a spot of depth 1 without any structure; a gene without a count is given half of one.
        self._profile = total.clamp_(min=0.5) / depth.cpu()
        self._parts = [
            (make_batch(patch, per_entry=True), held_out.of(patch.spots[: patch.n_core]).to(patch.spots.device))
            for patch in (self.training.patch(core.numpy(), 1) for core in cores[data.rank :: data.world])
        ]

    def loss(self, module: DUSTEDModule) -> Tensor:
        """Part of this process in the mean Poisson deviance of held-out molecules."""
        total = torch.zeros((), dtype=torch.float64)
        for batch, held_out in self._parts:
            total += poisson_deviance(_expected(module, batch), held_out).sum().cpu()
        return total / self._n_entries

    @torch.no_grad()
    def explained(self, module: DUSTEDModule) -> dict[str, float]:
        """Share of the deviance of gene means that is explained: of all held-out molecules, and of the median expressed gene."""
        n_genes = len(self._profile)
        # Deviance of the network, that of gene means, and held-out molecules, by gene.
        sums = torch.zeros(3, n_genes, dtype=torch.float64)
        for batch, held_out in self._parts:
            expected = _expected(module, batch)
            depth = batch.size_factors[:, None] * (_HELD_OUT / (1 - _HELD_OUT))
            by_mean = (depth * self._profile.to(depth)).clamp_(min=_LEAST)
            sums[0] += poisson_deviance(expected, held_out).cpu()
            sums[1] += poisson_deviance(by_mean, held_out).cpu()
            sums[2].index_add_(0, held_out.col_indices().long().cpu(), held_out.values().double().cpu())
        self._run.add_up([sums])
        network, constant, molecules = sums
        notes = {"held_out_explained": float(1 - network.sum() / constant.sum())}
        expressed = molecules >= _EXPRESSED
        if expressed.any():
            by_gene = 1 - network[expressed] / constant[expressed]
            notes["held_out_explained_median_gene"] = float(by_gene.median())
        return notes


def _expected(module: DUSTEDModule, batch: Batch) -> Tensor:
    """Expected held-out counts of the core of a batch."""
    mean, _, *dropout = module.predict(batch)[2]
    block = Block(mean, "counts", dropout=dropout[0] if dropout else None)
    return (block.expected()[:] * (_HELD_OUT / (1 - _HELD_OUT))).clamp_(min=_LEAST)


def batch_size_of(config: DUSTEDConfig, n_spots: int) -> int | None:
    """Spots per step; `None` for all of them."""
    if config.batch_size is not None or config.schedule == "paper":
        return config.batch_size
    return min(max(-(-n_spots // _STEPS), _BATCH_SIZES[0]), _BATCH_SIZES[1])


def passes_of(config: DUSTEDConfig, n_steps: int) -> int:
    """Passes of an epoch, each of so many steps."""
    return max(1, round(_LEAST_STEPS / n_steps)) if config.schedule == "fast" else 1


def _feed(data: Patches, config: DUSTEDConfig, generator: torch.Generator) -> Feed[Batch]:
    per_entry = _is_per_entry(config)
    return Feed(
        data,
        lambda patch: make_batch(patch, per_entry=per_entry),
        batch_size_of(config, data.n_spots),
        generator,
        least_steps=_LEAST_STEPS if config.schedule == "fast" else 1,
    )


def _is_per_entry(config: DUSTEDConfig) -> bool:
    """Whether the loss is a mean over spots and genes, not over spots only."""
    return config.likelihood == "zinb" or (config.reduction or SCHEDULES[config.schedule].reduction) == "mean"


def _common(config: DUSTEDConfig, run: Run, feed: Feed[Batch]) -> dict[str, Any]:
    schedule = SCHEDULES[config.schedule]
    share = 1.0
    if config.schedule == "fast" and _is_per_entry(config):
        share = min(share, _DECAY_GENES / feed.data.spots.counts.shape[1])
    return {
        "lr": config.lr or schedule.lr,
        "n_epochs": config.n_epochs or schedule.n_epochs,
        "weight_decay": config.weight_decay * share,
        "clip": config.clip,
        "batches": feed,
        "generator": feed.generator,
        "run": run,
        "description": "dusted",
    }
