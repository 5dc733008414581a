"""Raw beside denoised expression on the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stdenoise._base import keys as _keys
from stdenoise._base.checks import lookup, near_match
from stdenoise._io.read import read_coordinates
from stdenoise._io.write import read_denoised
from stdenoise.spatial.normalize import lognorm

if TYPE_CHECKING:
    from anndata import AnnData


def compare(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    key: str = "dusted",
    layer: str | None = None,
    normalize: bool = True,
    spatial_key: str = _keys.SPATIAL,
    size: float | None = None,
    cmap: str = "viridis",
) -> np.ndarray:
    """Draw raw and denoised expression side by side, one row per gene.

    Parameters
    ----------
    adata
        Annotated data after `stdenoise.tl.denoise`.
    genes
        One or more of the modelled genes.
    key
        `key_added` of the result.
    layer
        Layer of the raw counts; the one that was denoised if not given.
    normalize
        Bring both sides to `log1p` of counts per 10 000 over the modelled genes, so that depth does not show. Results on
        the `"log1p"` scale are drawn as they are.
    spatial_key
        Key of the coordinates in `obsm`; the first two dimensions are drawn, y downwards as in an image.
    size
        Area of a spot in points squared; chosen from the number of spots if not given.
    cmap
        Colour map. Each panel has its own scale, up to its 99th percentile.

    Returns
    -------
    Array of axes, shape `(n_genes, 2)`.

    Raises
    ------
    KeyError
        There is no such result, gene, layer or coordinates.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> st.tl.denoise(adata, n_epochs=5)
    >>> axes = st.pl.compare(adata, ["gene1", "gene2"])
    """
    import matplotlib.pyplot as plt

    result = read_denoised(adata, key)
    record = result.uns[key]
    genes = [genes] if isinstance(genes, str) else list(genes)
    missing = [gene for gene in genes if gene not in result.var_names]
    if missing or not genes:
        hint = near_match(missing[0], result.var_names) if missing else ""
        raise KeyError(f"genes {missing[:5]} are not among the {result.n_vars} genes modelled in {key!r}.{hint}")
    xy = read_coordinates(adata, spatial_key)[:, :2]
    used = record["layer"] if layer is None else layer
    source = adata.X if used == "X" else lookup(adata.layers, used, where="adata.layers")
    columns = adata.var_names.get_indexer(result.var_names)
    raw, positions = source[:, columns], result.var_names.get_indexer(genes)
    panels = {
        "raw": _columns(raw, positions, normalize),
        key: _columns(result.X, positions, normalize and record["scale"] == "counts"),
    }

    height = 3.2 * np.clip(np.ptp(xy[:, 1]) / max(np.ptp(xy[:, 0]), 1e-12), 0.5, 2)
    figure, axes = plt.subplots(
        len(genes), 2, figsize=(7.6, height * len(genes)), squeeze=False, layout="constrained", sharex=True, sharey=True
    )
    size = size or float(np.clip(30_000 / len(xy), 0.2, 60))
    for row, gene in enumerate(genes):
        for ax, (title, values) in zip(axes[row], panels.items(), strict=True):
            top = float(np.percentile(values[:, row], 99)) or float(values[:, row].max())
            dots = ax.scatter(*xy.T, c=values[:, row], s=size, cmap=cmap, vmin=values[:, row].min(), vmax=top, lw=0)
            ax.set(title=f"{gene}, {title}", xticks=[], yticks=[], aspect="equal")
            ax.spines[:].set_visible(False)
            bar = figure.colorbar(dots, ax=ax, shrink=0.7)
            bar.outline.set_visible(False)
    axes[0, 0].invert_yaxis()
    return np.asarray(axes)


def _columns(matrix: Any, positions: np.ndarray, normalize: bool) -> np.ndarray:
    """Take columns of a dense or sparse matrix, as `log1p` of counts per 10 000 if asked for."""
    if sparse.issparse(matrix):
        matrix = sparse.csr_matrix(matrix)
    chosen = (lognorm(matrix) if normalize else matrix)[:, positions]
    return np.asarray(chosen.toarray() if sparse.issparse(chosen) else chosen, dtype=np.float64)
