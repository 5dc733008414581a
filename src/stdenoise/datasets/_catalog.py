"""What can be loaded: the entries of `registry.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One public data set.

    Parameters
    ----------
    name, section
        How it is called.
    file
        Its file in a local folder.
    technology, tissue, licence, source, citation
        Provenance; `source` is where it can be had.
    n_spots, n_genes
        Size of what is downloaded, or of the local file where nothing is; `None` where not known.
    format
        Which reader takes the downloaded files; empty without a download.
    urls, sha256
        Address and checksum of each file to download, by its role; a missing checksum is one nobody has verified.
    """

    name: str
    section: str
    file: str
    technology: str
    tissue: str
    licence: str
    source: str
    citation: str
    n_spots: int | None = None
    n_genes: int | None = None
    format: str = ""
    urls: dict[str, str] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def verified(self) -> bool:
        """Whether every file to download has a checksum."""
        return bool(self.urls) and set(self.urls) == set(self.sha256)


@cache
def entries() -> dict[str, dict[str, Entry]]:
    """Read the registry: data sets by name and section."""
    text = files("stdenoise.datasets").joinpath("registry.toml").read_text(encoding="utf-8")
    return {
        name: {section: _entry(name, section, group, own) for section, own in group["sections"].items()}
        for name, group in tomllib.loads(text).items()
    }


def _entry(name: str, section: str, group: dict[str, Any], own: dict[str, Any]) -> Entry:
    """One section, with what it shares with the others of its data set."""
    merged = {key: value for key, value in group.items() if key != "sections"}
    for key, value in own.items():
        # A table of the section, such as its checksums, completes the shared one.
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    urls = {role: url.format(section=section) for role, url in merged.pop("urls", {}).items()}
    return Entry(name=name, section=section, urls=urls, **merged)
