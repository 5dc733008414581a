import re
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

import stdenoise as st
from stdenoise._io import source as _source
from stdenoise._io.read import read_graph, select_genes
from stdenoise._io.source import open_source

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")

da = pytest.importorskip("dask.array")
pytest.importorskip("xarray")
KINDS = ["memory", "view", ".h5ad", ".zarr", "backed", "lazy .h5ad", "lazy .zarr", "dask"]
LAYERS = [None, "dense", "integers"]


@pytest.fixture(scope="module")
def tissue():
    """41 spots with a layer of each kind, and everything else that an AnnData can have; not to be changed."""
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.8, size=(41, 10)), dtype=np.float32)
    names = [f"spot{i}" for i in range(41)]
    adata = ad.AnnData(
        X=counts,
        obs=pd.DataFrame({"library": pd.Categorical(["a", "b"] * 20 + ["a"]), "score": rng.random(41)}, index=names),
        var=pd.DataFrame({"highly_variable": np.arange(10) % 2 == 0}, index=[f"gene{j}" for j in range(10)]),
        obsm={"spatial": rng.uniform(0, 10, (41, 2)), "table": pd.DataFrame({"a": rng.random(41)}, index=names)},
        varm={"loadings": rng.random((10, 3))},
        varp={"genes": sparse.csr_matrix(np.eye(10))},
        layers={"dense": counts.toarray() * 2, "integers": counts.astype(np.uint16)},
    )
    st.pp.spatial_graph(adata, radius=4.5, library_key="library")
    adata.raw = adata[:, :7].copy()
    return adata


