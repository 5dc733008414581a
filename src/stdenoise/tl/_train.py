"""Training of a network, to be applied to other sections."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stdenoise._base import keys as _keys
from stdenoise._base.compute import Checkpoint, Compute
from stdenoise._base.device import resolve_device
from stdenoise._base.paths import CHECKPOINT
from stdenoise._base.random import check_seed
from stdenoise._base.settings import settings
from stdenoise._io.section import open_section
from stdenoise.methods._network import Network, Trained
from stdenoise.methods._registry import inputs_of, registered
from stdenoise.tl._denoise import as_path, check_files, configured
from stdenoise.tl._open_run import check_compute, open_run, spots_of

if TYPE_CHECKING:
    from anndata import AnnData

    from stdenoise._io.source import Source
    from stdenoise.methods._base import Method


def train(
    adata: AnnData | Source | str | Path,
    method: str | Method = "dusted",
    *,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    graph_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    features_key: str | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    compute: Compute | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    **params: Any,
) -> Trained:
    """Train a network on a section, and keep it.

    `stdenoise.tl.denoise` with the trained network as `method` gives the same numbers as with the method itself.

    Parameters
    ----------
    adata
        Annotated data as for `stdenoise.tl.denoise`, or the path of an `.h5ad` or `.zarr`; not changed. Counts that do not fit into the memory
        budget are sorted into the system's folder for temporary files (`TMPDIR`).
    method
        Name of a method that trains a network (`"model"` under `runs` in `stdenoise.methods.table`), or a configured one.
    layer
        Layer with the raw counts; `X` if not given.
    genes
        Genes to model: all of them, `"highly_variable"` or a list of names.
    graph_key
        Key of the spatial graph.
    library_key
        Column of `obs` naming the section of each spot.
    spatial_key
        Key of the coordinates in `obsm`.
    features_key
        Key of image features in `obsm`; none if not given.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    seed
        The same seed gives the same bits on one machine and device.
    progress
        Show a progress bar on standard error; by default only on a terminal.
    compute
        Memory budget, devices, strategy, precision and threads, see `stdenoise.Compute`; those of `stdenoise.settings` if not given.
    checkpoint
        File in which the training is saved on its way, or a `stdenoise.Checkpoint`, which can resume from it.
    **params
        Parameters of the method.

    Returns
    -------
    The trained network, which has `save`.

    Raises
    ------
    ValueError, KeyError, TypeError
        The input or a parameter is not valid, or the method trains no network.
    FloatingPointError
        Training diverged, twice.
    MemoryError
        The network does not fit into the memory budget; the message has the estimates.
    KeyboardInterrupt
        Stopped. With `checkpoint`, what was done is saved.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata, other = st.datasets.tissue(n_spots=100, n_genes=20), st.datasets.tissue(n_spots=80, n_genes=20, seed=1)
    >>> for section in (adata, other):
    ...     st.pp.spatial_graph(section)
    >>> model = st.tl.train(adata, "dusted", n_epochs=5)
    >>> st.tl.denoise(other, model)
    >>> other.layers["dusted_mean"].shape
    (80, 20)
    """
    data = as_path(adata)
    check_seed(seed)
    network, on = configured(method, params), resolve_device(device)
    if "model" not in network.info.runs:
        names = [name for name, cls in registered().items() if "model" in cls.info.runs]
        raise TypeError(f"{network.info.name} trains no network that can be kept; methods that do: {names}.")
    compute, saving = check_compute(compute, checkpoint, network)
    check_files(data, [("checkpoint", saving.path if saving else None, CHECKPOINT)])
    section = open_section(
        data,
        inputs_of([network]),
        layer=layer,
        genes=genes,
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
        may_stay=True,
        allow_fractions=not settings.check_counts,
    )
    with tempfile.TemporaryDirectory(prefix="stdenoise-") as folder:
        running = open_run(
            compute,
            network,
            section,
            device=on,
            seed=seed,
            progress=settings.show_progress(progress),
            checkpoint=saving,
            scratch=Path(folder) / "counts",
        )
        with running as run:
            trains = cast(Network, network)
            return Trained(trains, trains.trained(spots_of(section, run), run))
