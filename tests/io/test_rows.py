import errno
import os
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

from stdenoise._io import rows as _stream
from stdenoise._io.read import layers_of
from stdenoise._io.rows import RowStore, create_arrays, write_arrays, write_elements

pytestmark = pytest.mark.filterwarnings(
    "ignore:Writing zarr v2 data:UserWarning", "ignore:zarr v3 autosharding:UserWarning"
)

LAYERS = {"mean": "layers/dusted_mean", "dropout": "layers/dusted_dropout"}
MEAN = {"mean": "layers/dusted_mean"}


def values_of(n_rows, width, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).gamma(1, 2, size=(n_rows, width)).astype(dtype)


@pytest.fixture(scope="module", params=[2, 3])
def written(request, tmp_path_factory):
    """30 spots and 5 genes, in either format of zarr."""
    adata = ad.AnnData(
        X=sparse.eye_array(30, 5, format="csr", dtype=np.float32),
        obs=pd.DataFrame({"a": np.arange(30)}, index=pd.Index([f"spot{i}" for i in range(30)], name="barcode")),
        var=pd.DataFrame({"b": np.arange(5)}, index=[f"gene{i}" for i in range(5)]),
        layers={"dusted_mean": np.zeros((30, 5)), "kept": np.ones((30, 5))},
        uns={"other": 1},
    )
    path = tmp_path_factory.mktemp("written") / "a.zarr"
    with ad.settings.override(zarr_write_format=request.param):
        adata.write_zarr(path)
    return path


@pytest.fixture
def path(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "a.zarr"))


@pytest.fixture
def make_store(tmp_path):
    """Make a store of arrays that are full."""

    def make(arrays, dtype=np.float32):
        folder = tmp_path / "rows"
        folder.mkdir()
        n_rows = len(next(iter(arrays.values())))
        store = RowStore(folder, {k: v.shape[1] for k, v in arrays.items()}, n_rows, dtype, create=True)
        for name, values in arrays.items():
            store.write(np.arange(n_rows), name, values)
        return store

    return make


# Rows


@given(seed=some.integers(0, 1000), n_rows=some.integers(1, 40), width=some.integers(1, 4), n_parts=some.integers(1, 5))
def test_rows_that_two_write_come_back_in_their_order(tmp_path_factory, seed, n_rows, width, n_parts):
    values, folder = values_of(n_rows, width, seed=seed), tmp_path_factory.mktemp("rows")
    stores = [RowStore(folder, {"a": width}, n_rows, np.float32, create=create) for create in (True, False)]
    for i, rows in enumerate(np.array_split(np.random.default_rng(seed).permutation(n_rows), n_parts)):
        stores[i % 2].write(rows, "a", values[rows])
    for store in stores:
        np.testing.assert_array_equal(store.read("a", 0, n_rows), values)
        start = seed % n_rows
        np.testing.assert_array_equal(store.read("a", start, start + 1), values[start : start + 1])


@pytest.mark.parametrize("system", ["writes in pieces", "has no pwrite"])
def test_systems_that_write_otherwise(tmp_path, monkeypatch, system):
    if system == "has no pwrite":
        monkeypatch.delattr(os, "pwrite")
    else:
        pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:3], offset))
    store = RowStore(tmp_path, {"a": 3}, 10, np.float32, create=True)
    values = values_of(10, 3)
    rows = np.random.default_rng(0).permutation(10)
    store.write(rows, "a", values[rows])
    np.testing.assert_array_equal(store.read("a", 0, 10), values)


def test_half_precision_has_a_largest_number(tmp_path, caplog):
    store = RowStore(tmp_path, {"a": 2}, 3, np.float16, create=True)
    for _ in range(2):
        store.write(np.arange(3), "a", np.array([[1e6, 0.1], [np.nan, -1e6], [65504, 3]], dtype=np.float32))
    assert [record.message.split()[0] for record in caplog.records] == ["a"]
    np.testing.assert_array_equal(store.read("a", 0, 3), np.float16([[65504, 0.1], [np.nan, -65504], [65504, 3]]))


