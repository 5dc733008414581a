"""Denoising, by every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stdenoise._base import keys as _keys
from stdenoise._base.checks import check_bool, check_choice, check_name
from stdenoise._base.compute import Checkpoint, Compute
from stdenoise._base.device import resolve_device
from stdenoise._base.files import check_writable
from stdenoise._base.paths import ANNDATA, CHECKPOINT, check_paths, files_of, scratch_of
from stdenoise._base.random import check_seed
from stdenoise._base.settings import settings
from stdenoise._io.rows import FILE_DTYPE
from stdenoise._io.section import open_section
from stdenoise._io.sink import open_sink
from stdenoise._io.source import Source
from stdenoise.methods._base import Method
from stdenoise.methods._registry import inputs_of, make_method
from stdenoise.tl._open_run import check_compute, open_run, speaks, spots_of

if TYPE_CHECKING:
    from anndata import AnnData

_MOVED = {
    **dict.fromkeys(("memory", "devices", "strategy", "precision"), "compute=stdenoise.Compute({name}=...)"),
    "checkpoint_minutes": "checkpoint=stdenoise.Checkpoint(path, minutes=...)",
    "resume": "checkpoint=stdenoise.Checkpoint(path, resume=True)",
    "save_model": "model = stdenoise.tl.train(adata, ...) and model.save(path)",
    "model": "method=stdenoise.methods.load(path)",
    "check_counts": "stdenoise.settings.check_counts",
}
"""Where what was an argument is now."""


def denoise(
    adata: AnnData | Source | str | Path,
    method: str | Method = "dusted",
    *,
    layer: str | None = None,
    genes: str | Sequence[str] | None = None,
    graph_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    features_key: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
    out: str | Path | None = None,
    arrays: Sequence[str] | None = None,
    dtype: str | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    compute: Compute | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
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
        Name of a method, see `stdenoise.methods.table`, a configured one such as `stdenoise.methods.DUSTED(n_epochs=200)`, or a trained
        network (see `stdenoise.tl.train` and `stdenoise.methods.load`), which is applied as it is.
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
    copy
        Return a changed copy instead of changing `adata`.
    out
        Write the section with the results to this `.zarr` or `.h5ad`, and leave `adata` as it is. A `.zarr` is written from disk to
        disk where memory asks for it.
    arrays
        Arrays to keep beside the mean: of `"dispersion"`, `"dropout"` and `"latent"` those that the configured method writes; all of them
        if not given.
    dtype
        `"float32"` or `"float16"`, of the arrays that have the size of the data. If not given: float32, and in a file (`out`) float32
        rounded to 9 significant bits, within 0.2 %, which takes about half the space.
    device
        `"auto"` (see `stdenoise.settings`), `"cpu"`, `"cuda"` or `"cuda:<i>"`.
    seed
        The same seed gives the same bits on one machine and device.
    progress
        Show a progress bar on standard error; by default only on a terminal.
    compute
        Memory budget, devices, strategy, precision and threads, see `stdenoise.Compute`; those of `stdenoise.settings` if not given.
    checkpoint
        File in which the training of a network is saved on its way, or a `stdenoise.Checkpoint`, which can resume from it.
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
        Something else is where `out` or `checkpoint` would be written.
    FloatingPointError
        Training diverged, twice: the first time it goes on from the last good weights at half the learning rate. Nothing is
        written then.
    MemoryError
        A network does not fit into the memory budget; the message has the estimates.
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
    data, target = as_path(adata), None if out is None else Path(out)
    check_seed(seed)
    _check_output(target, copy=copy, dtype=dtype)
    denoiser, on = configured(method, params), resolve_device(device)
    compute, saving = check_compute(compute, checkpoint, denoiser)
    wanted = _check_arrays(arrays, denoiser)
    key = denoiser.info.name if key_added is None else key_added
    check_name("key_added", key)
    if isinstance(data, Path) and target is None:
        raise ValueError(f"adata={str(data)!r} is a path; say with out= where the result goes.")
    check_files(data, [("out", target, ANNDATA), ("checkpoint", saving.path if saving else None, CHECKPOINT)])
    may_stay = "patches" in denoiser.info.runs and target is not None and target.suffix == ".zarr"
    section = open_section(
        data,
        inputs_of([denoiser]),
        layer=layer,
        genes=genes,
        graph_key=graph_key,
        library_key=library_key,
        spatial_key=spatial_key,
        features_key=features_key,
        model_genes=denoiser.genes,
        may_stay=may_stay,
        allow_fractions=not settings.check_counts,
    )
    if target is not None and not speaks(denoiser):
        return None
    running = open_run(
        compute,
        denoiser,
        section,
        device=on,
        seed=seed,
        progress=settings.show_progress(progress),
        checkpoint=saving,
        arrays=wanted,
        scratch=scratch_of(target) if may_stay and target is not None else None,
    )
    with running as run:
        record = {
            "method": denoiser.info.name,
            # A list survives the disk, a tuple does not.
            "params": {
                k: list(v) if isinstance(v, tuple) else v for k, v in asdict(denoiser.config).items() if v is not None
            },
            **section.record(),
            "seed": seed,
            "device": str(run.device),
        }
        kind = dtype or ("float32" if target is None else FILE_DTYPE)
        sink = open_sink(section, run, key=key, arrays=wanted, dtype=kind, out=target, copy=copy, record=record)
        for rows, block in denoiser.run(spots_of(section, run), run):
            sink.write(rows, block)
        sink.close(run.report)
    return sink.result


def configured(method: str | Method, params: Mapping[str, Any]) -> Method:
    """Return the configured method; a parameter that has moved is an error that names its place."""
    for name in params:
        if name in _MOVED:
            raise TypeError(f"{name} is no argument any more: use {_MOVED[name].format(name=name)}.")
    return make_method(method, dict(params))


def as_path(data: AnnData | Source | str | Path) -> AnnData | Source | Path:
    """Turn text into a path."""
    return Path(data) if isinstance(data, str) else data


def check_files(data: AnnData | Source | Path, written: Sequence[tuple[str, Path | None, str]]) -> None:
    """Refuse to write over what is read."""
    if any(path is not None for _, path, _ in written):
        read = files_of(data.data if isinstance(data, Source) else data)
        check_paths([("adata", path) for path in read], written)


def _check_output(out: Path | None, *, copy: bool, dtype: str | None) -> None:
    check_choice("dtype", dtype, [None, "float32", "float16"])
    check_bool("copy", copy)
    if out is not None:
        check_writable(out)
        if copy:
            raise ValueError(f"out={str(out)!r} and copy=True exclude each other; give one.")


def _check_arrays(arrays: Sequence[str] | None, denoiser: Method) -> tuple[str, ...]:
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
