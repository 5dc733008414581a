"""Hyperparameters of STAGATE, their defaults and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass

from stdenoise._base.checks import check_choice, check_number


@dataclass(frozen=True)
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

    n_hidden: int = 512
    n_latent: int = 30
    lr: float = 1e-3
    n_epochs: int = 1000
    batch_size: int | None = None
    weight_decay: float = 1e-4
    clip: float = 5.0
    restore_best: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choice("restore_best", self.restore_best, [True, False])
        for name in ("n_hidden", "n_latent", "n_epochs"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        if self.batch_size is not None:
            check_number("batch_size", self.batch_size, minimum=1, integer=True)
        for name in ("lr", "clip"):
            check_number(name, getattr(self, name), above=0)
        check_number("weight_decay", self.weight_decay, minimum=0)
