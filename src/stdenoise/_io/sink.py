"""The one way out: blocks of a result go into an AnnData, a copy of it, a file of it, or row by row to a `.zarr`. All or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from anndata import AnnData
from torch import Tensor

from stdenoise._base.files import replacing
from stdenoise._io import disk
from stdenoise._io.read import output_of
from stdenoise._io.rows import RowStore, check_columns, create_arrays, write_arrays, write_elements
from stdenoise._io.section import Section
from stdenoise._io.write import Places, check_key_is_free, check_sound, owned_places, write_denoised
from stdenoise.spatial.results import ARRAYS, Block, Collector, row_blocks


class Team(Protocol):
    """What a sink asks of a run: the processes that write one result together."""

    @property
    def scratch(self) -> Path | None: ...
    @property
    def share(self) -> tuple[int, int]: ...
    @property
    def is_first(self) -> bool: ...
    def wait(self) -> None: ...
    def tell(self, value: Any) -> Any: ...


class Sink:
    """Takes the blocks of a result.

    Parameters
    ----------
    section
        What was denoised.
    places
        Where the result goes.
    arrays
        Arrays to keep beside the mean.
    record
        What is recorded of the result beside the report of the run.
    """

    result: AnnData | None = None
    """What the caller gets."""

    def __init__(self, section: Section, places: Places, arrays: Sequence[str], record: Mapping[str, Any]) -> None:
        self.section, self.places, self.record = section, places, record
        self._dropped: dict[str, Any] = {name: None for name in ARRAYS[1:] if name not in arrays}

    def write(self, rows: Tensor, block: Block) -> None:
        """Take the results of spots at these positions."""
        self._take(rows, replace(block, **self._dropped))

    def _take(self, rows: Tensor, block: Block) -> None:
        raise NotImplementedError

    def close(self, report: Mapping[str, Any]) -> None:
        """Store all of it, with the report of the run."""
        rest = {name: value for name, value in report.items() if name != "history"}
        self._store_all({**self.record, **rest}, report.get("history", {}))

    def _store_all(self, provenance: Mapping[str, Any], history: Mapping[str, Sequence[float]]) -> None:
        raise NotImplementedError


class Layers(Sink):
    """Writes into an AnnData in memory, a copy of it, or a file."""

    def __init__(self, *args: Any, out: Path | None, copy: bool, dtype: str, writes: bool, n_spots: int) -> None:
        super().__init__(*args)
        self._out, self._copy, self._dtype, self._writes = out, copy, dtype, writes
        self._blocks = Collector(n_spots)

    def _take(self, rows: Tensor, block: Block) -> None:
        self._blocks.add(rows, block)

    def _store_all(self, provenance: Mapping[str, Any], history: Mapping[str, Sequence[float]]) -> None:
        # Of several processes, one writes a file.
        if not self._writes:
            return
        target = output_of(self.section.adata, copy=self._copy or self._out is not None)
        write_denoised(target, self._blocks.result(history), self.places, provenance, dtype=self._dtype)
        if self._out is not None:
            disk.write(target, self._out)
        self.result = target if self._copy else None


class Rows(Sink):
    """Writes row by row to files, and then to a `.zarr`; of several processes, each its rows."""

    def __init__(self, *args: Any, out: Path, dtype: str, run: Team, folder: Path) -> None:
        super().__init__(*args)
        self._out, self._run, self._folder = out, run, folder
        names = self.places.names
        # Only what has the size of the data may be of half precision.
        self._dtypes = {getattr(names, name): "float32" if name == "latent" else dtype for name in ARRAYS}
        self._store: RowStore | None = None
        self._scale = ""

    def _take(self, rows: Tensor, block: Block) -> None:
        found = {name: value for name in ARRAYS if (value := getattr(block, name)) is not None}
        if self._store is None:
            self._open({name: value.shape[1] for name, value in found.items()}, block.scale)
        at = self.section.order[rows.cpu().numpy()]
        for name, value in found.items():
            for where, part in row_blocks(value):
                values = self.places.ordered(name, part.cpu().numpy())
                check_sound(values, getattr(self.places.names, name), block.scale)
                self._files.write(at[where], getattr(self.places.names, name), values)

    def _store_all(self, provenance: Mapping[str, Any], history: Mapping[str, Sequence[float]]) -> None:
        run, places, section = self._run, self.places, self.section
        if self._store is None:
            # More processes than patches.
            self._open({}, "")
        run.wait()
        names = {getattr(places.names, name): name for name in ARRAYS}
        targets = {name: places.place(names[name]) for name in self._files.widths}
        fields = places.fields(dict.fromkeys(targets.values()), provenance, self._scale, history)
        small = {place: value for place, value in fields.items() if value is not None}
        # The section is copied, and all of the result written beside.
        with disk.writes_text(), replacing(self._out) if run.is_first else nullcontext(self._folder) as fresh:
            if run.is_first:
                section.on_disk.copy_to(fresh)
                write_elements(fresh, {}, remove=owned_places(section.table, places.key))
                genes = places.genes
                frames = {} if genes is None else {n: list(genes) for n in targets if names[n] != "latent"}
                create_arrays(self._files, fresh, targets, columns=frames)
            fresh = Path(run.tell(str(fresh)))
            write_arrays(self._files, fresh, targets, share=run.share)
            run.wait()
            if run.is_first:
                write_elements(fresh, {**section.on_disk.added(), **small})

    @property
    def _files(self) -> RowStore:
        if self._store is None:
            raise RuntimeError("no block has been written.")
        return self._store

    def _open(self, widths: dict[str, int], scale: str) -> None:
        """Open the same files in all processes; the first one knows widths and scale."""
        run, names = self._run, self.places.names
        widths, self._scale = run.tell(({getattr(names, name): width for name, width in widths.items()}, scale))
        n_spots = self.section.table.n_obs
        if run.is_first:
            self._store = RowStore(self._folder, widths, n_spots, self._dtypes, create=True)
        run.wait()
        if not run.is_first:
            self._store = RowStore(self._folder, widths, n_spots, self._dtypes, create=False)


def open_sink(
    section: Section,
    run: Team,
    *,
    key: str,
    arrays: Sequence[str],
    dtype: str,
    out: Path | None,
    copy: bool,
    record: Mapping[str, Any],
) -> Sink:
    """Open what takes a result; raise where it would overwrite something that stdenoise did not write.

    Parameters
    ----------
    section, run
        What is denoised, and by which processes.
    key
        Prefix of the results.
    arrays, dtype
        Arrays to keep beside the mean, and the type of those that have the size of the data.
    out, copy
        Write a file, or a copy, and leave the AnnData as it is.
    record
        What is recorded of the result.
    """
    check_key_is_free(section.table, key, section.layers)
    places = Places(key, section.table.var_names, section.positions, section.is_choice)
    if out is not None:
        if places.genes is not None:
            check_columns(places.genes)
        disk.check_can_be_written(section.table, out)
    if run.scratch is not None and out is not None:
        return Rows(section, places, arrays, record, out=out, dtype=dtype, run=run, folder=run.scratch)
    writes = out is None or run.is_first
    n_spots = section.table.n_obs
    return Layers(section, places, arrays, record, out=out, copy=copy, dtype=dtype, writes=writes, n_spots=n_spots)
