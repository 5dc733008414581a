"""The spatial graph of a section."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stdenoise._base import keys as _keys
from stdenoise._io.build_graph import MEAN_DEGREE, build_graph

if TYPE_CHECKING:
    from anndata import AnnData


def spatial_graph(
    adata: AnnData,
    *,
    radius: float | str = "auto",
    n_neighbors: int | None = None,
    mean_degree: float = MEAN_DEGREE,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    key_added: str = _keys.SPATIAL,
    copy: bool = False,
) -> AnnData | None:
    """Build the graph that joins neighbouring spots.

    Parameters
    ----------
    adata
        Annotated data with coordinates of shape `(n_spots, 2)` or `(n_spots, 3)` in `obsm`.
    radius
        Join spots at a distance in `(0, radius]`, in units of the coordinates. `"auto"` chooses the radius that brings the
        mean number of neighbours as near as possible to `mean_degree`; on an array it ends between two rings of neighbours:
        Visium's hexagonal one gives 6 in the interior, a square one 8 (or 4, with `mean_degree=4`).
    n_neighbors
        Instead of a radius: join each spot to this many nearest ones, in both directions, so that some get more.
    mean_degree
        Aim of `radius="auto"`.
    library_key
        Column of `obs` naming the section of each spot. Sections are not joined, and each gets its own automatic radius.
    spatial_key
        Key of the coordinates in `obsm`; `"X_spatial"` is read where `"spatial"` is missing.
    key_added
        Prefix of the results.
    copy
        Return a changed copy instead of changing `adata`.

    Returns
    -------
    `None`, or with `copy=True` an AnnData. Sets the following fields, where `spatial` stands for `key_added`:

    `obsp["spatial_connectivities"]`
        CSR matrix, 1 for an edge.
    `obsp["spatial_distances"]`
        CSR matrix, lengths of the edges in units of the coordinates.
    `uns["spatial_neighbors"]`
        Keys and parameters as squidpy stores them, and under `"stats"` the mean degree and the numbers of edges, isolated
        spots, coincident spots and connected components.

    Raises
    ------
    KeyError
        No coordinates or no such column of `obs`.
    ValueError
        Coordinates are missing (NaN) or infinite, or an argument is out of range.

    Warns
    -----
    UserWarning
        The mean degree is below 1 or above 50: the radius is likely in other units than the coordinates.

    Notes
    -----
    Spots at the same position are not joined to each other. Isolated spots keep an empty row, and methods fall back to the
    spot itself.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=300, n_genes=5)
    >>> st.pp.spatial_graph(adata)
    >>> 5 < adata.uns["spatial_neighbors"]["stats"]["mean_degree"] <= 6
    True
    """
    return build_graph(
        adata,
        radius=radius,
        n_neighbors=n_neighbors,
        mean_degree=mean_degree,
        library_key=library_key,
        spatial_key=spatial_key,
        key_added=key_added,
        copy=copy,
    )
