"""The verb that runs every denoising method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_choice, check_name
from stdenoise._base.device import resolve_device, warn_of_threads
from stdenoise._base.files import check_writable
from stdenoise._base.keys import GraphKeys
from stdenoise._base.memory import read_memory
from stdenoise._base.paths import ANNDATA, CHECKPOINT, MODEL, check_paths, files_of
from stdenoise._base.random import check_seed
from stdenoise._base.settings import settings
from stdenoise._io import disk
from stdenoise._io import rows as _stream
from stdenoise._io.build_graph import build_graph
from stdenoise._io.read import check_anndata, check_unique_genes, keys_to_read
from stdenoise._io.section import Source, open_source
from stdenoise.methods._models import read_model
from stdenoise.methods._registry import inputs_of, make_method
from stdenoise.tl import _fit
from stdenoise.tl._network import Circumstances

if TYPE_CHECKING:
    from anndata import AnnData

    from stdenoise.methods import Denoiser
    from stdenoise.methods._base import Model

_DEFAULT_METHOD = "dusted"


def denoise(
    adata: AnnData | Source | str | Path,
    method: str | Denoiser | None = None,
    *,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    graph_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    features_key: str | None = None,
    key_added: str | None = None,
    check_counts: bool = True,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    copy: bool = False,
    memory: str | float | None = None,
    devices: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    checkpoint: str | Path | None = None,
    checkpoint_minutes: float = 10.0,
    resume: bool = False,
    save_model: str | Path | None = None,
    model: str | Path | None = None,
    out: str | Path | None = None,
    arrays: Sequence[str] | None = None,
    dtype: str | None = None,
    **params: Any,
) -> AnnData | None:
    """Denoise the counts of a tissue section.

    Parameters
    ----------
    adata
        Annotated data: raw counts of shape `(n_spots, n_genes)`, dense or sparse, and for graph methods a spatial graph
        (see `stdenoise.pp.spatial_graph`; squidpy's graphs are read too). `X`, `raw` and existing layers are not changed.
        With `out`, it may be backed or opened lazily, or the path of an `.h5ad` or `.zarr`. Of a file that has no spatial graph,
        one is built for a method that needs it, as by `stdenoise.pp.spatial_graph`.
    method
        Name of a method, see `stdenoise.methods.table`, or a configured one such as
        `stdenoise.methods.DUSTED(n_epochs=200)`. If not given, that of `model`, or else `"dusted"`.
    layer
        Layer with the raw counts; `X` if not given.
    genes
        Genes to model: all of them, `"highly_variable"` (the column of `var`), or a list of names. Size factors are
        computed over all genes of `adata` in any case, so choose genes here rather than by slicing `adata`.
    graph_key
        Key of the spatial graph: `obsp["<graph_key>_connectivities"]`. Like `spatial_key`, only for methods that read it: a key other than
        the default is an error for others.
    library_key
        Column of `obs` naming the section of each spot. An edge between two sections is an error.
    spatial_key
        Key of the coordinates in `obsm`, for methods that need them, and for DUSTED and STAGATE, which cut patches by them where there
        are any.
    features_key
        Key of image features in `obsm`, for methods that can use them (see `stdenoise.pp.image_features`); none if not given.
    key_added
        Prefix of the results; the name of the method if not given.
    check_counts
        Refuse fractional and log-transformed values. With `False` fractional values are taken as they are.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    seed
        The same seed gives the same bits on one machine and device.
    progress
        Show a progress bar on standard error; by default only on a terminal.
    copy
        Return a changed copy instead of changing `adata`.
    memory
        Memory that a network may use, in GB or as text such as `"6 GB"`; on a GPU, of its own memory. Within it, all spots are worked on
        at a time, or patches of tissue; the result is the same. 60 % of what is free if not given.
    devices
        GPUs, or processes on the CPU, that train a network together; the result is the same but for rounding. Under `torchrun` and
        `srun` the processes there are work together in any case.
    strategy
        How they are started, as in Lightning Fabric.
    precision
        `"32-true"`, or `"bf16-mixed"`: the widest products of DUSTED in bfloat16, for GPUs.
    checkpoint
        File in which the training of a network is saved on its way.
    checkpoint_minutes
        Time between two savings. An interruption saves too.
    resume
        Go on from `checkpoint`, where that file is there.
    save_model
        File for the trained network.
    model
        File of a trained network, to be applied instead of a training; the method and its parameters come from there. Genes are found by
        name; means are expected at the depth of each spot, in units of the section that the network was trained on.
    out
        Write the section with the results to this `.zarr` or `.h5ad`, and leave `adata` as it is. A `.zarr` is written from disk to
        disk where memory asks for it.
    arrays
        Arrays to keep beside the mean: of `"dispersion"`, `"dropout"` and `"latent"` those that the configured method writes; all of them
        if not given.
    dtype
        `"float32"` or `"float16"`, of the arrays that have the size of the data. If not given: float32, and in a file (`out`) float32
        rounded to 9 significant bits, within 0.2 %, which takes about half the space.
    **params
        Parameters of the method, for DUSTED the fields of `stdenoise.methods.DUSTEDConfig` and `preset`.

    Returns
    -------
    `None`, or with `copy=True` an AnnData. Sets the following fields, where `dusted` stands for `key_added`:

    `layers["dusted_mean"]`
        Denoised expression, on the scale named in `uns["dusted"]["scale"]`: for `"counts"` an expected count at the depth
        of the spot, to be normalised like counts.
    `layers["dusted_dispersion"]`, `layers["dusted_dropout"]`
        Inverse dispersion and dropout probability, where the model has them.
    `obsm["X_dusted"]`
        Latent representation, shape `(n_spots, n_latent)`.
    `uns["dusted"]`
        Method, parameters, keys of what was read, scale, genes, seed, device, versions and training history.

    With a gene subset, the first three are DataFrames in `obsm` under the same names, and `var["dusted_modelled"]` marks the
    genes; `stdenoise.get.denoised` returns an AnnData of them. With `return_attention=True`, `obsp["dusted_attention"]`
    holds the first layer's attention weights, self loops included.

    Raises
    ------
    ValueError, KeyError, TypeError
        The input or a parameter is not valid, or a file would be written over what is read. Nothing is written then.
    FileExistsError
        Something else is where `out`, `checkpoint` or `save_model` would be written.
    FloatingPointError
        Training diverged, twice: the first time it goes on from the last good weights at half the learning rate. Nothing is
        written then.
    MemoryError
        A network does not fit into the memory; the message has the estimates.
    KeyboardInterrupt
        Stopped. With `checkpoint`, what was done is saved.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.tissue(n_spots=100, n_genes=20)
    >>> st.pp.spatial_graph(adata)
    >>> st.tl.denoise(adata, method="dusted", n_epochs=5)
    >>> adata.layers["dusted_mean"].shape
    (100, 20)
    """
    files = {"checkpoint": checkpoint, "save_model": save_model, "model": model, "out": out}
    paths = {name: None if value is None else Path(value) for name, value in files.items()}
    check_seed(seed)
    _check_output(paths["out"], copy=copy, dtype=dtype)
    trained = None
    if paths["model"] is None:
        denoiser = make_method(_DEFAULT_METHOD if method is None else method, params)
    else:
        denoiser, trained = _read_model(paths["model"], method, genes, params)
    written = _check_arrays(arrays, denoiser)
    show_progress = settings.show_progress(progress)
    key = denoiser.info.name if key_added is None else key_added
    check_name("key_added", key)
    if isinstance(adata, str):
        adata = Path(adata)
    _check_paths(adata, paths)

    how = Circumstances(
        memory=None if memory is None else read_memory(memory),
        devices=devices,
        strategy=strategy,
        precision=precision,
        checkpoint=paths["checkpoint"],
        checkpoint_minutes=checkpoint_minutes,
        resume=resume,
        save_model=paths["save_model"],
    )
    how.check_applies_to(denoiser, is_trained=trained is not None)
    on = resolve_device(device)
    if isinstance(adata, Path):
        adata, spatial_key = _open(
            adata,
            paths["out"],
            denoiser,
            layer,
            graph_key=graph_key,
            library_key=library_key,
            spatial_key=spatial_key,
        )
    section = adata.light if isinstance(adata, Source) else adata
    check_anndata(section, in_memory=out is None)
    check_unique_genes(section)
    keys = keys_to_read(
        section,
        inputs_of([denoiser]),
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
    )
    if on.type == "cpu":
        warn_of_threads()
    request = _fit.Request(
        denoiser=denoiser,
        trained=trained,
        model_path=paths["model"],
        how=how,
        layer=layer,
        genes=genes,
        keys=keys,
        key=key,
        allow_fractions=not check_counts,
        device=on,
        seed=seed,
        progress=show_progress,
        arrays=written,
        dtype=dtype or ("float32" if out is None else _stream.FILE_DTYPE),
    )
    provenance = {
        "method": denoiser.info.name,
        # A list survives the disk, a tuple does not.
        "params": {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(denoiser.config).items() if v is not None
        },
        "layer": layer or "X",
        **{name: value or "" for name, value in keys.items()},
        "seed": seed,
        "device": str(request.device),
    }
    return _fit.run(adata, request, provenance, out=paths["out"], copy=copy)


def _check_output(out: Path | None, *, copy: bool, dtype: str | None) -> None:
    check_choice("dtype", dtype, [None, "float32", "float16"])
    if out is not None:
        check_writable(out)
        if copy:
            raise ValueError(f"out={str(out)!r} and copy=True exclude each other; give one.")


def _check_arrays(arrays: Sequence[str] | None, denoiser: Denoiser) -> tuple[str, ...]:
    """Return the arrays to be written; raise for one that this configuration does not write."""
    if arrays is None:
        return denoiser.writes
    if isinstance(arrays, str):
        raise TypeError(f"arrays must be a list of names, not {arrays!r}.")
    for name in arrays:
        if name not in denoiser.writes:
            raise ValueError(
                f"arrays={name!r} is not valid for {denoiser.label}, which writes {list(denoiser.writes)}."
            )
    return tuple(arrays)


def _open(
    path: Path,
    out: Path | None,
    denoiser: Denoiser,
    layer: str | None,
    *,
    graph_key: str,
    library_key: str | None,
    spatial_key: str,
) -> tuple[AnnData | Source, str]:
    """Open a file, with a graph where one is needed, and return it with the key of the coordinates that are still to be read."""
    if out is None:
        raise ValueError(f"adata={str(path)!r} is a path; say with out= where the result goes.")
    may_stream = denoiser.has_network and out.suffix == ".zarr"
    data = open_source(path, layer) if may_stream else disk.read(path)
    section = data.light if isinstance(data, Source) else data
    # A key of the user's own is that of a graph there is.
    is_missing = graph_key == _keys.SPATIAL and GraphKeys(graph_key).connectivities not in section.obsp
    if is_missing and "graph" in denoiser.info.needs:
        build_graph(section, library_key=library_key, spatial_key=spatial_key, key_added=graph_key)
        if not denoiser.info.reads("coordinates"):
            spatial_key = _keys.SPATIAL
    return data, spatial_key


def _check_paths(data: AnnData | Source | Path, paths: Mapping[str, Path | None]) -> None:
    """Refuse to write over what is read."""
    kinds = {"out": ANNDATA, "checkpoint": CHECKPOINT, "save_model": MODEL}
    if any(paths[name] for name in kinds):
        read = files_of(data.data if isinstance(data, Source) else data)
        check_paths(
            [*(("adata", path) for path in read), ("model", paths["model"])],
            [(name, paths[name], kind) for name, kind in kinds.items()],
        )


def _read_model(
    path: Path, method: str | Denoiser | None, genes: str | Sequence[str] | None, params: Mapping[str, Any]
) -> tuple[Denoiser, Model]:
    """Read a model, and refuse arguments that it has its own values for."""
    denoiser, model = read_model(path)
    if method not in (None, denoiser.info.name):
        raise ValueError(
            f"method={method!r}, but model={str(path)!r} is a network of {denoiser.info.name!r}; leave method out."
        )
    given = [*params, *(["genes"] if genes is not None else [])]
    if given:
        raise TypeError(f"{given} do not apply with model={str(path)!r}, which has its own.")
    return denoiser, model
