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
from stdenoise._io.read import layers_of, read_graph, select_genes
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


def assert_same_rows(source, expected, entries):
    blocks = list(source.row_blocks(entries))
    heights = [block.shape[0] for _, block in blocks]
    assert [first for first, _ in blocks] == [0, *np.cumsum(heights)[:-1]]
    assert all(isinstance(block, sparse.csr_matrix) for _, block in blocks)
    np.testing.assert_array_equal(sparse.vstack([block for _, block in blocks]).toarray(), expected.toarray())
    return blocks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_all_kinds_give_the_same_counts_in_blocks_of_about_the_entries_asked_for(opened, tissue, kind, layer):
    source = open_source(opened(kind), layer)
    matrix = sparse.csr_matrix(tissue.X if layer is None else tissue.layers[layer])
    row = matrix.shape[1] if layer == "dense" else np.diff(matrix.indptr).max()
    for entries in (1, 40, 100, 2**24):
        blocks = assert_same_rows(source, matrix, entries)
        if entries in (40, 100) and "dask" not in kind and "lazy" not in kind:
            held = [np.prod(block.shape) if layer == "dense" else block.nnz for _, block in blocks]
            assert max(held) <= entries
            # All but the last are as large as they can be: another row would not fit.
            assert min(held[:-1]) > entries - row


