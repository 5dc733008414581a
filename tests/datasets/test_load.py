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
def local(tmp_path):
    folder = tmp_path / "local"
    folder.mkdir()
    adata = ad.AnnData(np.ones((3, 2), dtype=np.float32), obs=pd.DataFrame(index=["a", "b", "c"]))
    adata.write_h5ad(folder / "dlpfc_151673.h5ad")
    adata[:2].copy().write_h5ad(folder / "hcc_visium.h5ad")
    return folder


def test_a_local_file_is_read_without_pooch(local, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert st.datasets.load("dlpfc", section="151673", folder=local).shape == (3, 2)
    monkeypatch.setenv("STDENOISE_DATA", str(local))
    assert st.datasets.load("dlpfc", section="151673").shape == (3, 2)
    # The argument comes before the variable.
    monkeypatch.setenv("STDENOISE_DATA", "/nowhere")
    assert st.datasets.load("hcc", folder=str(local)).shape == (2, 2)
    with pytest.raises(FileNotFoundError, match="STDENOISE_DATA='/nowhere'"):
        st.datasets.load("hcc")
    (local / "hcc_visium.h5ad").write_bytes(b"no")
    with pytest.raises(OSError, match=r"hcc_visium\.h5ad"):
        st.datasets.load("hcc", folder=local)


def test_bad_input():
    for change, error, words in [
        ({"name": "dlfpc"}, ValueError, r"'dlfpc'.*\['dlpfc'"),
        ({"name": "dlpfc", "section": "151600"}, ValueError, r"'151600'.*\['151507'"),
        ({"name": "dlpfc"}, ValueError, r"section= .*\['151507', .*'151676'\]"),
        ({"name": "hcc", "folder": "/nowhere"}, FileNotFoundError, "folder='/nowhere'"),
        ({"name": "mob"}, FileNotFoundError, "'mob' .*'rep11'.*STdeconvolve.*mob_rep11_st.h5ad.*STDENOISE_DATA"),
    ]:
        with pytest.raises(error, match=words):
            st.datasets.load(**change)


# Downloads


def test_a_download_is_verified_and_kept(server, cache, register, caplog, reload, assert_same):
    register(sections=("S1", "S2"), format="st_tsv", urls=urls(server), sha256=checksums())
    with caplog.at_level(logging.WARNING, logger="stdenoise"):
        adata = st.datasets.load("toy", section="S1")
    assert not [record for record in caplog.records if record.name == "stdenoise"]
    np.testing.assert_array_equal(adata.X.toarray(), [[3, 0], [1, 4]])
    assert adata.obs["region"].tolist() == ["cancer", "fat"]
    assert adata.uns["source"]["licence"] == "CC0"
    assert adata.uns["source"]["urls"] == urls(server)
    for suffix in (".h5ad", ".zarr"):
        assert_same(reload(adata, suffix).uns["source"], adata.uns["source"])
    assert len(left_in(cache)) == 3
    st.datasets.load("toy", section="S1")
    assert len(Handler.requests) == 3
    # Sections do not share files.
    st.datasets.load("toy", section="S2")
    assert len(left_in(cache)) == 6


def test_a_local_file_comes_before_a_download(server, cache, register, local):
    register(format="st_tsv", urls=urls(server), sha256=checksums())
    (local / "hcc_visium.h5ad").rename(local / "toy_S1.h5ad")
    assert st.datasets.load("toy", folder=local).obs_names.tolist() == ["a", "b"]
    assert not Handler.requests
    # A folder without the file does not stop a download.
    (local / "toy_S1.h5ad").unlink()
    assert st.datasets.load("toy", folder=local).obs_names.tolist() == ["1x2", "2x2"]


def test_an_unverified_download_says_so(server, cache, register, caplog):
    register(format="st_tsv", urls=urls(server), sha256={"positions": checksums()["positions"]})
    with caplog.at_level(logging.WARNING, logger="stdenoise"):
        st.datasets.load("toy")
    said = [record.getMessage() for record in caplog.records if record.name == "stdenoise"]
    assert len(said) == 2
    assert f"{server}/counts.tsv is not verified" in said[0]


def unused_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_download_that_fails_leaves_nothing(server, cache, register):
    wrong = checksums() | {"counts": "0" * 64}
    nobody = unused_address()
    advice = rf"{nobody}/counts\.tsv .*'toy' .*'S1'.*toy_S1\.h5ad.*STDENOISE_DATA"
    for addresses, known, error, words in [
        (urls(server), wrong, ValueError, "known hash"),
        (urls(server, "cut/"), checksums(), ConnectionError, rf"{server}/cut/counts\.tsv"),
        (urls(server, "cut/"), {}, ConnectionError, rf"{server}/cut/counts\.tsv"),
        (urls(server, "nowhere/"), {}, ConnectionError, r"nowhere/counts\.tsv.*404"),
        (urls(nobody), checksums(), ConnectionError, advice),
    ]:
        register(format="st_tsv", urls=addresses, sha256=known)
        with pytest.raises(error, match=words):
            st.datasets.load("toy")
        assert not left_in(cache)


@pytest.mark.skipif(sys.platform == "win32", reason="folders have other permissions there")
def test_a_cache_that_cannot_be_written(server, cache, register):
    cache.write_text("a file where the folder should be")
    register(format="st_tsv", urls=urls(server), sha256=checksums())
    with pytest.raises(OSError, match="cache") as caught:
        st.datasets.load("toy")
    assert not isinstance(caught.value, ConnectionError)
