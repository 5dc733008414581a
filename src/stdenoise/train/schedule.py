"""How long a training goes on, and at which learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

# A smaller improvement does not keep the learning rate up, and where it falls, it falls by this factor (as in Keras).
_PLATEAU_MARGIN = 1e-4
_PLATEAU_FACTOR = 0.1
# What a constant learning rate still gains below this share, a falling one gains at once.
_ANNEAL_MARGIN = 1e-3


@dataclass(frozen=True)
class Anneal:
    """A learning rate that rises, stays while the validation loss falls, and then goes to zero.

    Parameters
    ----------
    n_steps
        Steps of an epoch.
    warmup
        Steps over which it rises.
    least
        Epochs of the middle part at least; the validation loss of those before is not compared with others. Early on it lies on a
        plateau, where a network expects the mean of each gene and nothing else.
    patience
        Epochs without an improvement of the validation loss by a thousandth that end the middle part.
    share
        Epochs of the last part, as a share of those before.
    begin
        Called when the last part begins, with the weights of the lowest validation loss in the module; returns what is to be known
        about them.
    """

    n_steps: int
    warmup: int
    least: int
    patience: int
    share: float
    begin: Callable[[], dict[str, float]]


@dataclass
class State:
    """Where a training is; with weights, optimiser and generator, all that is needed to go on."""

    epoch: int = 0
    step: int = 0
    """Steps of this epoch that are done."""
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    history: dict[str, list[float]] = field(default_factory=dict)
    best_loss: float = math.inf
    best_epoch: int = 0
    """Epoch of the lowest loss, from 1 on."""
    lr_factor: float = 1.0
    plateau: list[float] = field(default_factory=lambda: [math.inf, 0])
    patience: list[float] = field(default_factory=lambda: [math.inf, 0])
    annealing: int | None = None
    """Epochs before the last part."""
    notes: dict[str, float] = field(default_factory=dict)
    """What was found out when the last part began."""
    stepped_back: bool = False
    is_over: bool = False
    """Whether it stopped early."""


@dataclass(frozen=True)
class Outcome:
    """What a training leaves beside the weights.

    Parameters
    ----------
    history
        Named values per epoch.
    ending
        Why it ended (`stopped`), the epoch of the best weights (`best_epoch`) and the number of epochs before the learning rate fell
        (`annealing_from`), where there are such, and what was found out then.
    """

    history: dict[str, list[float]]
    ending: dict[str, str | float]


class Course:
    """How long a training goes on, and at which learning rate.

    Parameters
    ----------
    state
        Where the training is; changed by `heed`.
    lr, n_epochs, reduce_lr, early_stop, anneal
        As `stdenoise.train.loop.train` was given them.
    """

    def __init__(
        self,
        state: State,
        lr: float,
        n_epochs: int,
        *,
        reduce_lr: int | None,
        early_stop: int | None,
        anneal: Anneal | None,
    ) -> None:
        self._state, self._lr, self._n_epochs, self._anneal = state, lr, n_epochs, anneal
        self._reduce_lr = reduce_lr
        self._patience = anneal.patience if anneal else early_stop
        # The middle part ends here at the latest.
        self._latest = (
            n_epochs if anneal is None else n_epochs - max(1, round(n_epochs * anneal.share / (1 + anneal.share)))
        )
        self._turn = self._latest

    @property
    def turns_here(self) -> bool:
        """Whether the last part begins with this epoch."""
        return self._state.annealing is None and self._state.epoch >= self._turn

    @property
    def counts(self) -> bool:
        """Whether the loss of the epoch at hand is compared with others."""
        return self._anneal is None or self._state.epoch + 1 >= min(self._anneal.least, self._latest)

    @property
    def last_epoch(self) -> int:
        """Number of epochs, as far as it is known."""
        if self._anneal is None or self._state.annealing is None:
            return self._n_epochs
        return min(self._n_epochs, self._state.annealing + max(1, round(self._anneal.share * self._state.annealing)))

    @property
    def lr(self) -> float:
        """Learning rate of this step."""
        return self._lr * self._state.lr_factor * self._share()

    def _share(self) -> float:
        state, anneal = self._state, self._anneal
        if anneal is None:
            return 1.0
        if state.annealing is None:
            return min(1.0, (state.epoch * anneal.n_steps + state.step + 1) / anneal.warmup)
        done = state.epoch - state.annealing + (state.step + 0.5) / anneal.n_steps
        return max(0.0, 1.0 - done / (self.last_epoch - state.annealing))

    def heed(self, loss: float) -> None:
        """Take notice of the loss of the epoch at hand, which ends."""
        state = self._state
        if not self.counts:
            return
        if _is_over(state.plateau, loss, self._reduce_lr, _PLATEAU_MARGIN):
            state.lr_factor *= _PLATEAU_FACTOR
        margin = _ANNEAL_MARGIN * loss if self._anneal else 0.0
        if _is_over(state.patience, loss, self._patience, margin):
            state.is_over = self._anneal is None
            self._turn = state.epoch + 1

    @property
    def outcome(self) -> Outcome:
        """What there is to say about the training, which is over."""
        state = self._state
        ending: dict[str, str | float] = {}
        n_middle = len(state.history["loss"]) if state.annealing is None else state.annealing
        if state.is_over or (state.annealing is not None and state.annealing < self._latest):
            ending["stopped"] = f"no better for {self._patience} epochs, at epoch {n_middle}"
        else:
            ending["stopped"] = f"all {self._n_epochs} epochs are over"
        if state.best_epoch:
            ending["best_epoch"] = state.best_epoch
        if state.annealing is not None:
            ending["annealing_from"] = state.annealing
        return Outcome(state.history, {**ending, **state.notes})


def _is_over(record: list[float], loss: float, patience: int | None, margin: float = 0.0) -> bool:
    """Whether this many epochs, if any, did not lower the loss by more than a margin; the record is the lowest loss and the count."""
    lowest, waited = record
    if loss < lowest - margin:
        record[:] = [loss, 0]
        return False
    record[1] = waited + 1
    if patience is None or record[1] < patience:
        return False
    record[1] = 0
    return True
