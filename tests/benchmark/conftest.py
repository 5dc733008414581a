"""A benchmark that takes a second."""

import pytest

from stdenoise import tl


@pytest.fixture
def config():
    """Two small tissues, three methods, a metric of the fit and one that fits by itself."""
    return {
        "name": "a trial",
        "seeds": [0],
        "datasets": [
            {"name": "left", "tissue": {"n_spots": 40, "n_genes": 12}},
            {"name": "right", "tissue": {"n_spots": 37, "n_genes": 10, "seed": 1}},
        ],
        "methods": [
            {"name": "raw"},
            {"name": "gene_mean"},
            {"label": "two hops", "name": "neighbor_mean", "params": {"n_hops": 2}},
        ],
        "metrics": [{"name": "reconstruction"}],
    }


@pytest.fixture
def fits(monkeypatch):
    """Names of the methods that `st.tl.denoise` has fitted."""
    names, denoise = [], tl.denoise

    def count(adata, method, **arguments):
        names.append(method.info.name)
        return denoise(adata, method, **arguments)

    monkeypatch.setattr(tl, "denoise", count)
    return names
