"""Hyperparameters of DUSTED, their defaults and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic.dataclasses import dataclass as checked

from stdenoise._base.config import STRICT, Count, NonNegative, Positive, Switch


@checked(frozen=True, config=STRICT)
class DUSTEDConfig:
    """Hyperparameters of DUSTED.

    The defaults are those of the released run on a DLPFC section. "Code" and "paper" below name the source of a default.

    Parameters
    ----------
    likelihood
        `"zinb"` (zero-inflated negative binomial; DLPFC) or `"nb"` (negative binomial; simulated data and HOCWTA), which
        has no dropout layer.
    gene_attention
        Gate the input with gene channel attention; `False` is the paper's ablation.
    alpha
        Strength of the gate, `x * (1 + alpha * gate)`: 1.5 DLPFC, 1.0 HOCWTA, 0.3 simulated (paper).
    gate_reduction
        The gate's hidden layer has `n_genes // gate_reduction` units (code: 16).
    n_hidden
        Width of the hidden layers (code and paper: 512).
    n_latent
        Width of the latent representation (code and paper: 30).
    schedule
        `"paper"`: full-batch steps at a constant learning rate. `"fast"`: steps on patches of tissue at a learning rate that rises, stays
        while molecules held out of a part of the spots are predicted better, and falls to zero while all molecules are seen.
    lr
        Learning rate of Adam. `"paper"`: 1e-4 DLPFC and simulated, 2e-4 HOCWTA (paper); `"fast"`: its highest, 1e-3.
    n_epochs
        `"paper"`: 500 steps (code and paper). `"fast"`: at most 20 passes over the spots; on small sections a pass is repeated until an
        epoch has about 12 steps.
    batch_size
        Spots per step: all of them with `"paper"`; with `"fast"` a 24th of them, but 128 to 2048. Memory follows it, not the number of
        spots; neither memory nor the number of devices changes what a step computes.
    patience
        Epochs without improvement that end the middle part of `"fast"`, after the first eight: 5.
    weight_decay
        L2 term in Adam, coupled to the gradient (code: 1e-4). With `"fast"` it is divided by the number of genes over 3000, where they
        are more: the loss is a mean over genes, so that its gradient falls with their number, and an equal decay would win.
    clip
        Bound on the global norm of the gradient (code: 5).
    reduction
        `"published"` sums the negative binomial loss over genes and averages it over spots, and averages the zero-inflated
        loss over all entries, as the code does; `"mean"` averages both over all entries. The former with `"paper"`, the latter with
        `"fast"`, if not given: the weight decay then tells on both likelihoods.
    restore_best
        With `"paper"`, return the weights with the lowest training loss instead of the last ones.
    return_attention
        Also return the first layer's attention weights (spots x spots, sparse).
    """

    likelihood: Literal["zinb", "nb"] = "zinb"
    gene_attention: Switch = True
    alpha: NonNegative = 1.5
    gate_reduction: Count = 16
    n_hidden: Count = 512
    n_latent: Count = 30
    schedule: Literal["paper", "fast"] = "paper"
    lr: Positive | None = None
    n_epochs: Count | None = None
    batch_size: Count | None = None
    patience: Count | None = None
    weight_decay: NonNegative = 1e-4
    clip: Positive = 5.0
    reduction: Literal["published", "mean"] | None = None
    restore_best: Switch = True
    return_attention: Switch = False

    def __post_init__(self) -> None:
        """Refuse values that do not go together."""
        if self.schedule == "paper" and self.patience is not None:
            raise ValueError(f"patience={self.patience!r} applies to schedule='fast' only.")
        if self.schedule == "fast" and not self.restore_best:
            raise ValueError("restore_best=False applies to schedule='paper' only.")


@dataclass(frozen=True)
class Schedule:
    """What stands for parameters that are not given."""

    lr: float
    n_epochs: int
    reduction: str
    pass_cost: float
    """Of a pass over the spots, in full-batch steps, about."""


SCHEDULES: MappingProxyType[str, Schedule] = MappingProxyType(
    {
        "paper": Schedule(lr=1e-4, n_epochs=500, reduction="published", pass_cost=1.0),
        "fast": Schedule(lr=1e-3, n_epochs=20, reduction="mean", pass_cost=2.2),
    }
)

PRESETS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "dlpfc": {"likelihood": "zinb", "alpha": 1.5, "lr": 1e-4},
        "hocwta": {"likelihood": "nb", "alpha": 1.0, "lr": 2e-4},
        "simulated": {"likelihood": "nb", "alpha": 0.3, "lr": 1e-4},
    }
)
"""The paper's three settings."""
