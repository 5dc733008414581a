"""Hyperparameters of STAGATE, their defaults and where each comes from."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from stdenoise._base.config import STRICT, Count, NonNegative, Positive, Switch


@dataclass(frozen=True, config=STRICT)
class STAGATEConfig:
    """Hyperparameters of STAGATE.

    The defaults are those of the authors' current code (the version on PyTorch Geometric). The older version on TensorFlow
    trained 500 epochs at 1e-4, on the norm of the residual instead of its mean square.

    Parameters
    ----------
    n_hidden
        Width of the hidden layers (code: 512).
    n_latent
        Width of the latent representation (code: 30).
    lr
        Learning rate of Adam (code: 1e-3).
    n_epochs
        Passes over the spots (code: 1000).
    batch_size
        Spots per step, from patches of tissue that are drawn anew in each pass; all of them if not given (code).
    weight_decay
        L2 term in Adam, coupled to the gradient (code: 1e-4).
    clip
        Bound on the global norm of the gradient (code: 5).
    restore_best
        Return the weights with the lowest training loss instead of the last ones; the code returns the last ones.
    """

    n_hidden: Count = 512
    n_latent: Count = 30
    lr: Positive = 1e-3
    n_epochs: Count = 1000
    batch_size: Count | None = None
    weight_decay: NonNegative = 1e-4
    clip: Positive = 5.0
    restore_best: Switch = False
