"""The training history of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stdenoise._base.checks import lookup
from stdenoise._io.write import stored_provenance

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def history(adata: AnnData, key: str = "dusted", *, quantity: str = "loss", ax: Axes | None = None) -> Axes:
    """Draw the loss over epochs, beside the held-out one where there is one.

    For `"loss"`, the validation loss of the same epochs is drawn too: on an axis of its own where it is the deviance of held-out molecules
    (DUSTED's `schedule="fast"`). A mark shows the epoch whose weights were taken, and another one where training went back to them.

    Parameters
    ----------
    adata
        Annotated data after `stdenoise.tl.denoise`.
    key
        Its `key_added`.
    quantity
        What to draw: a name in `uns[key]["history"]`, such as `"loss"` or `"gradient_norm"`.
    ax
        Axes to draw on; new ones if not given.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        There is no such result, or it has no such history.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> st.tl.denoise(adata, n_epochs=5)
    >>> ax = st.pl.history(adata)
    """
    import matplotlib.pyplot as plt

    record = stored_provenance(adata, key)
    values = np.asarray(lookup(record["history"], quantity, where=f"adata.uns[{key!r}]['history']"))
    if ax is None:
        _, ax = plt.subplots(figsize=(4.5, 3), layout="constrained")
    ax.plot(np.arange(1, len(values) + 1), values, label=quantity.replace("_", " "))
    training = record.get("training", {})
    held_out = record["history"].get("validation_loss", ()) if quantity == "loss" else ()
    if len(held_out):
        right, label = ax, "validation loss"
        if "annealing_from" in training:
            right, label = ax.twinx(), "held-out deviance"
            right.set_ylabel(label)
            right.spines[["top"]].set_visible(False)
        right.plot(np.arange(1, len(held_out) + 1), held_out, color="C1", label=label)
        lines = [*ax.lines, *(right.lines if right is not ax else ())]
        if "best_epoch" in training:
            best = int(training["best_epoch"])
            lines += right.plot(best, held_out[best - 1], "o", color="C1", label=f"best: epoch {best}")
        if "annealing_from" in training:
            turn = int(training["annealing_from"])
            text = (
                f"back to it after epoch {turn}" if training.get("best_epoch", turn) != turn else "learning rate falls"
            )
            lines.append(ax.axvline(turn + 0.5, color="0.6", linestyle="--", label=text))
        ax.legend(lines, [str(line.get_label()) for line in lines], frameon=False, fontsize="small")
    ax.set(xlabel="epoch", ylabel=quantity.replace("_", " "), title=f"{record['method']}, seed {record['seed']}")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
