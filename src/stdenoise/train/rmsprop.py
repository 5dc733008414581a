"""RMSprop as in Keras."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

RHO = 0.9
EPS = 1e-7


class RMSprop(torch.optim.Adam):
    """Divide each gradient by a running root mean square, `sqrt(v) + 1e-7` with a decay of .9, both as in Keras.

    torch has a fused Adam and no fused RMSprop. Adam without momentum is RMSprop but for a correction of the early averages, and
    rate and epsilon can undo that.

    Parameters
    ----------
    parameters
        What to change.
    lr
        Learning rate.
    weight_decay
        L2 term, coupled to the gradient.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, lr=lr, betas=(0.0, RHO), eps=EPS, weight_decay=weight_decay, fused=True)
        # Where a checkpoint keeps it.
        self.param_groups[0]["n_steps"] = 0

    def step(self, closure: Any = None) -> Any:
        """Change the parameters by one step."""
        (group,) = self.param_groups
        group["n_steps"] += 1
        # Adam divides by sqrt(v) / correction + eps.
        correction = math.sqrt(1 - RHO ** group["n_steps"])
        lr = group["lr"]
        group.update(lr=lr / correction, eps=EPS / correction)
        result = super().step(closure)
        group["lr"] = lr
        return result
