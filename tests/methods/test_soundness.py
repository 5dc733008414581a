"""What is said of the result of a network, on results that are known to be sound or collapsed."""

import logging

import anndata as ad
import numpy as np
import pytest
import torch

import stdenoise as st
from stdenoise.methods._soundness import Soundness
from stdenoise.spatial.results import Block
from stdenoise.train.run import Run


@pytest.fixture(scope="module")
def tissue():
    adata = st.datasets.tissue(n_spots=400, n_genes=60)
    st.pp.spatial_graph(adata)
    return adata


@pytest.fixture
def report(read_spots):
    def report(adata, mean, *, scale="counts", ending=None):
        soundness = Soundness(read_spots(adata, graph_key="spatial", spatial_key="spatial"))
        mean = torch.as_tensor(np.asarray(mean, dtype=np.float32))
        parts = torch.arange(len(mean)).flip(0).chunk(3)
        found = list(soundness.watch((rows, Block(mean=mean[rows], scale=scale)) for rows in parts))
        assert [len(rows) for rows, _ in found] == [len(rows) for rows in parts]
        return soundness.report(ending or {}, Run(), label="dusted")

    return report


def log_normalized(counts):
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def test_the_truth_is_sound_and_its_values_are_those_of_numpy(tissue, caplog, report):
    values = tissue.layers["true_mean"]
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        found = report(tissue, values, ending={"stopped": "…", "held_out_explained": 0.25})
    assert found["held_out_explained"] == 0.25
    assert found["neighbor_correlation"] > 0.45
    assert [record.levelname for record in caplog.records] == ["INFO"]
    expression = log_normalized(values)
    shares = np.linalg.eigvalsh(np.cov(expression.T))
    shares = shares[shares > 0] / shares.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)
    assert found["first_two_components"] == pytest.approx(np.sort(shares)[-2:].sum(), rel=1e-3)
    near = (tissue.obsp["spatial_connectivities"].toarray() > 0) + np.eye(len(values))
    mean = near / near.sum(1, keepdims=True)
    smooth = mean @ mean @ log_normalized(tissue.X.toarray())
    each = [np.corrcoef(expression[:, j], smooth[:, j])[0, 1] for j in range(values.shape[1])]
    assert found["neighbor_correlation"] == pytest.approx(np.sort(each)[len(each) // 2 - 1], abs=1e-4)
    # Values on the log scale are taken as they are.
    logs = report(tissue, expression, scale="log1p", ending={"held_out_explained": 0.25})
    assert found == pytest.approx(logs, rel=1e-4)


def test_a_collapse_is_a_warning(tissue, caplog, report):
    # All genes follow one pattern, which has nothing to do with theirs, and next to nothing of another one.
    rng = np.random.default_rng(0)
    patterns, weights = rng.normal(size=(tissue.n_obs, 2)), rng.normal(size=(2, tissue.n_vars))
    found = report(tissue, np.exp(patterns * [0.3, 0.03] @ weights))
    assert found["effective_rank"] < 1.6
    assert found["first_two_components"] > 0.95
    assert found["neighbor_correlation"] < 0.15
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in ("effective rank", "two hops", "highly_variable"):
        assert part in record.message
    # Of few genes a low rank is none.
    caplog.clear()
    few = tissue[:, :5].copy()
    report(few, np.exp(np.linspace(0, 1, few.n_obs))[:, None] * np.arange(1, 6))
    assert not caplog.records


def test_every_network_is_looked_at_and_the_record_survives_the_disk(tissue, tmp_path):
    for method, params in (("dusted", {"n_hidden": 8}), ("stagate", {"n_hidden": 8}), ("dca", {"hidden": (8,)})):
        adata = st.tl.denoise(tissue, method, n_epochs=2, copy=True, **params)
        adata.write_h5ad(tmp_path / "a.h5ad")
        record = ad.read_h5ad(tmp_path / "a.h5ad").uns[method]
        assert record["training"]["stopped"] == "all 2 epochs are over"
        assert record["check"]["effective_rank"] >= 1
        assert ("neighbor_correlation" in record["check"]) == (method != "dca")


def test_from_disk_to_disk_the_same_is_seen(tissue, tmp_path):
    params = {"method": "dusted", "schedule": "paper", "n_epochs": 3}
    whole = st.tl.denoise(tissue, copy=True, **params).uns["dusted"]["check"]
    tissue.write_zarr(tmp_path / "in.zarr")
    st.tl.denoise(tmp_path / "in.zarr", out=tmp_path / "out.zarr", compute=st.Compute(memory=0.75), **params)
    assert ad.read_zarr(tmp_path / "out.zarr").uns["dusted"]["check"] == pytest.approx(whole, rel=1e-3)
