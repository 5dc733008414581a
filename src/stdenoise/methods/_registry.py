"""The table of methods: our own, and those that other packages add through entry points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import Any

import pandas as pd

from stdenoise._base.checks import check_choice
from stdenoise._base.inputs import Inputs
from stdenoise.methods._base import Denoiser
from stdenoise.methods.alra import ALRA
from stdenoise.methods.baselines import GeneMean, NeighborMean, PCAReconstruction, PoissonFactorization, Raw
from stdenoise.methods.dca import DCA
from stdenoise.methods.dusted.method import DUSTED
from stdenoise.methods.knn_smoothing import KNNSmoothing
from stdenoise.methods.magic import MAGIC
from stdenoise.methods.scvi import SCVI
from stdenoise.methods.sme import SME
from stdenoise.methods.smoother import Smoother
from stdenoise.methods.sprod import Sprod
from stdenoise.methods.stagate import STAGATE

ENTRY_POINT_GROUP = "stdenoise.methods"
_BUILT_IN: tuple[type[Denoiser], ...] = (
    DUSTED,
    STAGATE,
    DCA,
    SCVI,
    MAGIC,
    KNNSmoothing,
    ALRA,
    Smoother,
    SME,
    Sprod,
    Raw,
    GeneMean,
    NeighborMean,
    PCAReconstruction,
    PoissonFactorization,
)


def registered() -> dict[str, type[Denoiser]]:
    """Map the name of every available method to its class; a built-in name cannot be taken over."""
    methods = {cls.info.name: cls for cls in _BUILT_IN}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, Denoiser)):
            raise TypeError(f"entry point {entry.value!r} of group {ENTRY_POINT_GROUP!r} is not a Denoiser class.")
        methods.setdefault(cls.info.name, cls)
    return methods


def inputs_of(methods: Sequence[Denoiser], *, with_graph: bool = False) -> Inputs:
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


def make_method(method: str | Denoiser, params: dict[str, Any]) -> Denoiser:
    """Turn the `method` argument of a verb into a configured method."""
    if isinstance(method, Denoiser):
        if params:
            raise TypeError(f"parameters {list(params)} belong into the method object, {type(method).__name__}(...).")
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a configured method, not {method!r}.")
    methods = registered()
    check_choice("method", method, list(methods))
    return methods[method](**params)


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
    for column in ("needs", "optional", "writes"):
        frame[column] = frame[column].str.join(", ")
    return frame