def test_wrong_shapes_and_a_store_that_is_not_there_or_another(tmp_path):
    with pytest.raises(OSError, match="a.rows' is not there, or has not 24 bytes"):
        RowStore(tmp_path, {"a": 2}, 3, np.float32, create=False)
    store = RowStore(tmp_path, {"a": 2}, 4, np.float32, create=True)
    with pytest.raises(OSError, match="has not 24 bytes"):
        RowStore(tmp_path, {"a": 2}, 3, np.float32, create=False)
    for shape in ((2, 3), (3, 2), (4,)):
        with pytest.raises(ValueError, match=r"'a' .* shape \(2, 2\)"):
            store.write(np.array([0, 2]), "a", np.zeros(shape))


# Results


def fill(store, path, targets, columns=None, world=1):
    create_arrays(store, path, targets, columns=columns)
    for rank in range(world):
        write_arrays(store, path, targets, share=(rank, world))
    write_elements(path, {})


@pytest.mark.parametrize(("dtype", "world"), [(np.float32, 1), (np.float16, 3)])
def test_layers_round_trip(path, make_store, monkeypatch, dtype, world):
    # Chunks of 4 rows, and blocks of two chunks.
    monkeypatch.setattr(_stream, "_CHUNK_BYTES", 4 * 5 * np.dtype(dtype).itemsize)
    monkeypatch.setattr(_stream, "_BLOCK_BYTES", 8 * 5 * np.dtype(dtype).itemsize)
    before = ad.read_zarr(path)
    arrays = {"mean": values_of(30, 5, dtype), "dropout": values_of(30, 5, dtype, seed=1)}
    fill(make_store(arrays, dtype), path, LAYERS, world=world)
    after = ad.read_zarr(path)
    assert set(layers_of(after)) == {"dusted_mean", "dusted_dropout", "kept"}
    for name, values in arrays.items():
        layer = after.layers[f"dusted_{name}"]
        assert isinstance(layer, np.ndarray)
        assert layer.dtype == dtype
        np.testing.assert_array_equal(layer, values)
    np.testing.assert_array_equal(after.layers["kept"], before.layers["kept"])
    assert (after.X != before.X).nnz == 0
    group = zarr.open_group(path)
    assert group["layers/dusted_mean"].chunks == (4, 5)
    assert group["layers/dusted_mean"].compressors
    assert group["layers/dusted_mean"].metadata.zarr_format == group.metadata.zarr_format


def test_shares_are_disjoint(path, make_store, monkeypatch):
    monkeypatch.setattr(_stream, "_CHUNK_BYTES", 80)
    monkeypatch.setattr(_stream, "_BLOCK_BYTES", 80)
    store = make_store({"mean": np.ones((30, 5))})
    written = []
    for rank in range(2):
        create_arrays(store, path, MEAN)
        write_arrays(store, path, MEAN, share=(rank, 2))
        written.append(zarr.open_group(path, use_consolidated=False)["layers/dusted_mean"][:].all(axis=1))
    assert written[0].sum() == 16
    np.testing.assert_array_equal(written[0], ~written[1])


@pytest.mark.parametrize(("dtype", "world"), [(np.float32, 1), (np.float16, 2)])
def test_a_gene_subset_is_the_same_frame_as_in_memory(path, make_store, monkeypatch, tmp_path, dtype, world):
    monkeypatch.setattr(_stream, "_COLUMN_ROWS", 8)
    monkeypatch.setattr(_stream, "_COLUMNS", 2)
    monkeypatch.setattr(_stream, "_BLOCK_BYTES", 30)
    values, genes = values_of(30, 3, dtype), ["gene4", "gene0", "gene2"]
    adata = ad.read_zarr(path)
    adata.obsm["dusted_mean"] = pd.DataFrame(values, index=adata.obs_names, columns=genes)
    adata.write_zarr(tmp_path / "memory.zarr")
    expected = ad.read_zarr(tmp_path / "memory.zarr").obsm["dusted_mean"]
    fill(make_store({"mean": values}, dtype), path, {"mean": "obsm/dusted_mean"}, {"mean": genes}, world)
    pd.testing.assert_frame_equal(ad.read_zarr(path).obsm["dusted_mean"], expected)


