"""Hyperparameters of DCA, their defaults and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdenoise._base.checks import check_choice, check_number

LIKELIHOODS = ("nb-conddisp", "nb", "nb-shared", "zinb-conddisp", "zinb", "zinb-shared", "zinb-elempi", "poisson")


@dataclass(frozen=True)
class DCAConfig:
    """Hyperparameters of DCA; the defaults are those of the published code.

    Parameters
    ----------
    likelihood
        `"nb-conddisp"` (negative binomial, a dispersion per spot and gene), `"nb"` (one per gene), `"nb-shared"` (one per
        spot); `"zinb-conddisp"`, `"zinb"`, `"zinb-shared"`, zero-inflated with the same dispersions and a dropout
        probability per spot and gene (`"zinb-shared"`: per spot); `"zinb-elempi"`, whose dropout depends on the logarithm of the
        mean alone, gene by gene; `"poisson"`.
    hidden
        Widths of the hidden layers (code: 64, 32, 64); the middle one is the latent representation.
    batch_size
        Spots per training step (code: 32).
    n_epochs
        Passes over the spots, at most (code: 300).
    lr
        Learning rate of RMSprop (code: 1e-3).
    clip
        Bound on each entry of the gradient (code: 5).
    reduce_lr
        The learning rate falls to a tenth after this many epochs without improvement of the validation loss (code: 10).
    early_stop
        Training stops after this many epochs without improvement of the validation loss (code: 15).
    validation_fraction
        Share of spots that is not trained on (code: .1). With 0 the training loss takes the place of the validation loss.
    ridge
        Penalty on the squared dropout probabilities of the zero-inflated likelihoods (code: 0).
    restore_best
        Return the weights with the lowest validation loss instead of the last ones, as the code does.
    """

    likelihood: str = "nb-conddisp"
    hidden: tuple[int, ...] | list[int] = (64, 32, 64)
    batch_size: int = 32
    n_epochs: int = 300
    lr: float = 1e-3
    clip: float = 5.0
    reduce_lr: int = 10
    early_stop: int = 15
    validation_fraction: float = 0.1
    ridge: float = 0.0
    restore_best: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
        # An array is what comes back from disk.
        if not isinstance(self.hidden, tuple | list | np.ndarray) or len(self.hidden) == 0:
            raise TypeError(f"hidden must be a list of one or more widths, not {self.hidden!r}.")
        for width in self.hidden:
            check_number("each width in hidden", width, minimum=1, integer=True)
        # A tuple, also where a list was given: it cannot change.
        object.__setattr__(self, "hidden", tuple(map(int, self.hidden)))
        for name in ("batch_size", "n_epochs", "reduce_lr", "early_stop"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        for name in ("lr", "clip"):
            check_number(name, getattr(self, name), above=0)
        for name in ("validation_fraction", "ridge"):
            check_number(name, getattr(self, name), minimum=0)
        if self.validation_fraction >= 1:
            raise ValueError(f"validation_fraction must be below 1, not {self.validation_fraction!r}.")
        if self.ridge and not self.likelihood.startswith("zinb"):
            raise ValueError(f"ridge={self.ridge!r} needs a zero-inflated likelihood, not {self.likelihood!r}.")
        check_choice("restore_best", self.restore_best, [True, False])
