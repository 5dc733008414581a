"""From a checked request to results: in memory, or from disk to disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from stdenoise._base.device import speaks_for_all, started_by_launcher
from stdenoise._io import disk
from stdenoise._io import write as _results
from stdenoise._io.read import output_of, read_context, read_counts, select_genes
from stdenoise._io.section import Source, open_source
from stdenoise.methods._base import Denoiser, Model
from stdenoise.methods._models import write_model
from stdenoise.spatial.results import Denoised, collect
from stdenoise.spatial.spots import Spots, make_spots
from stdenoise.tl import _streamed
from stdenoise.tl._network import (
    Circumstances,
    align_genes,
    at_depth_of,
    chosen,
    network_record,
    open_run,
    train_network,
)
from stdenoise.tl._plan import Plan, Size, announce, make_plan
from stdenoise.tl._soundness import Soundness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from stdenoise.train.run import Run


@dataclass(frozen=True)
class Request:
    """What `denoise` was asked for, checked as far as it can be without the data."""

    denoiser: Denoiser
    trained: Model | None
    model_path: Path | None
    how: Circumstances
    layer: str | None
    genes: str | Sequence[str] | None
    keys: Mapping[str, str | None]
    key: str
    allow_fractions: bool
    device: torch.device
    seed: int
    progress: bool
    arrays: tuple[str, ...]
    dtype: str

    @property
    def n_arrays(self) -> int:
        """Arrays of the result that have the size of the data."""
        return len({"mean", *self.arrays} - {"latent"})

    def is_whole(self, positions: np.ndarray | None, n_vars: int) -> bool:
        """Whether all genes are modelled, and not by name: a list of genes is a choice, whatever it contains."""
        return positions is None or (self.trained is not None and len(positions) == n_vars)


def run(
    data: AnnData | Source, request: Request, provenance: Mapping[str, Any], *, out: Path | None, copy: bool
) -> AnnData | None:
    """Denoise, and write into the AnnData, a copy of it, or a file.

    A `Source` is loaded where memory allows it. An AnnData that was opened lazily stays on disk: whoever opened it so had a reason.
    """
    denoiser, trained = request.denoiser, request.trained
    may_stream = denoiser.has_network and out is not None and out.suffix == ".zarr"
    must_stream = not isinstance(data, Source) and not is_in_memory(data, request.layer)
    if must_stream and not may_stream:
        raise ValueError(
            "adata is not in memory; load it first: adata = adata.to_memory(). "
            "Networks go from disk to disk, with out= and a path that ends with .zarr."
        )
    source = open_source(data, request.layer) if must_stream else data
    light = source.light if isinstance(source, Source) else source
    _results.check_key_is_free(light, request.key, source.layers if isinstance(source, Source) else None)
    positions = (
        select_genes(light, request.genes)
        if trained is None or request.model_path is None
        else align_genes(light, trained, request.model_path)
    )
    if not denoiser.has_network:
        if out is not None and not speaks_for_all():
            return None
        adata = source.load() if isinstance(source, Source) else source
        spots = _read(adata, request, positions, request.device)
        result = denoiser.fit(spots, seed=request.seed, progress=request.progress)
        ((_, result),) = chosen([(spots.nonempty, result)], request.arrays, adata.n_obs, progress=False)
        return _store(adata, result, request, positions, provenance, out=out, copy=copy)

    how = open_run(request.how, seed=request.seed, progress=request.progress, device=request.device)
    # What is free differs from process to process: the first one decides for all.
    plan = how.tell(_plan(source, request, positions, may_stream=may_stream, must_stream=must_stream))
    how = replace(how, max_spots=plan.max_spots)
    if plan.streamed and out is not None:
        if how.fabric is None and request.how.devices > 1:
            # Fresh processes would be handed a copy of what is mapped from files.
            raise ValueError(
                f"devices={request.how.devices} does not go with counts that stay on disk; start the processes with "
                "torchrun, or give more with memory=."
            )
        source = source if isinstance(source, Source) else open_source(source, request.layer)
        stream(source, request, provenance, positions, how, out=out)
        return None
    adata = source.load() if isinstance(source, Source) else source
    spots = _read(adata, request, positions, plan.data_device)
    model = _trained(request, spots, how)
    # Each process holds the whole section and the whole result.
    alone = replace(how, fabric=None)
    soundness = Soundness(spots)
    found = soundness.watch(denoiser.predict(model, at_depth_of(spots, model), alone))
    found = chosen(found, request.arrays, adata.n_obs, progress=how.progress and plan.max_spots is not None)
    result = collect(found, adata.n_obs, model.history, plan.data_device)
    if not how.is_first and out is not None:
        return None
    provenance = {**provenance, **network_record(model, soundness, alone, denoiser)}
    return _store(adata, result, request, positions, provenance, out=out, copy=copy)


def stream(
    source: Source,
    request: Request,
    provenance: Mapping[str, Any],
    positions: np.ndarray | None,
    how: Run,
    *,
    out: Path,
) -> None:
    """Denoise from disk to disk."""
    context = _context(source.light, request, torch.device("cpu"))
    order = _streamed.spatial_order(context, source.light.n_obs)
    with _streamed.scratch_folder(out, how) as folder:
        spots = _streamed.read_sorted(
            source,
            order=order,
            positions=positions,
            context=context,
            allow_fractions=request.allow_fractions,
            folder=folder,
            run=how,
        )
        model = _trained(request, spots, how)
        _streamed.write_streamed(
            source,
            out,
            request.denoiser,
            model,
            spots,
            order=order,
            positions=positions,
            whole=request.is_whole(positions, source.light.n_vars),
            arrays=request.arrays,
            dtype=request.dtype,
            key=request.key,
            provenance=provenance,
            extra=source.added(),
            folder=folder,
            run=how,
            stale=_results.owned_places(source.light, request.key),
        )


def is_in_memory(adata: AnnData, layer: str | None) -> bool:
    """Whether the counts are numpy or scipy arrays."""
    if adata.isbacked:
        return False
    matrix = adata.X if layer is None else adata.layers.get(layer)
    # What is missing or of no use is reported where it is read.
    return matrix is None or isinstance(matrix, np.ndarray) or sparse.issparse(matrix) or not hasattr(matrix, "shape")


def _plan(
    data: AnnData | Source, request: Request, positions: np.ndarray | None, *, may_stream: bool, must_stream: bool
) -> Plan:
    if isinstance(data, Source):
        (n_spots, n_all), n_counts = data.light.shape, data.n_counts
    else:
        n_spots, n_all = data.shape
        matrix = data.X if request.layer is None else data.layers.get(request.layer)
        n_counts = matrix.nnz if sparse.issparse(matrix) else n_spots * n_all
    n_genes = n_all if positions is None else len(positions)
    size = Size(n_spots, n_genes, max(1, n_counts * n_genes // n_all))
    plan = make_plan(
        request.denoiser,
        size,
        n_arrays=request.n_arrays,
        memory=request.how.memory,
        device=request.device,
        n_processes=(started_by_launcher() or (1, 1))[0],
        may_stream=may_stream,
        must_stream=must_stream,
    )
    if positions is None and request.trained is None:
        announce(request.denoiser, size, plan, request.device)
    return plan


def _context(adata: AnnData, request: Request, device: torch.device) -> Any:
    return read_context(adata, **request.keys, device=device)


def _read(adata: AnnData, request: Request, positions: np.ndarray | None, device: torch.device) -> Spots:
    counts = read_counts(adata, request.layer, allow_fractions=request.allow_fractions)
    genes = tuple(map(str, adata.var_names))
    return make_spots(counts, genes, positions=positions, context=_context(adata, request, device), device=device)


def _trained(request: Request, spots: Spots, how: Run) -> Model:
    """Return the network: the one there is, or one trained on the spots."""
    if request.trained is not None:
        return request.trained
    model = train_network(request.denoiser, spots, request.how, how, device=request.device)
    if request.how.save_model is not None and how.is_first:
        write_model(request.how.save_model, request.denoiser, model)
    return model


def _store(
    adata: AnnData,
    result: Denoised,
    request: Request,
    positions: np.ndarray | None,
    provenance: Mapping[str, Any],
    *,
    out: Path | None,
    copy: bool,
) -> AnnData | None:
    target = output_of(adata, copy=copy or out is not None)
    _results.write_denoised(
        target,
        result,
        key=request.key,
        positions=positions,
        provenance=provenance,
        whole=request.is_whole(positions, adata.n_vars),
        dtype=request.dtype,
    )
    if out is not None:
        disk.write(target, out)
    return target if copy else None