def test_what_was_there_is_replaced_by_another_kind(path, make_store):
    store = make_store({"mean": values_of(30, 5)})
    genes = [f"gene{i}" for i in range(5)]
    for columns in ({"mean": genes}, None, {"mean": genes[::-1]}):
        fill(store, path, {"mean": "obsm/x"}, columns)
        assert (ad.read_zarr(path).obsm["x"] == store.read("mean", 0, 30)).all(axis=None)
    with pytest.raises(ValueError, match=r"\['a/b'\]"):
        create_arrays(store, path, {"mean": "obsm/y"}, columns={"mean": ["a/b", *genes[1:]]})
    assert "y" not in ad.read_zarr(path).obsm


def test_small_parts(path, assert_same):
    fields = {
        "uns/dusted": {"seed": 0, "written": ["uns/dusted"], "loss": np.arange(3.0)},
        "uns/other": 2,
        "obsm/X_dusted": values_of(30, 3),
        "obsp/graph": sparse.csr_matrix(np.eye(30)),
        "var/dusted_modelled": np.arange(5) < 2,
    }
    write_elements(path, fields, remove=["layers/dusted_mean", "var/b", "obs/none", "obsm/none"])
    after = ad.read_zarr(path)
    assert list(layers_of(after)) == ["kept"]
    assert list(after.var) == ["dusted_modelled"]
    assert after.var["dusted_modelled"].tolist() == [True, True, False, False, False]
    assert list(after.var_names) == [f"gene{i}" for i in range(5)]
    assert list(after.obs) == ["a"]
    assert after.uns["other"] == 2
    assert after.uns["dusted"]["written"] == ["uns/dusted"]
    assert_same(after.obsm["X_dusted"], fields["obsm/X_dusted"])
    assert_same(after.obsp["graph"], fields["obsp/graph"])
    write_elements(path, {"var/dusted_modelled": np.ones(5, dtype=bool)})
    assert ad.read_zarr(path).var["dusted_modelled"].all()


def test_missing_groups_are_made_and_seen_by_lazy_readers(path, make_store):
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    shutil.rmtree(path / "layers")
    values = values_of(30, 5)
    fill(make_store({"mean": values}), path, MEAN)
    layers = ad.experimental.read_lazy(path).layers
    assert [name for name in layers if name is not None] == ["dusted_mean"]
    np.testing.assert_array_equal(layers["dusted_mean"].compute(), values)


# A full disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_space_is_reserved_or_taken(tmp_path, monkeypatch):
    if hasattr(os, "posix_fallocate"):
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"4.00 GB are needed.* on the disk of: '.*'"):
            RowStore(tmp_path, {"a": 1000}, 1_000_000, np.float32, create=True)
        assert list(tmp_path.iterdir()) == []
        monkeypatch.delattr(os, "posix_fallocate")
    store = RowStore(tmp_path, {"a": 3000, "b": 1}, 1500, np.float32, create=True)
    assert not store.read("a", 0, 1500).any()
    assert (tmp_path / "a.rows").stat().st_blocks * 512 >= 1500 * 3000 * 4


def test_a_full_disk_of_zarr_is_explained_and_other_errors_stay_what_they_are(path, make_store, monkeypatch):
    store = make_store({"mean": values_of(30, 5)})
    create_arrays(store, path, MEAN)

    def fail(*_, **__):
        raise PermissionError("not yours")

    for put, error, message in (
        (full, OSError, r"GB are needed, and .* on the disk of: '.*'"),
        (fail, PermissionError, "^not yours"),
    ):
        monkeypatch.setattr(zarr.storage._local, "_put", put)
        with pytest.raises(error, match=message):
            write_arrays(store, path, MEAN)
