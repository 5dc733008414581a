"""Where data sets come from: checking what a config says about them, and making them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stdenoise import datasets, pp
from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, check_number, lookup, near_match
from stdenoise._base.keys import GraphKeys
from stdenoise._io import disk
from stdenoise.benchmark._units import Dataset
from stdenoise.datasets._patterns import PATTERNS
from stdenoise.pp._highly_variable import mark_highly_variable

if TYPE_CHECKING:
    from anndata import AnnData

    from stdenoise.benchmark._schema import DatasetTable

KINDS = ("simulate", "tissue", "load", "path")
_KNOWN = {"simulate": ("cell_type", "true_counts"), "tissue": ("region", "true_mean")}
"""Labels and truth of the tissues made in code."""


def expand(table: DatasetTable, *, folder: Path) -> list[Dataset]:
    """Turn one entry of a config into data sets; raise where it is wrong."""
    kinds = [kind for kind in KINDS if getattr(table, kind) is not None]
    if len(kinds) != 1:
        raise ValueError(f"needs exactly one of {list(KINDS)}, not {kinds or 'none'}.")
    kind = kinds[0]
    source = getattr(table, kind)
    labels, truth = _KNOWN.get(kind, (None, None))
    if table.graph is not None:
        _check_call(pp.spatial_graph, table.graph, "graph", hidden=("adata", "key_added", "copy"))
    shared: dict[str, Any] = {
        "kind": kind,
        "graph": table.graph,
        "n_top_genes": table.n_top_genes,
        "labels": table.labels or labels,
        "truth": table.truth or truth,
    }
    name = table.name or ("*" if kind == "simulate" else None)
    if not name:
        raise ValueError("'name' is missing.")
    if kind == "simulate":
        return _simulations(source, name, table.group, shared)
    if kind == "path":
        shared |= {"source": _check_file(folder / source, shared)}
    else:
        hidden = ("folder",) if kind == "load" else ()
        _check_call(getattr(datasets, kind), source, kind, hidden=hidden)
        if kind == "load":
            _check_registered(source)
        shared["source"] = source
    return [Dataset(name=name, group=table.group or name, **shared)]


def _simulations(source: Mapping[str, Any], name: str, group: str | None, shared: dict[str, Any]) -> list[Dataset]:
    """One data set per pattern, setting and replicate; `*` in the name stands for them."""
    axes = {"patterns": list(PATTERNS), "settings": [1, 2, 3, 4], "replicate": 0}
    rest = {key: value for key, value in source.items() if key not in axes}
    hidden = ("pattern", "setting", "replicate")
    _check_call(datasets.simulate, rest, "simulate", hidden=hidden, also=tuple(axes))
    patterns, settings, replicates = (_as_list(source.get(key, default)) for key, default in axes.items())
    for pattern, setting, replicate in product(patterns, settings, replicates):
        check_choice("patterns", pattern, list(PATTERNS))
        check_choice("settings", setting, [1, 2, 3, 4])
        check_number("replicate", replicate, minimum=0, integer=True)
    if "*" not in name and len(patterns) * len(settings) * len(replicates) > 1:
        raise ValueError(
            f"name={name!r} stands for several tissues; put a * where their names belong, such as 'sim-*'."
        )
    out = []
    for replicate, pattern, setting in product(replicates, patterns, settings):
        own = f"{pattern}-{setting}" + (f"-r{replicate}" if replicate else "")
        out.append(
            Dataset(
                name=name.replace("*", own),
                group=group or name.replace("*", f"setting {setting}"),
                source={"pattern": pattern, "setting": setting, "replicate": replicate, **rest},
                **shared,
            )
        )
    return out


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_call(
    function: Any, args: Mapping[str, Any], where: str, *, hidden: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> None:
    """Raise unless a function takes these arguments."""
    known = [*also, *(name for name in inspect.signature(function).parameters if name not in hidden)]
    for name in args:
        if name not in known:
            raise TypeError(f"{where} takes no {name!r}; it takes {known}.{near_match(name, known)}")


def _check_registered(source: Mapping[str, Any]) -> None:
    table = datasets.registry()
    name = lookup(source, "name", where="load")
    check_choice("load.name", name, list(dict.fromkeys(table["name"])))
    sections = list(table.loc[table["name"] == name, "section"])
    if "section" in source or len(sections) > 1:
        check_choice("load.section", source.get("section"), sections)


def _check_file(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Check what can be seen without reading the file, and return its path with a hash of its content."""
    check_choice("file format of path", path.suffix, [".h5ad", ".zarr"])
    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}.")
    if path.suffix == ".h5ad":
        import h5py

        with h5py.File(path) as file:
            for key, place, name in (("labels", "obs", wanted["labels"]), ("truth", "layers", wanted["truth"])):
                there = dict.fromkeys(file.get(place, ()))
                if name is not None:
                    lookup(there, name, where=f"{place} of {path.name!r}", advice=f"See {key} =.")
    # Only the content tells whether results are out of date: the file may be moved, or written anew.
    content = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            content.update(part.name.encode() if path.is_dir() else b"")
            with part.open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
    return {"path": str(path.absolute()), "content": content.hexdigest()}


def make(dataset: Mapping[str, Any]) -> AnnData:
    """Make a data set with its graph and highly variable genes, and check that it has its labels and truth."""
    kind, source = dataset["kind"], dataset["source"]
    adata = disk.read(Path(source["path"])) if kind == "path" else getattr(datasets, kind)(**source)
    if dataset["labels"] is not None:
        lookup(adata.obs, dataset["labels"], where="adata.obs")
    if dataset["truth"] is not None:
        lookup(adata.layers, dataset["truth"], where="adata.layers")
    if dataset["graph"] is not None or GraphKeys(_keys.SPATIAL).connectivities not in adata.obsp:
        pp.spatial_graph(adata, **(dataset["graph"] or {}))
    if dataset["n_top_genes"] is not None:
        mark_highly_variable(adata, dataset["n_top_genes"], None)
    return adata
