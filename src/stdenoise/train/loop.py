"""The one training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm


def train(
    module: nn.Module,
    loss_of: Callable[[], Tensor],
    *,
    lr: float,
    weight_decay: float,
    clip: float,
    n_epochs: int,
    restore_best: bool,
    progress: bool,
    description: str,
) -> dict[str, list[float]]:
    """Minimise a loss with Adam and gradient clipping, one step per epoch.

    Parameters
    ----------
    module
        Holds the parameters; changed in place.
    loss_of
        Computes the scalar loss at the present parameters.
    lr, weight_decay
        Of Adam; the weight decay is coupled to the gradient (L2).
    clip
        Bound on the global norm of the gradient.
    n_epochs
        Number of steps.
    restore_best
        Leave the module with the weights that had the lowest loss, instead of the last ones.
    progress
        Show a progress bar on standard error.
    description
        Its label.

    Returns
    -------
    Per epoch, `loss` (before the step) and `gradient_norm` (before clipping).

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    history: dict[str, list[float]] = {"loss": [], "gradient_norm": []}
    best_loss = math.inf
    best = [p.detach().clone() for p in parameters] if restore_best else None

    with tqdm(total=n_epochs, desc=description, unit="epoch", disable=not progress) as bar:
        for epoch in range(n_epochs):
            optimizer.zero_grad()
            loss = loss_of()
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{description}: the loss is {value} at epoch {epoch + 1}; try a learning rate below {lr:g}."
                )
            if best is not None and value < best_loss:
                # Before the step: these are the weights that gave this loss.
                best_loss = value
                _copy(parameters, best)
            loss.backward()
            history["gradient_norm"].append(nn.utils.clip_grad_norm_(parameters, clip).item())
            history["loss"].append(value)
            optimizer.step()
            bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            bar.update()
    if best is not None:
        _copy(best, parameters)
    return history


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
