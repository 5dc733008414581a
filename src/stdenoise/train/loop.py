"""The one training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from stdenoise.train.rmsprop import RMSprop

# A smaller improvement does not keep the learning rate up, and where it falls, it falls by this factor (as in Keras).
_PLATEAU_MARGIN = 1e-4
_PLATEAU_FACTOR = 0.1


def train(
    module: nn.Module,
    loss_of: Callable[..., Tensor],
    *,
    lr: float,
    clip: float,
    n_epochs: int,
    restore_best: bool,
    progress: bool,
    description: str,
    weight_decay: float = 0.0,
    optimizer: Literal["adam", "rmsprop"] = "adam",
    clip_by: Literal["norm", "value"] = "norm",
    batches: Callable[[], Iterable[Any]] | None = None,
    validation_loss: Callable[[], Tensor] | None = None,
    reduce_lr: int | None = None,
    early_stop: int | None = None,
) -> dict[str, list[float]]:
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
    progress
        Show a progress bar on standard error.
    description
        Its label.
    optimizer
        `"adam"`, or `"rmsprop"` as in Keras.
    clip_by
        What the bound holds for: the global norm (`"norm"`) or each entry (`"value"`).
    batches
        Called at the start of each epoch; yields what `loss_of` is given, for one step each.
    validation_loss
        Called at the end of each epoch, with the module in evaluation mode and without gradients.
    reduce_lr
        Divide the learning rate by ten each time this many epochs have passed without improving by 1e-4.
    early_stop
        Stop after this many epochs without improvement. Both look at the validation loss or, without one, at the mean loss of the epoch.

    Returns
    -------
    Per epoch, `loss` (before each step, mean over steps) and, where they are used, `gradient_norm` (before clipping, mean over steps),
    `validation_loss` and `lr`.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    parameters = list(module.parameters())
    stepper = _OPTIMIZERS[optimizer](parameters, lr, weight_decay)
    plateau, patience = _Patience(reduce_lr, _PLATEAU_MARGIN), _Patience(early_stop)
    history: dict[str, list[float]] = {}
    # Buffers too: running averages belong to the weights they were taken with.
    state = [*parameters, *module.buffers()]
    best = [x.detach().clone() for x in state] if restore_best else None
    best_loss = math.inf

    with tqdm(total=n_epochs, desc=description, unit="epoch", disable=not progress) as bar:
        for epoch in range(n_epochs):
            advice = f"at epoch {epoch + 1}; try a learning rate below {lr:g}."
            losses, norms = [], []
            for batch in [()] if batches is None else ((batch,) for batch in batches()):
                stepper.zero_grad()
                loss = loss_of(*batch)
                value = _finite(loss, description, advice)
                if best is not None and validation_loss is None and value < best_loss:
                    # Before the step: these are the weights that gave this loss.
                    best_loss = value
                    _copy(state, best)
                loss.backward()
                if clip_by == "norm":
                    norms.append(nn.utils.clip_grad_norm_(parameters, clip).item())
                else:
                    nn.utils.clip_grad_value_(parameters, clip)
                losses.append(value)
                stepper.step()
            value = fmean(losses)
            record = {"loss": value}
            if norms:
                record["gradient_norm"] = fmean(norms)
            if validation_loss is not None:
                module.eval()
                with torch.no_grad():
                    record["validation_loss"] = value = _finite(validation_loss(), description, advice)
                module.train()
                if best is not None and value < best_loss:
                    best_loss = value
                    _copy(state, best)
            if reduce_lr is not None:
                record["lr"] = stepper.param_groups[0]["lr"]
            for name, number in record.items():
                history.setdefault(name, []).append(number)
            bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            bar.update()
            if plateau.is_over(value):
                stepper.param_groups[0]["lr"] *= _PLATEAU_FACTOR
            if patience.is_over(value):
                break
    if best is not None:
        _copy(best, state)
    return history


class _Patience:
    """Counts epochs that do not lower the loss by more than a margin; without a number of epochs it is never over."""

    def __init__(self, n_epochs: int | None, margin: float = 0.0) -> None:
        self.n_epochs = math.inf if n_epochs is None else n_epochs
        self.margin = margin
        self.lowest = math.inf
        self.waited = 0

    def is_over(self, loss: float) -> bool:
        if loss < self.lowest - self.margin:
            self.lowest, self.waited = loss, 0
            return False
        self.waited += 1
        if self.waited < self.n_epochs:
            return False
        self.waited = 0
        return True


def _fused_adam(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)


_OPTIMIZERS: dict[str, Callable[[Sequence[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "adam": _fused_adam,
    "rmsprop": RMSprop,
}


def _finite(loss: Tensor, description: str, advice: str) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"{description}: the loss is {value} {advice}")
    return value


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
