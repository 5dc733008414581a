import functools
import hashlib
import http.server
import logging
import socket
import sys
import threading

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stdenoise as st
from stdenoise.datasets import _load
from stdenoise.datasets._catalog import Entry

POSITIONS = "x\ty\tpixel_x\tpixel_y\n1\t2\t10\t20\n2\t2\t20\t20\n"
FILES = {
    "counts.tsv": "\tA\tB\n1x2\t3\t0\n2x2\t1\t4\n",
    "positions.tsv": POSITIONS,
    "labels.tsv": "x\ty\tlabel\n1\t2\tcancer\n2\t2\tfat\n",
}


class Handler(http.server.SimpleHTTPRequestHandler):
    requests: list[str] = []

    def do_GET(self):
        self.requests.append(self.path)
        if self.path.startswith("/cut/"):
            # Announce more than is sent, as when a connection breaks.
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Serve three small tables on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    Handler.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(_load, "_cache_folder", lambda: folder)
    return folder


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.delenv("STDENOISE_DATA", raising=False)
    # A proxy would stand between the test and this machine.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def register(monkeypatch):
    """Replace the registry by one with a single data set."""

    def replace(*, sections=("S1",), **changes):
        fixed = {
            "technology": "ST", "tissue": "tumour", "licence": "CC0", "source": "https://example.org", "citation": "A",
        }  # fmt: skip
        entries = {s: Entry(name="toy", section=s, file=f"toy_{s}.h5ad", **fixed, **changes) for s in sections}
        monkeypatch.setattr(_load, "entries", lambda: {"toy": entries})

    return replace


def urls(server, folder=""):
    return {name.split(".")[0]: f"{server}/{folder}{name}" for name in FILES}


def checksums():
    return {name.split(".")[0]: hashlib.sha256(text.encode()).hexdigest() for name, text in FILES.items()}


def left_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


# Local folders


@pytest.fixture
def local(tmp_path, monkeypatch):
    folder = tmp_path / "local"
    folder.mkdir()
    adata = ad.AnnData(np.ones((3, 2), dtype=np.float32), obs=pd.DataFrame(index=["a", "b", "c"]))
    adata.write_h5ad(folder / "dlpfc_151673.h5ad")
    adata[:2].copy().write_h5ad(folder / "hcc_visium.h5ad")
    return folder


def test_a_local_file_is_read(local, monkeypatch):
    assert st.datasets.load("dlpfc", section="151673", folder=local).shape == (3, 2)
    assert st.datasets.load("hcc", folder=str(local)).shape == (2, 2)
    monkeypatch.setenv("STDENOISE_DATA", str(local))
    assert st.datasets.load("dlpfc", section="151673").shape == (3, 2)


def test_the_argument_comes_before_the_variable(local, monkeypatch):
    monkeypatch.setenv("STDENOISE_DATA", "/nowhere")
    assert st.datasets.load("hcc", folder=local).shape == (2, 2)
    with pytest.raises(FileNotFoundError, match="STDENOISE_DATA='/nowhere' is not a folder"):
        st.datasets.load("hcc")


def test_a_local_file_needs_no_pooch(local, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert st.datasets.load("hcc", folder=local).shape == (2, 2)


def test_a_damaged_local_file_is_named(local):
    (local / "hcc_visium.h5ad").write_bytes(b"no")
    with pytest.raises(OSError, match=r"cannot read .*hcc_visium\.h5ad"):
        st.datasets.load("hcc", folder=local)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "dlfpc"}, ValueError, r"name='dlfpc' is not valid; choose from \['dlpfc'.*Did you mean 'dlpfc'"),
        ({"name": "dlpfc", "section": "151600"}, ValueError, r"section='151600' is not valid; choose from \['151507'"),
        ({"name": "dlpfc"}, ValueError, r"'dlpfc' has several sections; choose section= from \['151507', .*'151676'\]"),
        ({"name": "hcc", "folder": "/nowhere"}, FileNotFoundError, "folder='/nowhere' is not a folder"),
        (
            {"name": "mob"},
            FileNotFoundError,
            r"'mob' \(section 'rep11'\) cannot be downloaded.*github.com.*STdeconvolve.*mob_rep11_st.h5ad.*STDENOISE_DATA",
        ),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        st.datasets.load(**arguments)


