"""The training history of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stdenoise._validate import lookup

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def history(adata: AnnData, key: str = "dusted", *, quantity: str = "loss", ax: Axes | None = None) -> Axes:
    """Draw the loss over epochs.

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
    import numpy as np

    from stdenoise._results import stored_provenance

    record = stored_provenance(adata, key)
    values = np.asarray(lookup(record["history"], quantity, where=f"adata.uns[{key!r}]['history']"))
    if ax is None:
        _, ax = plt.subplots(figsize=(4.5, 3), layout="constrained")
    ax.plot(np.arange(1, len(values) + 1), values)
    ax.set(xlabel="epoch", ylabel=quantity.replace("_", " "), title=f"{record['method']}, seed {record['seed']}")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
