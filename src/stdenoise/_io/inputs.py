"""Which keys of an AnnData methods read; a key that names nothing, or that no method reads, is an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stdenoise._base import keys as _keys
from stdenoise._base.checks import ADVICE, find_spatial_key, lookup, refuse_key
from stdenoise._base.keys import GraphKeys
from stdenoise.methods._base import Denoiser
from stdenoise.methods._registry import registered

if TYPE_CHECKING:
    from anndata import AnnData


def keys_to_read(
    adata: AnnData,
    methods: Sequence[Denoiser],
    *,
    graph_key: str,
    library_key: str | None,
    spatial_key: str,
    features_key: str | None,
    with_graph: bool = False,
) -> dict[str, str | None]:
    """Return the keys of what at least one of the methods reads, and `None` for the others.

    Parameters
    ----------
    adata
        Annotated data; may have been opened lazily.
    methods
        Those that share the keys.
    graph_key, library_key, spatial_key, features_key
        As given to a verb.
    with_graph
        Whether the graph is read in any case.

    Raises
    ------
    KeyError
        A key names nothing. The default of what no method needs is exempt.
    TypeError
        A key was given, and none of the methods reads what it names; or it is no string.
    """
    if library_key is not None:
        lookup(adata.obs, library_key, where="adata.obs")
    if not isinstance(graph_key, str):
        raise TypeError(f"graph_key must be a string, not {graph_key!r}.")
    keys: dict[str, str | None] = {"library_key": library_key}
    for name, what, key, default in (
        ("graph_key", "graph", graph_key, _keys.SPATIAL),
        ("spatial_key", "coordinates", spatial_key, _keys.SPATIAL),
        ("features_key", "features", features_key, None),
    ):
        keys[name] = None
        needed = (with_graph and what == "graph") or any(what in method.info.needs for method in methods)
        is_read = needed or any(method.info.reads(what) for method in methods)
        if key is None or not (is_read or key != default):
            continue
        found = adata.obsp if what == "graph" else adata.obsm
        where = "adata.obsp" if what == "graph" else "adata.obsm"
        if not is_read:
            refuse_key(name, key, found, _place(what, key), where=where, why=_why(what, methods))
        there = find_spatial_key(adata, key) if what == "coordinates" else key
        if needed or key != default:
            lookup(found, _place(what, there), where=where, advice=ADVICE[what])
        keys[name] = there if _place(what, there) in found else None
    return keys


def _place(what: str, key: str) -> str:
    return GraphKeys(key).connectivities if what == "graph" else key


def _why(what: str, methods: Sequence[Denoiser]) -> str:
    """Say which methods do not read it, and which do."""
    users = [name for name, cls in registered().items() if cls.info.reads(what)]
    reads = "reads" if len(methods) == 1 else "read"
    names = ", ".join(method.info.name for method in methods)
    return f"for {names}, which {reads} no {what}; methods that do: {users}"
