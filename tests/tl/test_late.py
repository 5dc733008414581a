"""What is known before the training is said before it, and what changes during it is noticed after it."""

import datetime
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

import stdenoise as st
from stdenoise.methods import DUSTED
from stdenoise.methods.baselines import NeighborMean
from stdenoise.tl import _open_run
from stdenoise.tl._plan import Plan


@pytest.fixture
def tissue():
    adata = st.datasets.tissue(n_spots=150, n_genes=20)
    st.pp.spatial_graph(adata)
    return adata


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(DUSTED, "train", lambda *_: pytest.fail("work was done"))


@pytest.fixture
def streams(monkeypatch):
    """Leave counts on disk."""
    import torch

    plan = lambda *_, may_stream, **__: Plan(70, may_stream, torch.device("cpu"), {}, 1.0)
    monkeypatch.setattr(_open_run, "make_plan", plan)


@pytest.mark.parametrize(
    ("holder", "value", "out"),
    [
        # To a .zarr, dates are written as text.
        ("obs", [datetime.date(2026, 1, 1)] * 150, "out.h5ad"),
        ("obsm", "table", "out.h5ad"),
        ("uns", Path("somewhere"), "out.h5ad"),
        ("uns", Path("somewhere"), "out.zarr"),
    ],
    ids=["dates", "table", "path", "path to zarr"],
)
def test_what_cannot_be_written(tissue, tmp_path, no_work, holder, value, out):
    if holder == "obsm":
        value = pd.DataFrame({"when": [datetime.date(2026, 1, 1)] * 150}, index=tissue.obs_names)
    getattr(tissue, holder)["odd"] = value
    with pytest.raises(ValueError, match=f"adata.{holder}.* cannot be written to .*{out}"):
        st.tl.denoise(tissue, out=tmp_path / out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["out.h5ad", "out.zarr"])
@pytest.mark.parametrize("names", [["XCL1/2", "XCL1"], ["XCL1", "XCL1/2"], ["_index", "XCL1"]])
def test_genes_that_cannot_be_columns(tissue, tmp_path, no_work, out, names):
    tissue.var_names = names + [f"gene{i}" for i in range(18)]
    with pytest.raises(ValueError, match="names of genes cannot be those of columns on disk"):
        st.tl.denoise(tissue, genes=[*names, "gene1"], out=tmp_path / out)
    st.tl.denoise(tissue, "raw", out=tmp_path / out)


@pytest.mark.parametrize("source", ["in.h5ad", "in.zarr"])
@pytest.mark.parametrize("out", ["out.h5ad", "out.zarr"])
def test_text_with_missing_values_comes_back(tissue, tmp_path, streams, source, out):
    for name in ("obs", "var"):
        table = getattr(tissue, name).copy()
        table.index = pd.Index(pd.array(table.index, dtype="string"))
        table["text"] = pd.array([f"t{i}" for i in range(len(table) - 1)] + [pd.NA], dtype="string")
        setattr(tissue, name, table)
    with ad.settings.override(allow_write_nullable_strings=True):
        tissue.write_h5ad(tmp_path / source) if source.endswith("h5ad") else tissue.write_zarr(tmp_path / source)
    st.tl.denoise(tmp_path / source, "neighbor_mean", out=tmp_path / out)
    back = ad.read_h5ad(tmp_path / out) if out.endswith("h5ad") else ad.read_zarr(tmp_path / out)
    assert list(back.obs_names) == list(tissue.obs_names)
    assert back.obs["text"].isna().sum() == 1
    assert back.obs["text"].iloc[0] == "t0"


def test_a_graph_of_this_run_replaces_that_of_the_input(tissue, tmp_path):
    b = tissue.copy()
    both = ad.concat({"a": tissue, "b": b}, label="lib", uns_merge="first", index_unique="-")
    assert "spatial_neighbors" in both.uns
    for name in ("in.h5ad", "in.zarr"):
        both.write_h5ad(tmp_path / name) if name.endswith("h5ad") else both.write_zarr(tmp_path / name)
        st.tl.denoise(tmp_path / name, "neighbor_mean", library_key="lib", out=tmp_path / "out.zarr")
        back = ad.read_zarr(tmp_path / "out.zarr")
        record = back.uns["spatial_neighbors"]
        assert (
            record["stats"]["n_edges"]
            == back.obsp["spatial_connectivities"].nnz
            == 2 * tissue.obsp["spatial_connectivities"].nnz
        )
        assert record["params"]["library_key"] == "lib"


@pytest.mark.parametrize("source", ["in.h5ad", "in.zarr"])
def test_a_section_that_changes_while_it_is_read(tissue, tmp_path, streams, monkeypatch, source):
    path = tmp_path / source
    tissue.write_h5ad(path) if source.endswith("h5ad") else tissue.write_zarr(path)
    run = NeighborMean.run

    def change(self, *args):
        yield from run(self, *args)
        if source.endswith("h5ad"):
            tissue[:, ::-1].write_h5ad(path)
        else:
            zarr.open_group(path, mode="r+")["X/data"][0] += 1

    monkeypatch.setattr(NeighborMean, "run", change)
    with pytest.raises(OSError, match="was changed while it was read"):
        st.tl.denoise(path, "neighbor_mean", out=tmp_path / "out.zarr")
    assert [path.name for path in tmp_path.iterdir()] == [source]


def test_a_result_that_is_none_is_not_written(tissue, tmp_path, streams, unchanged):
    st.tl.train(tissue, "dusted", n_epochs=2, n_hidden=8, n_latent=3).save(tmp_path / "model.pt")
    model = st.methods.load(tmp_path / "model.pt")
    for state in model.model.state.values():
        if state.is_floating_point():
            state.fill_(np.nan)
    for out in (None, "out.h5ad", "out.zarr"):
        with unchanged(tissue), pytest.raises(FloatingPointError, match="dusted_mean has .* NaN"):
            st.tl.denoise(tissue, model, out=None if out is None else tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_tables_of_spatialdata(tissue, tmp_path):
    group = zarr.open_group(tmp_path / "store.zarr", mode="w")
    for name in ("images", "shapes", "points", "tables"):
        group.create_group(name)
    ad.io.write_elem(group["tables"], "cells", tissue)
    with pytest.raises(ValueError, match=r"SpatialData store; name one of its tables: \['.*store.zarr/tables/cells'\]"):
        st.tl.denoise(tmp_path / "store.zarr", "raw", out=tmp_path / "out.h5ad")
    for method, out in (("raw", "out.h5ad"), ("neighbor_mean", "out.zarr")):
        st.tl.denoise(tmp_path / "store.zarr/tables/cells", method, out=tmp_path / out)
        back = ad.read_h5ad(tmp_path / out) if out.endswith("h5ad") else ad.read_zarr(tmp_path / out)
        assert back.layers[f"{method}_mean"].shape == (150, 20)