# Downloads


def test_a_download_is_verified_and_kept(server, cache, register, caplog):
    register(format="st_tsv", urls=urls(server), sha256=checksums())
    with caplog.at_level(logging.WARNING, logger="stdenoise"):
        adata = st.datasets.load("toy")
    assert not [record for record in caplog.records if record.name == "stdenoise"]
    np.testing.assert_array_equal(adata.X.toarray(), [[3, 0], [1, 4]])
    assert adata.obs["region"].tolist() == ["cancer", "fat"]
    assert adata.uns["source"]["licence"] == "CC0"
    assert adata.uns["source"]["urls"] == urls(server)
    assert len(left_in(cache)) == 3
    st.datasets.load("toy", section="S1")
    assert len(Handler.requests) == 3


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_download_survives_a_round_trip(server, cache, register, reload, assert_same, suffix):
    register(format="st_tsv", urls=urls(server), sha256=checksums())
    adata = st.datasets.load("toy")
    assert_same(reload(adata, suffix).uns["source"], adata.uns["source"])


def test_sections_do_not_share_files(server, cache, register):
    register(sections=("S1", "S2"), format="st_tsv", urls=urls(server), sha256=checksums())
    for section in ("S1", "S2"):
        st.datasets.load("toy", section=section)
    assert len(left_in(cache)) == 6


def test_a_local_file_comes_before_a_download(server, cache, register, local):
    register(format="st_tsv", urls=urls(server), sha256=checksums())
    (local / "hcc_visium.h5ad").rename(local / "toy_S1.h5ad")
    assert st.datasets.load("toy", folder=local).obs_names.tolist() == ["a", "b"]
    assert not Handler.requests


def test_a_folder_without_the_file_does_not_stop_a_download(server, cache, register, local):
    register(format="st_tsv", urls=urls(server), sha256=checksums())
    assert st.datasets.load("toy", folder=local).shape == (2, 2)


def test_an_unverified_download_says_so(server, cache, register, caplog):
    register(format="st_tsv", urls=urls(server), sha256={"positions": checksums()["positions"]})
    with caplog.at_level(logging.WARNING, logger="stdenoise"):
        st.datasets.load("toy")
    said = [record.getMessage() for record in caplog.records if record.name == "stdenoise"]
    assert len(said) == 2
    assert f"the download of {server}/counts.tsv is not verified" in said[0]


def test_a_wrong_checksum_leaves_nothing(server, cache, register):
    register(format="st_tsv", urls=urls(server), sha256=checksums() | {"counts": "0" * 64})
    with pytest.raises(ValueError, match="does not match the known hash"):
        st.datasets.load("toy")
    assert not left_in(cache)


@pytest.mark.parametrize("known", [True, False])
def test_a_broken_download_leaves_nothing(server, cache, register, known):
    register(format="st_tsv", urls=urls(server, "cut/"), sha256=checksums() if known else {})
    with pytest.raises(ConnectionError, match=rf"cannot download {server}/cut/counts\.tsv"):
        st.datasets.load("toy")
    assert not left_in(cache)


def test_a_missing_page(server, cache, register):
    register(format="st_tsv", urls=urls(server, "nowhere/"))
    with pytest.raises(ConnectionError, match=r"cannot download .*nowhere/counts\.tsv.*404"):
        st.datasets.load("toy")
    assert not left_in(cache)


def test_no_network(cache, register):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    register(format="st_tsv", urls=urls(address), sha256=checksums())
    with pytest.raises(
        ConnectionError,
        match=rf"cannot download {address}/counts\.tsv for 'toy' \(section 'S1'\).*Put toy_S1\.h5ad into a folder.*STDENOISE_DATA",
    ):
        st.datasets.load("toy")
    assert not left_in(cache)


@pytest.mark.skipif(sys.platform == "win32", reason="folders have other permissions there")
def test_a_cache_that_cannot_be_written(server, cache, register):
    cache.parent.joinpath("cache").write_text("a file where the folder should be")
    register(format="st_tsv", urls=urls(server), sha256=checksums())
    with pytest.raises(OSError, match="cache") as caught:
        st.datasets.load("toy")
    assert not isinstance(caught.value, ConnectionError)
