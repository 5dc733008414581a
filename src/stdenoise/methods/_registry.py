"""The table of methods: our own, and those that other packages add through entry points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pandas as pd

from stdenoise._base.checks import check_choice
from stdenoise._base.inputs import Inputs
from stdenoise.methods._base import Method
from stdenoise.methods._network import Model, Network, Trained, read_model

ENTRY_POINT_GROUP = "stdenoise.methods"
_BUILT_IN = {
    "dusted": "dusted.method:DUSTED",
    "stagate": "stagate.method:STAGATE",
    "dca": "dca.method:DCA",
    "scvi": "scvi:SCVI",
    "magic": "magic:MAGIC",
    "knn_smoothing": "knn_smoothing:KNNSmoothing",
    "alra": "alra:ALRA",
    "smoother": "smoother:Smoother",
    "sme": "sme:SME",
    "sprod": "sprod.method:Sprod",
    "raw": "baselines:Raw",
    "gene_mean": "baselines:GeneMean",
    "neighbor_mean": "baselines:NeighborMean",
    "pca_reconstruction": "baselines:PCAReconstruction",
    "poisson_factorization": "baselines:PoissonFactorization",
}
"""Module and class of each method of ours; loaded when it is asked for."""


def registered(task: str | None = None) -> dict[str, type[Method]]:
    """Map the name of every available method, or of those for a task, to its class; a built-in name cannot be taken over."""
    methods = {name: _load(name) for name in _BUILT_IN}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise TypeError(f"entry point {entry.value!r} of group {ENTRY_POINT_GROUP!r} is not a Method class.")
        methods.setdefault(cls.info.name, cls)
    return {name: cls for name, cls in methods.items() if task in (None, cls.info.task)}


def _load(name: str) -> type[Method]:
    module, _, cls = _BUILT_IN[name].partition(":")
    found: type[Method] = getattr(import_module(f"stdenoise.methods.{module}"), cls)
    return found


def inputs_of(methods: Sequence[Method], *, with_graph: bool = False) -> Inputs:
    """What the methods read of a section, and the graph in any case if asked for."""
    graph = ["graph"] if with_graph else []
    needed = frozenset([*graph, *(what for method in methods for what in method.info.needs)])
    read = needed.union(what for method in methods for what in method.info.optional)
    return Inputs(
        needed,
        read,
        tuple(method.info.name for method in methods),
        lambda what: [name for name, cls in registered().items() if cls.info.reads(what)],
    )


def make_method(method: str | Method, params: dict[str, Any]) -> Method:
    """Turn the `method` argument of a verb into a configured method."""
    if isinstance(method, Method):
        if params:
            raise TypeError(f"parameters {list(params)} belong into the method object, {type(method).__name__}(...).")
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a configured method, not {method!r}.")
    if method in _BUILT_IN:
        return _load(method)(**params)
    methods = registered()
    check_choice("method", method, list(methods))
    return methods[method](**params)


def load(path: str | Path) -> Trained:
    """Read a trained network from a file.

    Parameters
    ----------
    path
        What `save` of a trained network wrote. Nothing in it is executed.

    Returns
    -------
    The network, to be passed as `method` to `stdenoise.tl.denoise`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is damaged, no model, or of another version.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     st.tl.train(adata, "dusted", n_epochs=5).save(Path(folder) / "dusted.model")
    ...     model = st.methods.load(Path(folder) / "dusted.model")
    >>> st.tl.denoise(adata, model)
    """
    content = read_model(Path(path))
    try:
        network = make_method(content.pop("method"), content.pop("params"))
        if not isinstance(network, Network):
            raise TypeError(f"{network.info.name} is not trained.")
        return Trained(network, Model(**content))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is of another version of stdenoise: {error}") from error


def table() -> pd.DataFrame:
    """List every available method.

    Returns
    -------
    One row per method, indexed by name: summary, what it needs beside counts and what it can use, the scale of its output, the arrays it
    writes, what limits its size, the publication and the licence of the original code.

    Examples
    --------
    >>> import stdenoise as st
    >>> st.methods.table().loc["dusted", "scale"]
    'counts'
    """
    rows = [asdict(cls.info) for cls in registered().values()]
    frame = pd.DataFrame(rows).set_index("name")
    frame["runs"] = frame["runs"].map(sorted)
    for column in ("needs", "optional", "writes", "runs"):
        frame[column] = frame[column].str.join(", ")
    return frame
