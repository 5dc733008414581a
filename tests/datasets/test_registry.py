import re
from collections import Counter
from urllib.parse import urlparse

import pandas as pd

import stdenoise as st
from stdenoise.datasets._catalog import entries
from stdenoise.datasets._readers import READERS

ALL = [entry for sections in entries().values() for entry in sections.values()]


def test_the_table_lists_every_section_and_those_of_the_papers():
    table = st.datasets.registry()
    assert list(zip(table["name"], table["section"], strict=True)) == [(e.name, e.section) for e in ALL]
    assert not table.drop(columns=["n_spots", "n_genes"]).isna().any(axis=None)
    assert isinstance(table["n_spots"].dtype, pd.Int64Dtype)
    assert (table["download"] == [bool(e.urls) for e in ALL]).all()
    assert len(entries()["dlpfc"]) == 12
    table = table.set_index(["name", "section"])
    assert table.loc["dlpfc", "n_spots"].sum() == 47681
    assert table.loc[("dlpfc", "151673"), "file"] == "dlpfc_151673.h5ad"


def test_every_entry_is_complete():
    for entry in ALL:
        called = f"{entry.name}-{entry.section}"
        assert all((entry.technology, entry.tissue, entry.licence, entry.citation)), called
        assert entry.source.startswith("https://"), called
        assert entry.file.endswith(".h5ad"), called
        assert bool(entry.urls) == bool(entry.format), called
        assert not entry.format or entry.format in READERS, called
        assert set(entry.sha256) <= set(entry.urls), called
        assert entry.verified == (entry.urls != {} and set(entry.urls) == set(entry.sha256)), called
        for url in entry.urls.values():
            assert urlparse(url).scheme == "https", called
            assert "{" not in url, called
            # A branch moves; only a commit names one content.
            assert "githubusercontent" not in url or re.search(r"/[0-9a-f]{40}/", url), called
        for checksum in entry.sha256.values():
            assert re.fullmatch(r"[0-9a-f]{64}", checksum), called


def test_files_and_checksums_are_not_shared_by_mistake():
    assert max(Counter(entry.file for entry in ALL).values()) == 1
    shared = {entries()["dlpfc"]["151673"].sha256["labels"]}
    checksums = [value for entry in ALL for value in entry.sha256.values() if value not in shared]
    assert max(Counter(checksums).values()) == 1
