"""Hyperparameters of DCA, their defaults and where each comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from stdenoise._base.config import STRICT, Count, NonNegative, Positive, Switch, Widths


@dataclass(frozen=True, config=STRICT)
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

    likelihood: Literal[
        "nb-conddisp", "nb", "nb-shared", "zinb-conddisp", "zinb", "zinb-shared", "zinb-elempi", "poisson"
    ] = "nb-conddisp"
    hidden: Widths = (64, 32, 64)
    batch_size: Count = 32
    n_epochs: Count = 300
    lr: Positive = 1e-3
    clip: Positive = 5.0
    reduce_lr: Count = 10
    early_stop: Count = 15
    validation_fraction: Annotated[NonNegative, Field(lt=1)] = 0.1
    ridge: NonNegative = 0.0
    restore_best: Switch = False

    def __post_init__(self) -> None:
        """Refuse values that do not go together."""
        if self.ridge and not self.likelihood.startswith("zinb"):
            raise ValueError(f"ridge={self.ridge!r} needs a zero-inflated likelihood, not {self.likelihood!r}.")