@pytest.fixture(scope="module")
def folder(tissue, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    tissue.write_zarr(folder / "tissue.zarr")
    tissue.write_h5ad(folder / "tissue.h5ad")
    return folder


@pytest.fixture
def opened(tissue, folder):
    """Give the tissue as what it can be opened from."""
    handles = []

    def give(kind):
        if kind == "memory":
            return tissue.copy()
        if kind == "view":
            return tissue[:]
        if kind == "dask":
            lazy = tissue.copy()
            lazy.X = da.from_array(tissue.X, chunks=(7, 10), asarray=False)
            lazy.layers["dense"] = da.from_array(tissue.layers["dense"], chunks=(7, 4))
            return lazy
        path = folder / f"tissue{'.zarr' if kind.endswith('.zarr') else '.h5ad'}"
        if kind.startswith("."):
            return path
        adata = ad.read_h5ad(path, backed="r") if kind == "backed" else ad.experimental.read_lazy(path)
        if adata.file._file is not None:
            handles.append(adata.file)
        return adata

    yield give
    for handle in handles:
        handle.close()


@pytest.fixture
def bare(tissue):
    """Little of the tissue, to be written."""
    return ad.AnnData(X=tissue.X.copy(), obs=tissue.obs[[]], var=tissue.var[[]])


def matrix_of(tissue, layer):
    return sparse.csr_matrix(tissue.X if layer is None else tissue.layers[layer])


def assert_same_rows(source, expected, entries):
    blocks = list(source.row_blocks(entries))
    heights = [block.shape[0] for _, block in blocks]
    assert [first for first, _ in blocks] == [0, *np.cumsum(heights)[:-1]]
    np.testing.assert_array_equal(sparse.vstack([block for _, block in blocks]).toarray(), expected.toarray())
    return blocks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_all_kinds_give_the_same_counts(opened, tissue, kind, layer):
    source = open_source(opened(kind), layer)
    for entries in (1, 70, 2**24):
        blocks = assert_same_rows(source, matrix_of(tissue, layer), entries)
    assert all(isinstance(block, sparse.csr_matrix) for _, block in blocks)


@pytest.mark.parametrize("kind", ["memory", ".h5ad", ".zarr", "backed"])
@pytest.mark.parametrize("layer", LAYERS)
def test_blocks_have_about_the_entries_asked_for(opened, tissue, kind, layer):
    matrix = matrix_of(tissue, layer)
    size = matrix.shape[1] if layer == "dense" else np.diff(matrix.indptr).max()
    source = open_source(opened(kind), layer)
    for entries in (40, 100):
        blocks = list(source.row_blocks(entries))
        for _, block in blocks:
            held = np.prod(block.shape) if layer == "dense" else block.nnz
            assert held <= entries
        # All but the last are as large as they can be: another row would not fit.
        for _, block in blocks[:-1]:
            held = np.prod(block.shape) if layer == "dense" else block.nnz
            assert held > entries - size


@pytest.mark.parametrize("layer", [None, "dense"])
def test_chunks_of_dask_are_kept_whole(opened, layer):
    source = open_source(opened("dask"), layer)
    for entries, height in ((1, 7), (140, 14), (209, 14), (210, 21)):
        assert {first % height for first, _ in source.row_blocks(entries)} == {0}


def test_chunks_of_files_are_kept_whole(bare, tmp_path):
    bare.X = bare.X.toarray()
    bare.write_zarr(tmp_path / "a.zarr", chunks=(8, 5))
    source = open_source(tmp_path / "a.zarr", None)
    assert [first for first, _ in source.row_blocks(190)] == [0, 16, 32]
    assert [first for first, _ in source.row_blocks(50)][:3] == [0, 5, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_all_else_is_in_memory(opened, tissue, kind, assert_same):
    light = open_source(opened(kind), None).light
    assert light.X is None
    assert not light.layers
    assert isinstance(light.obs, pd.DataFrame)
    assert isinstance(light.obs["library"].dtype, pd.CategoricalDtype)
    assert type(light.obsm["spatial"]).__module__ != "dask.array.core"
    for part in ("obs", "var", "obsm", "varm", "obsp", "varp"):
        assert_same(dict(getattr(light, part)), dict(getattr(tissue, part)))
    assert light.uns["spatial_neighbors"].keys() == tissue.uns["spatial_neighbors"].keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_readers_take_it(opened, tissue, kind):
    data = opened(kind)
    light = open_source(data, None).light
    np.testing.assert_array_equal(select_genes(light, "highly_variable"), [0, 2, 4, 6, 8])
    del light.obsp["spatial_connectivities"]
    st.pp.spatial_graph(light, radius=4.5, key_added="spatial", library_key="library")
    assert (read_graph(light, "spatial") != tissue.obsp["spatial_connectivities"]).nnz == 0
    if not isinstance(data, Path):
        assert "spatial_connectivities" in data.obsp


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_complete(opened, tissue, kind, tmp_path, assert_same):
    source = open_source(opened(kind), None)
    source.copy_to(tmp_path / "copy.zarr")
    copy = ad.read_zarr(tmp_path / "copy.zarr")
    for part in ("obs", "var", "obsm", "varm", "obsp", "varp", "layers"):
        assert_same(dict(getattr(copy, part)), dict(getattr(tissue, part)))
    assert copy.X.format == "csr"
    assert copy.X.dtype == tissue.X.dtype
    assert_same(copy.X, tissue.X)
    assert copy.uns["spatial_neighbors"].keys() == tissue.uns["spatial_neighbors"].keys()
    assert_same(copy.raw.X, tissue.raw.X)
    assert list(copy.raw.var_names) == list(tissue.raw.var_names)
    assert copy.layers["integers"].dtype == np.uint16
    assert "X/data" in zarr.open_consolidated(tmp_path / "copy.zarr")
    # A copy can be read block by block as its original.
    assert_same_rows(open_source(tmp_path / "copy.zarr", None), tissue.X, 50)


@pytest.mark.parametrize("kind", [".h5ad", "lazy .zarr"])
def test_copies_of_many_pieces(opened, tissue, kind, tmp_path, monkeypatch, assert_same):
    data = opened(kind)
    monkeypatch.setattr(_source, "_CHUNK", 3)
    open_source(data, None).copy_to(tmp_path / "copy.zarr")
    copy = ad.read_zarr(tmp_path / "copy.zarr")
    assert_same(copy.X, tissue.X)
    assert_same(dict(copy.layers), dict(tissue.layers))


def test_a_copy_of_columns(bare, tmp_path, assert_same):
    bare.layers["columns"] = bare.X.tocsc()
    bare.write_h5ad(tmp_path / "a.h5ad")
    open_source(tmp_path / "a.h5ad", None).copy_to(tmp_path / "copy.zarr")
    copy = ad.read_zarr(tmp_path / "copy.zarr")
    assert copy.layers["columns"].format == "csc"
    assert_same(copy.layers["columns"], bare.X)


@pytest.mark.parametrize("name", ["raw", "layers", "X"])
def test_layers_of_odd_names(bare, tmp_path, name, assert_same):
    bare.layers[name] = bare.X
    bare.write_h5ad(tmp_path / "a.h5ad")
    source = open_source(tmp_path / "a.h5ad", name)
    source.copy_to(tmp_path / "copy.zarr")
    assert_same(ad.read_zarr(tmp_path / "copy.zarr").layers[name], bare.X)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_counts_in_a_layer_only(bare, tissue, tmp_path, suffix):
    bare.layers["counts"] = bare.X
    bare.X = None
    path = tmp_path / f"a{suffix}"
    bare.write_h5ad(path) if suffix == ".h5ad" else bare.write_zarr(path)
    source = open_source(path, "counts")
    assert_same_rows(source, tissue.X, 50)
    source.copy_to(tmp_path / "copy.zarr")
    assert ad.read_zarr(tmp_path / "copy.zarr").X is None
    for data in (path, bare):
        with pytest.raises(ValueError, match=r"there is no .*X.*; pass layer=, one of \['counts'\]"):
            open_source(data, None)


def test_columns_in_memory(bare, tissue):
    bare.X = bare.X.tocsc()
    assert_same_rows(open_source(bare, None), tissue.X, 50)


def test_columns_on_disk_are_refused(bare, tmp_path):
    bare.X = bare.X.tocsc()
    bare.write_zarr(tmp_path / "a.zarr")
    bare.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for data in (tmp_path / "a.zarr", tmp_path / "a.h5ad", backed, ad.experimental.read_lazy(tmp_path / "a.zarr")):
        with pytest.raises(ValueError, match=r"X.* is stored by columns .* adata.X = adata.X.tocsr\(\)"):
            open_source(data, None)
    backed.file.close()


@pytest.mark.parametrize("kind", ["memory", ".h5ad", ".zarr"])
def test_unknown_layers(opened, kind):
    with pytest.raises(KeyError, match="'integer' is not in .*layers.*Did you mean 'integers'"):
        open_source(opened(kind), "integer")


def test_what_cannot_be_opened(tissue, tmp_path):
    with pytest.raises(TypeError, match="not str"):
        open_source("tissue.h5ad", None)
    with pytest.raises(FileNotFoundError, match="none.zarr"):
        open_source(tmp_path / "none.zarr", None)
    with pytest.raises(ValueError, match="file format"):
        open_source(tmp_path / "a.csv", None)
    with pytest.raises(ValueError, match="nothing in adata.X: 0 spots"):
        open_source(tissue[:0].copy(), None)
    (tmp_path / "broken.h5ad").write_bytes(b"broken")
    with pytest.raises(OSError, match="broken.h5ad"):
        open_source(tmp_path / "broken.h5ad", None)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(OSError, match="empty.zarr"):
        open_source(tmp_path / "empty.zarr", None)


def test_views_of_backed_data_are_refused(opened):
    with pytest.raises(ValueError, match="to_memory"):
        open_source(opened("backed")[:5], None)


# Damage


@pytest.fixture
def chunked(bare, tmp_path):
    """Write the tissue as `.zarr`, its entries in chunks of 20 and the dense layer in chunks of 8 rows."""
    path = tmp_path / "chunked.zarr"
    bare.layers["dense"] = bare.X.toarray()
    bare.write_zarr(path)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name in ("X/data", "X/indices", "layers/dense"):
        values, attributes = group[name][:], group[name].attrs.asdict()
        chunks = (8, 10) if values.ndim == 2 else (20,)
        group.create_array(name, data=values, chunks=chunks, attributes=attributes, overwrite=True)
    zarr.consolidate_metadata(group.store)
    return path


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def scramble(file):
    file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))


