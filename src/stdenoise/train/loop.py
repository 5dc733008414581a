"""The one training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from stdenoise.train.checkpoint import Checkpoint
from stdenoise.train.rmsprop import RMSprop
from stdenoise.train.run import Run
from stdenoise.train.schedule import Anneal, Course, Outcome, State

logger = logging.getLogger("stdenoise")

# A loss that is not finite costs at most this part of the epochs; each time, the weights and the optimiser's moments are copied.
_SNAPSHOTS = 20


def train(
    module: nn.Module,
    loss_of: Callable[..., Tensor],
    *,
    lr: float,
    clip: float,
    n_epochs: int,
    restore_best: bool,
    description: str,
    run: Run,
    weight_decay: float = 0.0,
    optimizer: Literal["adam", "rmsprop"] = "adam",
    clip_by: Literal["norm", "value"] = "norm",
    batches: Callable[[int], Iterable[Sequence[Any]]] | None = None,
    generator: torch.Generator | None = None,
    validation_loss: Callable[[], Tensor] | None = None,
    reduce_lr: int | None = None,
    early_stop: int | None = None,
    anneal: Anneal | None = None,
) -> Outcome:
    """Minimise a loss with gradient clipping, one step per epoch or one per batch.

    Parameters
    ----------
    module
        Holds the parameters; changed in place.
    loss_of
        Computes the scalar loss at the present parameters; with `batches`, of the batch it is given.
    lr, weight_decay
        Of the optimiser; the weight decay is coupled to the gradient (L2).
    clip
        Bound on the gradient.
    n_epochs
        Number of epochs, at most.
    restore_best
        Leave the module with the weights that had the lowest loss, instead of the last ones: the validation loss at the end
        of an epoch or, without one, the loss of a step.
    description
        Label of the progress bar, and name in messages.
    run
        Devices, checkpoints, progress bar.
    optimizer
        `"adam"`, or `"rmsprop"` as in Keras.
    clip_by
        What the bound holds for: the global norm (`"norm"`) or each entry (`"value"`).
    batches
        Called at the start of each epoch with the number of steps to leave out; yields, for each step, what `loss_of` is given: the
        batches whose losses add up, this process's part of them.
    generator
        From which `batches` draws; nothing else may.
    validation_loss
        Called at the end of each epoch, with the module in evaluation mode and without gradients; this process's part of a sum.
    reduce_lr
        Divide the learning rate by ten each time this many epochs have passed without improving by 1e-4.
    early_stop
        Stop after this many epochs without improvement. Both look at the validation loss or, without one, at the mean loss of the epoch.
    anneal
        Instead of a constant learning rate. The weights are then the last ones, as the last part has no validation loss.

    Returns
    -------
    The history: per epoch, `loss` (before each step, mean over steps) and, where they are used, `gradient_norm` (before clipping, mean
    over steps), `validation_loss` and `lr`. And how the training ended.

    Raises
    ------
    FloatingPointError
        The loss is not finite, and was not once before: then the training went back to the last good weights, with half the learning rate.
    KeyboardInterrupt
        The process was told to stop. With a checkpoint, the step at hand is finished and saved.
    """
    if batches is None:
        batches, loss_of_batch = (lambda skip: [[None]][skip:]), (lambda _: loss_of())
    else:
        loss_of_batch = loss_of
    training = _Training(module, _OPTIMIZERS[optimizer](list(module.parameters()), lr, weight_decay), generator, run)
    state = training.state
    course = Course(state, lr, n_epochs, reduce_lr=reduce_lr, early_stop=early_stop, anneal=anneal)
    keep_best = restore_best or anneal is not None
    training.resume()
    if anneal is not None and state.annealing is not None:
        anneal.begin()
    with training.saving(), tqdm(total=n_epochs, desc=description, unit="epoch", disable=not run.progress) as bar:
        while state.epoch < course.last_epoch and not state.is_over:
            if anneal is not None and course.turns_here:
                training.restore_best()
                state.annealing = state.epoch
                state.notes = anneal.begin()
            bar.n, bar.total = state.epoch, course.last_epoch
            # Not back to before the last part: it has begun.
            training.begin_epoch(
                remember=state.epoch % max(1, n_epochs // _SNAPSHOTS) == 0 or state.epoch == state.annealing
            )
            try:
                for parts in batches(state.step):
                    value = training.backward(loss_of_batch, parts)
                    if keep_best and validation_loss is None and value < state.best_loss:
                        # Before the step: these are the weights that gave this loss.
                        training.keep(value)
                    training.step(value, course.lr, clip, clip_by)
                    training.save_if_due()
                record = {"loss": fmean(state.losses)}
                if state.norms:
                    record["gradient_norm"] = fmean(state.norms)
                if validation_loss is not None and state.annealing is None:
                    record["validation_loss"] = value = training.validate(validation_loss)
                    if keep_best and course.counts and value < state.best_loss:
                        training.keep(value)
            except _NotFiniteError as error:
                training.step_back(f"{description}: {error}", lr)
                continue
            if reduce_lr is not None:
                record["lr"] = lr * state.lr_factor
            for name, number in record.items():
                state.history.setdefault(name, []).append(number)
            value = record.get("validation_loss", record["loss"])
            course.heed(value)
            training.end_epoch()
            bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            bar.update()
        if run.checkpoint is not None:
            # Whatever happens to the results, this need not be done again.
            training.save(run.checkpoint)
    if restore_best and anneal is None:
        training.restore_best()
    return course.outcome


class _NotFiniteError(ArithmeticError):
    """A loss is not finite."""


class _Training:
    """Weights, optimiser and state of a training, and how they are saved and restored."""

    def __init__(
        self, module: nn.Module, stepper: torch.optim.Optimizer, generator: torch.Generator | None, run: Run
    ) -> None:
        self.module, self.stepper, self.generator, self.run = module, stepper, generator, run
        self.parameters = list(module.parameters())
        # Buffers too: running averages belong to the weights they were taken with.
        self.weights = [*self.parameters, *module.buffers()]
        self.state = State()
        self.best: list[Tensor] | None = None
        self._good: dict[str, Any] = {}
        self._drawn_from: Tensor | None = None
        """State of the generator at the start of the epoch."""

    def begin_epoch(self, *, remember: bool) -> None:
        if self.state.step == 0:
            self._drawn_from = None if self.generator is None else self.generator.get_state()
            if remember:
                self._good = self._snapshot() | {"drawn_from": self._drawn_from}
        elif self.generator is not None and self._drawn_from is not None:
            self.generator.set_state(self._drawn_from)

    def end_epoch(self) -> None:
        state = self.state
        state.epoch, state.step, state.losses, state.norms = state.epoch + 1, 0, [], []

    def backward(self, loss_of: Callable[..., Tensor], parts: Sequence[Any]) -> float:
        """Return the loss of a step, and leave its gradient in the parameters."""
        self.stepper.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)
        for part in parts:
            loss = loss_of(part)
            total += loss.detach()
            loss.backward()
        if self.run.share[1] > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.run.add_up([p.grad for p in self.parameters if p.grad is not None])
            self.run.add_up([total])
        return self._finite(total)

    def step(self, loss: float, lr: float, clip: float, clip_by: Literal["norm", "value"]) -> None:
        """Follow the gradient."""
        if clip_by == "norm":
            self.state.norms.append(nn.utils.clip_grad_norm_(self.parameters, clip).item())
        else:
            nn.utils.clip_grad_value_(self.parameters, clip)
        self.state.losses.append(loss)
        for group in self.stepper.param_groups:
            group["lr"] = lr
        self.stepper.step()
        self.state.step += 1

    @torch.no_grad()
    def validate(self, validation_loss: Callable[[], Tensor]) -> float:
        self.module.eval()
        value = validation_loss().double()
        self.module.train()
        self.run.add_up([value])
        return self._finite(value)

    def _finite(self, loss: Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise _NotFiniteError(f"the loss is {value} at epoch {self.state.epoch + 1}")
        return value

    def keep(self, loss: float) -> None:
        """Take the present weights for the best."""
        self.state.best_loss, self.state.best_epoch = loss, self.state.epoch + 1
        if self.best is None:
            self.best = [x.detach().clone() for x in self.weights]
        _copy(self.weights, self.best)

    def restore_best(self) -> None:
        if self.best is not None:
            _copy(self.best, self.weights)

    def step_back(self, what: str, lr: float) -> None:
        """Go back to the start of the epoch with half the learning rate; raise where that was done before."""
        rate = lr * self.state.lr_factor
        if self.state.stepped_back:
            raise FloatingPointError(f"{what}; try a learning rate below {rate:g}.")
        self._restore(self._good)
        if self.generator is not None:
            self.generator.set_state(self._good["drawn_from"])
        self.state.stepped_back = True
        self.state.lr_factor /= 2
        logger.warning("%s: going on from the weights before, at learning rate %g", what, rate / 2)

    def saving(self) -> AbstractContextManager[None]:
        checkpoint = self.run.checkpoint
        return nullcontext() if checkpoint is None else checkpoint.delayed_signals()

    def save_if_due(self) -> None:
        """Save where it is time to, or where a process was told to stop, which stops all of them."""
        checkpoint = self.run.checkpoint
        if checkpoint is None:
            return
        due, stop = (torch.tensor(float(x), dtype=torch.float64) for x in (checkpoint.is_due, checkpoint.is_stopped))
        self.run.add_up([due, stop])
        if due or stop:
            self.save(checkpoint)
        if stop:
            checkpoint.stop()

    def save(self, checkpoint: Checkpoint) -> None:
        state = self._snapshot(copy=False)
        state |= {"good": self._good, "best": self.best, "drawn_from": self._drawn_from}
        checkpoint.save(state if self.run.is_first else None)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        saved = None if self.run.checkpoint is None else self.run.checkpoint.load()
        if saved is None:
            return
        self._restore(saved)
        self._good, self.best, self._drawn_from = saved["good"], saved["best"], saved["drawn_from"]
        logger.info("going on at epoch %d, step %d", self.state.epoch + 1, self.state.step + 1)

    def _snapshot(self, *, copy: bool = True) -> dict[str, Any]:
        """Return weights, optimiser and state; without a copy it is to be written before the next step."""
        state = {
            "weights": [x.detach() for x in self.weights],
            "optimizer": self.stepper.state_dict(),
            "state": asdict(self.state),
        }
        return deepcopy(state) if copy else state

    def _restore(self, saved: dict[str, Any]) -> None:
        _copy(saved["weights"], self.weights)
        self.stepper.load_state_dict(saved["optimizer"])
        for name, value in deepcopy(saved["state"]).items():
            setattr(self.state, name, value)


def _fused_adam(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)


_OPTIMIZERS: dict[str, Callable[[Sequence[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "adam": _fused_adam,
    "rmsprop": RMSprop,
}


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
