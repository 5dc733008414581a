"""Three tiny tissues, and the helpers that tests share."""

import os
from collections.abc import Mapping
from contextlib import contextmanager

import anndata as ad
import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stdenoise as st

os.environ.setdefault("MPLBACKEND", "agg")

hypothesis.settings.register_profile("stdenoise", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("stdenoise")


def counts(n_spots, n_genes, seed):
    """Overdispersed counts with empty entries."""
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(rng.poisson(rng.gamma(0.7, 3.0, size=(n_spots, n_genes))), dtype=np.float32)


@pytest.fixture
def hexagonal():
    """61 spots on a hexagonal array, 12 genes, each spot joined to the six around it."""
    adata = st.datasets.tissue(n_spots=61, n_genes=12)
    st.pp.spatial_graph(adata, radius=120)
    return adata


@pytest.fixture
def irregular():
    """Two patches of 20 spots and one spot far from both, in mixed order, with every oddity.

    `spot4` and `spot5` coincide, `spot7` has no counts, `gene3` has none, and each patch is a library of its own.
    """
    rng = np.random.default_rng(5)
    coordinates = rng.uniform(0, 10, size=(41, 2))
    coordinates[20:40] += 50
    coordinates[40] = 200
    coordinates[5] = coordinates[4]
    matrix = counts(41, 10, seed=6).toarray()
    matrix[7] = 0
    matrix[:, 3] = 0
    library = np.repeat(["left", "right"], [20, 21])
    adata = ad.AnnData(
        X=sparse.csr_matrix(matrix),
        obs=pd.DataFrame({"library": pd.Categorical(library)}, index=[f"spot{i}" for i in range(41)]),
        var=pd.DataFrame(index=[f"gene{j}" for j in range(10)]),
        obsm={"spatial": coordinates},
    )
    adata = adata[rng.permutation(41)].copy()
    st.pp.spatial_graph(adata, radius=4.5)
    return adata


@pytest.fixture
def volume():
    """50 spots in space."""
    adata = ad.AnnData(
        X=counts(50, 8, seed=7),
        obs=pd.DataFrame(index=[f"spot{i}" for i in range(50)]),
        var=pd.DataFrame(index=[f"gene{j}" for j in range(8)]),
        obsm={"spatial": np.random.default_rng(8).uniform(0, 10, size=(50, 3))},
    )
    st.pp.spatial_graph(adata)
    return adata


@pytest.fixture
def small():
    """Parameters that make DUSTED train in milliseconds."""
    return {"n_hidden": 8, "n_latent": 3, "n_epochs": 3, "lr": 1e-2, "gate_reduction": 4}


def freeze(value):
    """Bytes, types and structure of whatever an AnnData holds, to be compared with `==`."""
    if isinstance(value, ad.AnnData):
        whole = value.to_memory() if value.isbacked else value
        names = ("X", "layers", "obs", "var", "obsm", "varm", "obsp", "varp", "uns")
        frozen = {name: freeze(getattr(whole, name)) for name in names}
        raw = None if whole.raw is None else (freeze(whole.raw.X), freeze(whole.raw.var))
        return {**frozen, "raw": raw, "is_view": value.is_view}
    if isinstance(value, Mapping):
        return {name: freeze(part) for name, part in value.items()}
    if sparse.issparse(value):
        return (value.format, value.shape, *(freeze(getattr(value, part)) for part in ("data", "indices", "indptr")))
    if isinstance(value, pd.DataFrame):
        return (freeze(value.index), {name: freeze(value[name]) for name in value})
    if isinstance(value, pd.Series | pd.Index):
        return (repr(value.dtype), repr(list(value)))
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, repr(value.tolist()) if value.dtype == object else value.tobytes())
    if isinstance(value, list | tuple):
        return [freeze(part) for part in value]
    return (type(value).__name__, repr(value))


@pytest.fixture(name="freeze")
def freeze_fixture():
    """Turn an AnnData, or part of one, into something to compare with `==`."""
    return freeze


@pytest.fixture
def unchanged():
    """Context manager that fails when the AnnData is another one at its end than at its beginning."""

    @contextmanager
    def check(adata):
        before = freeze(adata)
        yield
        assert freeze(adata) == before

    return check


@pytest.fixture
def exact_files(monkeypatch):
    """Write results to files with all their bits, so that they can be compared with those in memory."""
    monkeypatch.setattr("stdenoise.tl._denoise.FILE_DTYPE", "float32")


@pytest.fixture
def reload(tmp_path):
    """Write an AnnData as `.h5ad` or `.zarr` and read it back."""

    def write_and_read(adata, suffix):
        path = tmp_path / f"reloaded{suffix}"
        if suffix == ".h5ad":
            adata.write_h5ad(path)
            return ad.read_h5ad(path)
        adata.write_zarr(path)
        return ad.read_zarr(path)

    return write_and_read


def assert_same(left, right):
    """Assert equal values, whatever the containers they came back in."""
    if isinstance(left, Mapping):
        assert set(left) == set(right)
        for name in left:
            assert_same(left[name], right[name])
    elif sparse.issparse(left):
        assert_same(left.toarray(), right.toarray())
    elif isinstance(left, pd.DataFrame):
        assert list(left.index) == list(right.index)
        assert list(left.columns) == list(right.columns)
        assert_same(left.to_numpy(), right.to_numpy())
    else:
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


@pytest.fixture(name="assert_same")
def assert_same_fixture():
    """Assert that two parts of AnnData objects hold equal values."""
    return assert_same


@pytest.fixture(scope="session")
def read_trial():
    """How the metrics read a section on which methods are run again."""
    from stdenoise._io.section import open_section
    from stdenoise.methods._registry import inputs_of
    from stdenoise.methods._trial import Trial

    def read(adata, methods, *, with_graph=False, **changed):
        keys = {"graph_key": "spatial", "library_key": None, "spatial_key": "spatial", "features_key": None}
        options = {"layer": None, "genes": None, **keys, **changed}
        section = open_section(adata, inputs_of(methods, with_graph=with_graph), **options)
        return Trial.of(section, methods, torch.device("cpu"))

    return read


@pytest.fixture(scope="session")
def read_spots():
    """What methods see of an AnnData."""
    from stdenoise._io.read import read_counts, read_tissue

    def read(adata, *, layer=None, positions=None, allow_fractions=False, **keys):
        counts = read_counts(adata, layer, allow_fractions=allow_fractions)
        none = dict.fromkeys(("graph_key", "library_key", "spatial_key", "features_key"))
        tissue = read_tissue(adata, **{**none, **keys}, device=torch.device("cpu"))
        return tissue.with_counts(counts, tuple(adata.var_names), positions=positions, device=torch.device("cpu"))

    return read