def test_chunks_are_kept_whole(opened, bare, tmp_path):
    for layer in (None, "dense"):
        source = open_source(opened("dask"), layer)
        for entries, height in ((1, 7), (140, 14), (209, 14), (210, 21)):
            assert {first % height for first, _ in source.row_blocks(entries)} == {0}
    bare.X = bare.X.toarray()
    bare.write_zarr(tmp_path / "a.zarr", chunks=(8, 5))
    source = open_source(tmp_path / "a.zarr", None)
    assert [first for first, _ in source.row_blocks(190)] == [0, 16, 32]
    assert [first for first, _ in source.row_blocks(50)][:3] == [0, 5, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_all_else_is_in_memory_and_copies_are_complete(opened, tissue, kind, tmp_path, assert_same):
    data = opened(kind)
    source = open_source(data, None)
    light = source.light
    assert light.X is None
    assert not light.layers
    assert isinstance(light.obs, pd.DataFrame)
    assert isinstance(light.obs["library"].dtype, pd.CategoricalDtype)
    assert type(light.obsm["spatial"]).__module__ != "dask.array.core"
    source.copy_to(tmp_path / "copy.zarr")
    copy = ad.read_zarr(tmp_path / "copy.zarr")
    for part in ("obs", "var", "obsm", "varm", "obsp", "varp", "layers"):
        assert_same(dict(getattr(copy, part)), dict(getattr(tissue, part)))
        if part != "layers":
            assert_same(dict(getattr(light, part)), dict(getattr(tissue, part)))
    for adata in (light, copy):
        assert adata.uns["spatial_neighbors"].keys() == tissue.uns["spatial_neighbors"].keys()
    assert copy.X.format == "csr"
    assert copy.X.dtype == tissue.X.dtype
    assert copy.layers["integers"].dtype == np.uint16
    assert_same(copy.raw.X, tissue.raw.X)
    assert list(copy.raw.var_names) == list(tissue.raw.var_names)
    assert "X/data" in zarr.open_consolidated(tmp_path / "copy.zarr")
    # A copy can be read block by block as its original.
    assert_same_rows(open_source(tmp_path / "copy.zarr", None), tissue.X, 50)
    # The readers take what is in memory, and what they write there stays there.
    np.testing.assert_array_equal(select_genes(light, "highly_variable"), [0, 2, 4, 6, 8])
    del light.obsp["spatial_connectivities"]
    st.pp.spatial_graph(light, radius=4.5, key_added="spatial", library_key="library")
    assert (read_graph(light, "spatial") != tissue.obsp["spatial_connectivities"]).nnz == 0
    if not isinstance(data, Path):
        assert "spatial_connectivities" in data.obsp


@pytest.mark.parametrize("kind", [".h5ad", "lazy .zarr"])
def test_copies_of_many_pieces(opened, tissue, kind, tmp_path, monkeypatch, assert_same):
    data = opened(kind)
    monkeypatch.setattr(_source, "_CHUNK", 3)
    open_source(data, None).copy_to(tmp_path / "copy.zarr")
    copy = ad.read_zarr(tmp_path / "copy.zarr")
    assert_same(copy.X, tissue.X)
    assert_same(dict(layers_of(copy)), dict(layers_of(tissue)))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_counts_in_a_layer_only_whatever_its_name(bare, tissue, tmp_path, suffix, assert_same):
    path, names = tmp_path / f"a{suffix}", ["X", "layers", "raw"]
    bare.layers.update({**dict.fromkeys(names, bare.X), "columns": bare.X.tocsc()})
    bare.X = None
    bare.write_h5ad(path) if suffix == ".h5ad" else bare.write_zarr(path)
    for name in names:
        assert_same_rows(open_source(path, name), tissue.X, 50)
    open_source(path, "raw").copy_to(tmp_path / "copy.zarr")
    copy = ad.read_zarr(tmp_path / "copy.zarr")
    assert copy.X is None
    assert copy.layers["columns"].format == "csc"
    for name in (*names, "columns"):
        assert_same(copy.layers[name], tissue.X)
    for data in (path, bare):
        with pytest.raises(ValueError, match=r"no .*X.*'layers', 'raw'"):
            open_source(data, None)


def test_columns_are_read_in_memory_and_refused_on_disk(bare, tissue, tmp_path):
    bare.X = bare.X.tocsc()
    assert_same_rows(open_source(bare, None), tissue.X, 50)
    bare.write_zarr(tmp_path / "a.zarr")
    bare.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for data in (tmp_path / "a.zarr", tmp_path / "a.h5ad", backed, ad.experimental.read_lazy(tmp_path / "a.zarr")):
        with pytest.raises(ValueError, match=r"X.* is stored by columns .*tocsr"):
            open_source(data, None)
    backed.file.close()


def test_what_cannot_be_opened(opened, tissue, tmp_path):
    (tmp_path / "broken.h5ad").write_bytes(b"broken")
    (tmp_path / "empty.zarr").mkdir()
    for data, layer, error, message in [
        *(
            (opened(kind), "integer", KeyError, "layers.*Did you mean 'integers'")
            for kind in ("memory", ".h5ad", ".zarr")
        ),
        ("tissue.h5ad", None, TypeError, "not str"),
        (tmp_path / "none.zarr", None, FileNotFoundError, "none.zarr"),
        (tmp_path / "a.csv", None, ValueError, "file format"),
        (tissue[:0].copy(), None, ValueError, "nothing in adata.X: 0 spots"),
        (tmp_path / "broken.h5ad", None, OSError, "broken.h5ad"),
        (tmp_path / "empty.zarr", None, OSError, "empty.zarr"),
        (opened("backed")[:5], None, ValueError, "to_memory"),
    ]:
        with pytest.raises(error, match=message):
            open_source(data, layer)


# Damage


@pytest.fixture
def chunked(bare, tmp_path):
    """Write the tissue as `.zarr`, its entries in chunks of 20 and the dense layer in chunks of 8 rows."""
    path = tmp_path / "chunked.zarr"
    bare.layers["dense"] = bare.X.toarray()
    with ad.settings.override(zarr_write_format=2):
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


@pytest.mark.parametrize(
    ("name", "damage"), [("data", truncate), ("data", Path.unlink), ("indices", scramble), ("indices", Path.unlink)]
)
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
    with pytest.raises(OSError, match=r"rows 16 to 23 of layers\['dense'\] of '.*chunked.zarr'"):
        list(source.row_blocks(80))


def test_chunks_of_zeros_may_be_missing(bare, tmp_path):
    # zarr stores no chunk of nothing but zeros: here, the column of all entries.
    bare.X = sparse.csr_matrix((np.ones(41, np.float32), np.zeros(41, int), np.arange(42)), shape=bare.shape)
    bare.write_zarr(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr")["X"]
    assert group["indices"].nchunks_initialized == 0
    assert_same_rows(open_source(tmp_path / "a.zarr", None), bare.X, 10)


def test_columns_out_of_range_and_a_wrong_shape(chunked):
    zarr.open_group(chunked, mode="r+")["X/indices"][30] = 10
    with pytest.raises(OSError, match="rows 0 to 40 .*between 0 and 9"):
        list(open_source(chunked, None).row_blocks())
    zarr.open_group(chunked, mode="r+", use_consolidated=False)["X"].attrs["shape"] = [40, 10]
    (chunked / ".zmetadata").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="damaged: it has 42 row pointers for 40 rows"):
        open_source(chunked, None)
