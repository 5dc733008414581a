"""Building the spatial graph of a section, under squidpy's keys."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_name, check_number
from stdenoise._base.keys import GraphKeys
from stdenoise._io.read import check_anndata, find_spatial_key, output_of, read_coordinates, read_libraries
from stdenoise.spatial import radius as build

if TYPE_CHECKING:
    from anndata import AnnData

    from stdenoise.spatial.radius import Edges

logger = logging.getLogger("stdenoise")

MEAN_DEGREE = 6.0
_SPARSE_DEGREE, _DENSE_DEGREE = 1, 50


def build_graph(
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
    """Do what `st.pp.spatial_graph` says."""
    check_anndata(adata)
    check_name("key_added", key_added)
    if radius != "auto":
        if isinstance(radius, str):
            raise ValueError(f"radius={radius!r} is not valid; choose 'auto' or a number above 0.")
        check_number("radius", radius, above=0)
    if n_neighbors is not None:
        check_number("n_neighbors", n_neighbors, minimum=1, integer=True)
        if radius != "auto":
            raise ValueError(f"radius={radius!r} and n_neighbors={n_neighbors!r} exclude each other; give one.")
    check_number("mean_degree", mean_degree, above=0)
    if mean_degree != MEAN_DEGREE and (n_neighbors is not None or radius != "auto"):
        raise ValueError(f"mean_degree={mean_degree!r} applies to radius='auto' only.")
    spatial_key = find_spatial_key(adata, spatial_key)
    coordinates = read_coordinates(adata, spatial_key)

    def edges_of(xy: np.ndarray) -> Edges:
        if n_neighbors is not None:
            return build.neighbor_edges(xy, n_neighbors)
        if isinstance(radius, str):
            return build.auto_radius_edges(xy, mean_degree)
        return build.radius_edges(xy, radius)

    if library_key is None:
        whole = edges_of(coordinates)
        distances, radii, n_coincident = whole.distances, [whole.radius], whole.n_coincident
    else:
        libraries, codes = read_libraries(adata, library_key)
        members = [np.flatnonzero(codes == code) for code in range(len(libraries))]
        parts = [edges_of(coordinates[index]) for index in members]
        back = np.argsort(np.concatenate(members), kind="stable")
        distances = sparse.block_diag([part.distances for part in parts], format="csr")[back][:, back]
        distances.sort_indices()
        radii = [part.radius for part in parts]
        n_coincident = sum(part.n_coincident for part in parts)

    degree = np.diff(distances.indptr)
    n_components = int(connected_components(distances, directed=False, return_labels=False))
    stats = {
        "mean_degree": float(degree.mean()),
        "n_edges": int(distances.nnz),
        "n_isolated": int((degree == 0).sum()),
        "n_coincident": n_coincident,
        "n_components": n_components,
    }
    _report(stats, radii)

    keys = GraphKeys(key_added)
    params: dict[str, Any] = {"coord_type": "generic", "spatial_key": spatial_key, "library_key": library_key or ""}
    if n_neighbors is not None:
        params["n_neighbors"] = n_neighbors
    elif radius == "auto":
        params["mean_degree"] = mean_degree
    if library_key is None:
        params["radius"] = radii[0]
    else:
        # Names as values: a "/" in a key would not survive the disk.
        params |= {"libraries": np.array(libraries, dtype=object), "radius": np.array(radii)}
    connectivities = distances.copy()
    connectivities.data = np.ones_like(distances.data)
    out = output_of(adata, copy=copy)
    out.obsp[keys.connectivities] = connectivities
    out.obsp[keys.distances] = distances
    out.uns[keys.uns] = {
        "connectivities_key": keys.connectivities,
        "distances_key": keys.distances,
        "params": params,
        "stats": stats,
    }
    return out if copy else None


def _report(stats: dict[str, Any], radii: list[float]) -> None:
    """Log the graph's statistics, and warn when they look like a mistake."""
    logger.info(
        "spatial graph: radius %s, %.2f neighbours on average, %d isolated and %d coincident spots, %d components",
        ", ".join(f"{r:g}" for r in radii),
        *(stats[name] for name in ("mean_degree", "n_isolated", "n_coincident", "n_components")),
    )
    degree = stats["mean_degree"]
    if not _SPARSE_DEGREE <= degree <= _DENSE_DEGREE:
        warnings.warn(
            f"spots have {degree:.3g} neighbours on average; is the radius in the units of the coordinates? "
            "radius='auto' chooses one that gives about 6.",
            UserWarning,
            stacklevel=4,
        )