@pytest.mark.parametrize("damage", [truncate, scramble, Path.unlink])
@pytest.mark.parametrize("name", ["data", "indices"])
def test_unreadable_blocks_are_named(chunked, tissue, name, damage):
    source = open_source(chunked, None)
    damage(chunked / "X" / name / "4")
    # That chunk has entries 80 to 99.
    rows = [int(row) for row in np.searchsorted(tissue.X.indptr, [80, 99], side="right") - 1]
    read = 0
    with pytest.raises(OSError, match=r"cannot read rows \d+ to \d+ of X of '.*chunked.zarr'") as error:
        for first, block in source.row_blocks(30):
            read = first + block.shape[0]
    first, last = map(int, re.search(r"rows (\d+) to (\d+)", str(error.value)).groups())
    assert first == read
    assert first <= rows[1]
    assert last >= rows[0]


@pytest.mark.parametrize("damage", [truncate, scramble])
def test_unreadable_rows_of_a_dense_layer(chunked, damage):
    source = open_source(chunked, "dense")
    damage(chunked / "layers/dense/2.0")
    with pytest.raises(OSError, match=r"cannot read rows 16 to 23 of layers\['dense'\] of '.*chunked.zarr'"):
        list(source.row_blocks(80))


def test_chunks_of_zeros_may_be_missing(bare, tmp_path):
    # zarr stores no chunk of nothing but zeros: here, the column of all entries.
    bare.X = sparse.csr_matrix((np.ones(41, np.float32), np.zeros(41, int), np.arange(42)), shape=bare.shape)
    bare.write_zarr(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr")["X"]
    assert group["indices"].nchunks_initialized == 0
    assert_same_rows(open_source(tmp_path / "a.zarr", None), bare.X, 10)


def test_columns_out_of_range(chunked):
    zarr.open_group(chunked, mode="r+")["X/indices"][30] = 10
    with pytest.raises(OSError, match="cannot read rows 0 to 40 .*between 0 and 9"):
        list(open_source(chunked, None).row_blocks())


def test_a_wrong_shape(chunked):
    zarr.open_group(chunked, mode="r+", use_consolidated=False)["X"].attrs["shape"] = [40, 10]
    (chunked / ".zmetadata").unlink(missing_ok=True)
    with pytest.raises(OSError, match=r"damaged: it has shape \(40, 10\), not \(41, 10\)"):
        open_source(chunked, None)
