"""Denoising from disk to disk: counts are sorted into a scratch folder, results go row by row to files, and then to a `.zarr`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stdenoise._base.files import replacing
from stdenoise._base.keys import ResultKeys
from stdenoise._base.paths import SCRATCH, check_replaceable, remove_scratch, scratch_of
from stdenoise._io.read import check_counts
from stdenoise._io.rows import RowStore, create_arrays, write_arrays, write_elements
from stdenoise._io.section import Source
from stdenoise._io.sorted import open_sorted, sort_counts
from stdenoise._io.write import result_record
from stdenoise.methods._base import Denoiser, Model
from stdenoise.spatial.spots import Context, Spots, assemble_spots
from stdenoise.spatial.tiles import order_by_graph, partition
from stdenoise.tl._network import ARRAYS, at_depth_of, chosen, network_record
from stdenoise.tl._soundness import Soundness
from stdenoise.train.run import Run

# Spots that lie together on the disk, at least: a tile is then a few pieces of the file.
_LEAF = 256


@contextmanager
def scratch_folder(out: Path, run: Run) -> Iterator[Path]:
    """Give a folder beside the output, the same to all processes, and remove it at the end."""
    folder = scratch_of(out)
    if run.is_first:
        check_replaceable(folder, SCRATCH)
        if folder.exists():
            # What a killed run has left.
            remove_scratch(folder)
        folder.mkdir()
    run.wait()
    try:
        yield folder
        run.wait()
    finally:
        if run.is_first:
            remove_scratch(folder)


def spatial_order(context: Context, n_spots: int) -> np.ndarray:
    """Order in which spots that are near each other in the tissue are near each other in the list."""
    libraries = None if context.libraries is None else context.libraries.numpy()
    if context.coordinates is not None:
        places = context.coordinates.numpy()
    elif context.graph is not None:
        places = order_by_graph(context.graph)
    else:
        return np.arange(n_spots)
    return np.concatenate(partition(places, _LEAF, libraries=libraries))


def read_sorted(
    source: Source,
    *,
    order: np.ndarray,
    positions: np.ndarray | None,
    context: Context,
    allow_fractions: bool,
    folder: Path,
    run: Run,
) -> Spots:
    """Sort the counts into a folder, once for all processes, and return the spots in that order."""
    names = source.light.var_names
    if run.is_first:
        sort_counts(
            source.row_blocks,
            order=order,
            positions=positions,
            n_genes=len(names),
            folder=folder,
            check=lambda values: check_counts(values, where=source.where, allow_fractions=allow_fractions),
        )
    run.wait()
    counts = open_sorted(folder)
    genes = tuple(map(str, names if positions is None else names[positions]))
    return assemble_spots(counts.counts, counts.total, genes, context.permuted(order))


def write_streamed(
    source: Source,
    out: Path,
    denoiser: Denoiser,
    model: Model,
    spots: Spots,
    *,
    order: np.ndarray,
    positions: np.ndarray | None,
    whole: bool,
    arrays: Sequence[str],
    dtype: str,
    key: str,
    provenance: Mapping[str, Any],
    extra: Mapping[str, Any],
    folder: Path,
    run: Run,
    stale: Sequence[str],
) -> None:
    """Predict, and write the section with the results to a `.zarr`.

    Parameters
    ----------
    source, out
        From where, and to where.
    denoiser, model, spots
        The trained network, and the spots in sorted order.
    order
        Row of the source of each spot.
    positions
        Modelled columns of the source, in the model's order; `None` for all, in the order of the source.
    whole
        Whether they are all columns, rather than a choice of genes.
    arrays, dtype
        Arrays to write, and their type.
    key, provenance
        Name of the result, and its record.
    extra
        Further elements that the source does not have on disk, by place.
    folder
        For scratch.
    run
        As in training.
    stale
        Places of an earlier result under this key.
    """
    names = ResultKeys(key)
    n_spots = len(spots.size_factors)
    # Columns in the order of the section.
    columns = slice(None) if positions is None else np.argsort(positions)
    soundness = Soundness(spots)
    found = soundness.watch(denoiser.predict(model, at_depth_of(spots, model), run))
    # Only what has the size of the data may be of half precision.
    dtypes = {getattr(names, name): "float32" if name == "latent" else dtype for name in ARRAYS}
    store: RowStore | None = None
    scale = ""
    for rows, block in chosen(found, arrays, n_spots, progress=run.progress):
        scale = block.scale
        values = {
            getattr(names, name): value.cpu().numpy()[:, columns if name != "latent" else slice(None)]
            for name in ARRAYS
            if (value := getattr(block, name)) is not None
        }
        if store is None:
            widths = {name: value.shape[1] for name, value in values.items()}
            store = _open_store(folder, (widths, scale), n_spots, dtypes, run)[0]
        at = order[rows.cpu().numpy()]
        for name, value in values.items():
            store.write(at, name, value)
    if store is None:
        # More processes than patches.
        store, scale = _open_store(folder, ({}, ""), n_spots, dtypes, run)
    run.wait()
    provenance = {**provenance, **network_record(model, soundness, run, denoiser)}

    genes = None if positions is None or whole else source.light.var_names[np.sort(positions)]
    holder = "layers" if whole else "obsm"
    targets = {name: f"{'obsm' if name == names.latent else holder}/{name}" for name in store.widths}
    fields: dict[str, Any] = {}
    if genes is not None:
        modelled = np.zeros(source.light.n_vars, dtype=bool)
        modelled[positions] = True
        fields[f"var/{names.modelled}"] = modelled
    record = f"uns/{names.uns}"
    fields[record] = result_record(
        provenance, scale=scale, genes=genes, history=model.history, written=[*targets.values(), *fields, record]
    )
    with ExitStack() as stack:
        fresh = folder / "fresh"
        if run.is_first:
            fresh = stack.enter_context(replacing(out))
            source.copy_to(fresh)
            write_elements(fresh, {}, remove=stale)
            frames = (
                {}
                if genes is None
                else {n: list(genes) for n, t in targets.items() if t.startswith("obsm/") and n != names.latent}
            )
            create_arrays(store, fresh, targets, columns=frames)
        fresh = Path(run.tell(str(fresh)))
        write_arrays(store, fresh, targets, share=run.share)
        run.wait()
        if run.is_first:
            write_elements(fresh, {**extra, **fields})


def _open_store(
    folder: Path, shape: tuple[dict[str, int], str], n_spots: int, dtypes: Mapping[str, str], run: Run
) -> tuple[RowStore, str]:
    """Open the same files in all processes; the first one knows widths and scale."""
    widths, scale = run.tell(shape)
    if run.is_first:
        store = RowStore(folder, widths, n_spots, dtypes, create=True)
    run.wait()
    return (store if run.is_first else RowStore(folder, widths, n_spots, dtypes, create=False)), scale
