"""Public data sets, from a local folder or downloaded."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from stdenoise._base.checks import check_choice
from stdenoise._io import disk
from stdenoise.datasets._catalog import Entry, entries
from stdenoise.datasets._readers import READERS

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stdenoise")

FOLDER_VARIABLE = "STDENOISE_DATA"


def load(name: str, *, section: str | None = None, folder: str | Path | None = None) -> AnnData:
    """Load a public data set.

    A file in a local folder is read where there is one; otherwise the original files are downloaded once, into the cache
    folder of the user, and read from there.

    Parameters
    ----------
    name
        Name of a data set, see `stdenoise.datasets.registry`.
    section
        Which section; needed where there are several.
    folder
        Folder with local files, such as `dlpfc_151673.h5ad`; by default the one that the environment variable
        `STDENOISE_DATA` names, if it is set.

    Returns
    -------
    AnnData with counts in `X` (CSR, float32), positions in `obsm["spatial"]`, where there is one an annotation in
    `obs["region"]`, and provenance and licence in `uns["source"]`. A downloaded one has all genes, a local one those of its
    file.

    Raises
    ------
    ValueError
        There is no such data set or section, several sections to choose from, or a download has the wrong checksum.
    FileNotFoundError
        There is no such folder, or no file in it and nothing to download.
    ConnectionError
        The download failed.

    Examples
    --------
    >>> import stdenoise as st
    >>> adata = st.datasets.load("dlpfc", section="151673")  # doctest: +SKIP
    """
    entry = _find(name, section)
    path = _local_file(entry, folder)
    if path is not None:
        return disk.read(path)
    if not entry.urls:
        raise FileNotFoundError(
            f"{_called(entry)} cannot be downloaded by stdenoise; see {entry.source}. {_advice(entry)}"
        )
    adata = READERS[entry.format](_download(entry), entry.section)
    facts = {key: value for key, value in asdict(entry).items() if isinstance(value, str) and value}
    adata.uns["source"] = {**facts, "urls": dict(entry.urls)}
    return adata


def registry() -> pd.DataFrame:
    """List the public data sets that `stdenoise.datasets.load` knows.

    Returns
    -------
    A table with one row per section: name, section, technology, tissue, number of spots and genes (missing where not known),
    whether it can be downloaded, whether the download is verified by checksums, the name of its local file, licence, source
    and citation.

    Examples
    --------
    >>> import stdenoise as st
    >>> table = st.datasets.registry()
    >>> sorted(set(table["name"]))[:2]
    ['cosmx', 'dlpfc']
    """
    rows = [
        {
            "name": entry.name,
            "section": entry.section,
            "technology": entry.technology,
            "tissue": entry.tissue,
            "n_spots": entry.n_spots,
            "n_genes": entry.n_genes,
            "download": bool(entry.urls),
            "verified": entry.verified,
            "file": entry.file,
            "licence": entry.licence,
            "source": entry.source,
            "citation": entry.citation,
        }
        for sections in entries().values()
        for entry in sections.values()
    ]
    return pd.DataFrame(rows).astype({"n_spots": "Int64", "n_genes": "Int64"})


def _find(name: str, section: str | None) -> Entry:
    check_choice("name", name, list(entries()))
    sections = entries()[name]
    if section is None:
        if len(sections) > 1:
            raise ValueError(f"{name!r} has several sections; choose section= from {list(sections)}.")
        return next(iter(sections.values()))
    check_choice("section", section, list(sections))
    return sections[section]


def _called(entry: Entry) -> str:
    return f"{entry.name!r} (section {entry.section!r})"


def _advice(entry: Entry) -> str:
    return f"Put {entry.file} into a folder, and name the folder with folder= or the environment variable {FOLDER_VARIABLE}."


def _local_file(entry: Entry, folder: str | Path | None) -> Path | None:
    chosen = folder if folder is not None else os.environ.get(FOLDER_VARIABLE)
    if not chosen:
        return None
    if not Path(chosen).is_dir():
        where = "folder" if folder is not None else FOLDER_VARIABLE
        raise FileNotFoundError(f"{where}={str(chosen)!r} is not a folder.")
    path = Path(chosen) / entry.file
    return path if path.exists() else None


def _cache_folder() -> Path:
    import pooch

    return Path(pooch.os_cache("stdenoise"))


def _download(entry: Entry) -> dict[str, Path]:
    """Fetch the files of an entry that are not in the cache yet; a file appears there only when it is complete."""
    import pooch

    folder = _cache_folder() / entry.name
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for role, url in entry.urls.items():
        checksum = entry.sha256.get(role)
        if checksum is None:
            logger.warning("the download of %s is not verified: no checksum is known for it", url)
        try:
            path = pooch.retrieve(
                url,
                known_hash=checksum and f"sha256:{checksum}",
                fname=f"{entry.section}_{url.rsplit('/', 1)[-1]}",
                path=folder,
            )
        except OSError as error:
            if error.errno is not None:
                # The disk, not the network: errors of the requests library are OSErrors without a number.
                raise
            raise ConnectionError(f"cannot download {url} for {_called(entry)}: {error}. {_advice(entry)}") from error
        paths[role] = Path(path)
    return paths
