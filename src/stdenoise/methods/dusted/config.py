"""Hyperparameters of DUSTED, their defaults and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from stdenoise._validate import check_choice, check_number


@dataclass(frozen=True)
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
    lr
        Learning rate of Adam: 1e-4 DLPFC and simulated, 2e-4 HOCWTA (paper).
    n_epochs
        Full-batch training steps (code and paper: 500).
    weight_decay
        L2 term in Adam, coupled to the gradient (code: 1e-4).
    clip
        Bound on the global norm of the gradient (code: 5).
    reduction
        `"published"` sums the negative binomial loss over genes and averages it over spots, and averages the zero-inflated
        loss over all entries, as the code does; `"mean"` averages both over all entries.
    restore_best
        Return the weights with the lowest training loss instead of the last ones.
    return_attention
        Also return the first layer's attention weights (spots x spots, sparse).
    """

    likelihood: Literal["zinb", "nb"] = "zinb"
    gene_attention: bool = True
    alpha: float = 1.5
    gate_reduction: int = 16
    n_hidden: int = 512
    n_latent: int = 30
    lr: float = 1e-4
    n_epochs: int = 500
    weight_decay: float = 1e-4
    clip: float = 5.0
    reduction: Literal["published", "mean"] = "published"
    restore_best: bool = True
    return_attention: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choice("likelihood", self.likelihood, ["zinb", "nb"])
        check_choice("reduction", self.reduction, ["published", "mean"])
        for name in ("gene_attention", "restore_best", "return_attention"):
            check_choice(name, getattr(self, name), [True, False])
        for name in ("gate_reduction", "n_hidden", "n_latent", "n_epochs"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        for name in ("lr", "clip"):
            check_number(name, getattr(self, name), above=0)
        for name in ("alpha", "weight_decay"):
            check_number(name, getattr(self, name), minimum=0)


PRESETS: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "dlpfc": {"likelihood": "zinb", "alpha": 1.5, "lr": 1e-4},
        "hocwta": {"likelihood": "nb", "alpha": 1.0, "lr": 2e-4},
        "simulated": {"likelihood": "nb", "alpha": 0.3, "lr": 1e-4},
    }
)
"""The paper's three settings."""
