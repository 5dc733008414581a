"""Trained networks: saved, read by another process, and applied to sections that they were not trained on."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise.methods import DUSTED
from stdenoise.methods._network import Model, Trained

SMALL = {"n_hidden": 8, "n_latent": 3, "n_epochs": 8}
# Large steps from where the means are not far off.
DUSTED_SMALL = {**SMALL, "gate_reduction": 4, "alpha": 0.1, "lr": 1e-2}
NETWORKS = {
    "dusted, nb": ("dusted", {**DUSTED_SMALL, "likelihood": "nb"}),
    "dusted, zinb": ("dusted", DUSTED_SMALL),
    "dusted, paper": ("dusted", {**DUSTED_SMALL, "schedule": "paper"}),
    "stagate": ("stagate", SMALL),
    "dca": ("dca", {"hidden": (8, 4, 8), "n_epochs": 5}),
}
# Genes that the model has not seen, with no counts: size factors are taken over all genes.
EXTRA = ["other1", "other2"]


@pytest.fixture(scope="module")
def section():
    adata = st.datasets.tissue(n_spots=160, n_genes=12)
    st.pp.spatial_graph(adata)
    return adata


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, section, tmp_path_factory):
    """Name of a method, a file of its network, and the section with the result of its training."""
    method, params = NETWORKS[request.param]
    path = tmp_path_factory.mktemp("models") / "network.pt"
    return method, path, kept(section, path, method, **params)


@pytest.fixture(scope="module")
def dusted_model(section, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "dusted.pt"
    kept(section, path, **DUSTED_SMALL)
    return path


def kept(section, path, method="dusted", **params):
    """Save a trained network, and return the section with the result of the same training."""
    st.tl.train(section, method, **params).save(path)
    return st.tl.denoise(section, method, copy=True, **params)


def applied(section, path, **arguments):
    return st.tl.denoise(section, st.methods.load(path), copy=True, **arguments)


def arrays_of(adata, key):
    """All arrays of a result, of the modelled genes in alphabetical order."""
    found = {name: values for name, values in adata.layers.items() if name.startswith(key)}
    found = {name: pd.DataFrame(values, adata.obs_names, adata.var_names) for name, values in found.items()}
    found |= {name: values for name, values in adata.obsm.items() if name.startswith(f"{key}_")}
    return {name: frame.sort_index(axis=1) for name, frame in found.items()} | {
        "latent": pd.DataFrame(adata.obsm[f"X_{key}"], adata.obs_names)
    }


def compare(left, right, check):
    assert left.keys() == right.keys()
    for name in left:
        assert list(left[name].columns) == list(right[name].columns)
        check(left[name].to_numpy(), right[name].to_numpy())


def subset(adata, keep):
    """Some spots, with the edges among them."""
    return adata[keep].copy()


def with_genes(adata, names):
    """The same section with its genes in this order; those that it does not have get no counts."""
    counts = pd.DataFrame(adata.X.toarray(), columns=adata.var_names).reindex(columns=names, fill_value=0)
    return ad.AnnData(
        X=sparse.csr_matrix(counts.to_numpy()),
        obs=adata.obs.copy(),
        var=pd.DataFrame(index=names),
        obsm={"spatial": adata.obsm["spatial"]},
        obsp=dict(adata.obsp),
    )


# The same section


def test_a_saved_network_gives_the_result_of_its_training(section, trained):
    method, path, before = trained
    after = applied(section, path)
    compare(arrays_of(after, method), arrays_of(before, method), np.testing.assert_array_equal)
    ours, theirs = after.uns[method], before.uns[method]
    for name in ("method", "params", "scale", "genes"):
        assert ours[name] == theirs[name]
    np.testing.assert_array_equal(ours["history"]["loss"], theirs["history"]["loss"])
    # Nothing else is in the folder.
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_trained(section, trained, monkeypatch):
    method, path, _ = trained
    monkeypatch.setattr(type(st.methods.load(path).network), "train", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(pytest.fail.Exception):
        st.tl.denoise(section, method, copy=True)
    applied(section, path)


def test_another_process_gives_the_same_results(section, tmp_path):
    before = {}
    for name, (method, params) in NETWORKS.items():
        before[name] = kept(section, tmp_path / f"{name}.pt", method, **params)
    section.write_h5ad(tmp_path / "in.h5ad")
    script = """
import pathlib, anndata, stdenoise as st
for path in pathlib.Path().glob("*.pt"):
    model = st.methods.load(path)
    st.tl.denoise(anndata.read_h5ad("in.h5ad"), model, out=path.with_suffix(".h5ad"), dtype="float32")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, (method, _) in NETWORKS.items():
        after = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        compare(arrays_of(after, method), arrays_of(before[name], method), np.testing.assert_array_equal)


def test_a_file_holds_nothing_of_a_device(trained):
    network = st.methods.load(trained[1])
    assert {tensor.device.type for tensor in network.model.state.values()} == {"cpu"}
    assert network.info.name == trained[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_network_from_a_gpu_runs_on_the_cpu(section, tmp_path):
    path = tmp_path / "network.pt"
    before = kept(section, path, device="cuda", **DUSTED_SMALL)
    after = applied(section, path, device="cpu")
    np.testing.assert_allclose(after.layers["dusted_mean"], before.layers["dusted_mean"], rtol=1e-3)


def test_a_network_of_some_genes(section, tmp_path):
    path = tmp_path / "network.pt"
    genes = ["gene3", "gene11", "gene7"]
    before = kept(section, path, genes=genes, **DUSTED_SMALL)
    after = applied(section, path)
    assert list(after.obsm["dusted_mean"].columns) == ["gene3", "gene7", "gene11"]
    compare(arrays_of(after, "dusted"), arrays_of(before, "dusted"), np.testing.assert_array_equal)
    np.testing.assert_array_equal(after.var["dusted_modelled"], before.var["dusted_modelled"])


# Other genes


@pytest.mark.parametrize("names", ["reversed", "more", "more and shuffled"])
def test_genes_are_found_by_name(section, trained, names):
    method, path, before = trained
    genes = list(section.var_names)
    order = {
        "reversed": genes[::-1],
        "more": [*EXTRA, *genes],
        "more and shuffled": list(np.random.default_rng(0).permutation([*genes, *EXTRA])),
    }[names]
    other = with_genes(section, order)
    after = applied(other, path)
    compare(arrays_of(after, method), arrays_of(before, method), np.testing.assert_array_equal)
    assert ("more" in names) == (f"{method}_modelled" in after.var)
    if "more" in names:
        assert set(after.var_names[~after.var[f"{method}_modelled"]]) == set(EXTRA)
        # In the order of the section.
        assert list(after.obsm[f"{method}_mean"].columns) == [gene for gene in order if gene not in EXTRA]


def test_missing_genes_are_named(section, trained):
    _, path, _ = trained
    other = section[:, section.var_names != "gene4"].copy()
    other.var_names = ["Gene7" if name == "gene7" else name for name in other.var_names]
    with pytest.raises(KeyError, match=r"2 of the 12 genes of the model are not in .*\['gene4', 'gene7'\]"):
        applied(other, path)
    assert set(other.layers) == {"true_mean"}


# Other depth, other spots


def test_twice_the_depth_is_twice_the_means(section, trained):
    method, path, _ = trained
    deep = section.copy()
    deep.X = 2 * section.X
    once, twice = (arrays_of(applied(x, path), method) for x in (section, deep))
    # STAGATE's means are a profile: the logarithm of normalised values.
    factor = 1 if method == "stagate" else 2
    np.testing.assert_allclose(twice[f"{method}_mean"], factor * once[f"{method}_mean"], rtol=2e-5)
    for name in once.keys() - {f"{method}_mean"}:
        np.testing.assert_allclose(twice[name], once[name], rtol=2e-4, atol=1e-6)


def test_a_deep_spot_does_not_make_the_others_shallow(section, trained):
    """The unit of depth is the training section, not the median of the section at hand."""
    method, path, before = trained
    shallow = np.argsort(np.asarray(section.X.sum(axis=1)).ravel())[:20]
    spots = np.sort(shallow)
    few = section[spots].copy()
    # Each spot on its own in both sections, so that only depth is at stake.
    alone = section.copy()
    for adata in (few, alone):
        adata.obsp["spatial_connectivities"] = sparse.csr_matrix((adata.n_obs, adata.n_obs))
    np.testing.assert_allclose(
        arrays_of(applied(few, path), method)[f"{method}_mean"],
        arrays_of(applied(alone, path), method)[f"{method}_mean"].iloc[spots],
        rtol=1e-5,
        atol=1e-7,
    )


def test_a_result_depends_on_the_neighbourhood_and_on_nothing_else(section, trained):
    method, path, before = trained
    graph = section.obsp["spatial_connectivities"]
    keep = section.obsm["spatial"][:, 0] < np.quantile(section.obsm["spatial"][:, 0], 0.75)
    # Spots from which no lost spot is within four steps.
    lost = ~keep
    for _ in range(4):
        lost = lost | (graph @ lost > 0)
    inner = ~lost
    assert inner.sum() > 30
    part = applied(subset(section, keep), path)
    whole, part = arrays_of(before, method), arrays_of(part, method)
    for name in whole:
        np.testing.assert_allclose(
            part[name].loc[section.obs_names[inner]], whole[name].loc[section.obs_names[inner]], rtol=1e-4, atol=1e-6
        )

    changed = section.copy()
    counts = changed.X.toarray()
    counts[~keep] = np.random.default_rng(0).permutation(counts[~keep].T).T * 7 + 1
    changed.X = sparse.csr_matrix(counts)
    other = arrays_of(applied(changed, path), method)
    for name in whole:
        ours, theirs = other[name].to_numpy(), whole[name].to_numpy()
        np.testing.assert_allclose(ours[inner], theirs[inner], rtol=1e-4, atol=1e-6)
        # Where the spots themselves are others, so is the result.
        assert not np.allclose(ours[~keep], theirs[~keep], rtol=1e-3)


def test_spots_in_another_order(section, trained):
    method, path, before = trained
    order = np.random.default_rng(0).permutation(section.n_obs)
    after = arrays_of(applied(subset(section, order), path), method)
    for name, frame in arrays_of(before, method).items():
        np.testing.assert_allclose(after[name], frame.iloc[order], rtol=1e-4, atol=1e-6)


def test_a_spot_without_counts_gets_a_finite_result(section, trained):
    method, path, _ = trained
    counts = section.X.toarray()
    counts[7] = 0
    other = section.copy()
    other.X = sparse.csr_matrix(counts)
    for frame in arrays_of(applied(other, path), method).values():
        assert np.isfinite(frame.to_numpy()).all()


# Arguments


def test_arguments_that_the_model_has_its_own_values_for(section, dusted_model, tmp_path):
    model = st.methods.load(dusted_model)
    before = st.tl.denoise(section, model, copy=True)
    for arguments, error, message in [
        ({"n_hidden": 8}, TypeError, r"\['n_hidden'\]"),
        ({"preset": "dlpfc"}, TypeError, r"\['preset'\]"),
        ({"genes": ["gene1"]}, TypeError, "genes has no effect with a trained network"),
        ({"compute": st.Compute(devices=2)}, TypeError, r"\['devices'\] have no effect for a trained network"),
        ({"checkpoint": tmp_path / "a.pt"}, TypeError, r"\['checkpoint'\] have no effect for a trained network"),
    ]:
        with pytest.raises(error, match=message):
            st.tl.denoise(section, model, **arguments)
    assert "dusted" not in section.uns
    assert not any(tmp_path.iterdir())
    after = st.tl.denoise(section, model, compute=st.Compute(memory="50 GB"), copy=True)
    compare(arrays_of(after, "dusted"), arrays_of(before, "dusted"), np.testing.assert_array_equal)


def test_methods_without_a_network_cannot_be_kept(section):
    with pytest.raises(TypeError, match=r"gene_mean .*\['dusted', 'stagate', 'dca'\]"):
        st.tl.train(section, "gene_mean")


def test_a_trained_network_has_seen_what_would_be_held_out(section, dusted_model):
    model = st.methods.load(dusted_model)
    for score in (st.metrics.held_out, st.metrics.masked_recovery, st.metrics.null_test):
        with pytest.raises(TypeError, match="dusted.* is trained already"):
            score(section, model)
    with pytest.raises(TypeError, match="dusted.* is trained already"):
        st.tl.cross_validate(section, ["neighbor_mean", model])


# Files that are no models


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def refused(section, path, message):
    with pytest.raises(ValueError, match=message) as caught:
        applied(section, path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "dusted" not in section.uns


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_half_a_model(section, dusted_model, tmp_path, share):
    whole = dusted_model.read_bytes()
    path = tmp_path / "half.pt"
    path.write_bytes(whole[: int(share * len(whole))])
    refused(section, path, "is damaged or no model of stdenoise: .")


def test_a_changed_byte(section, dusted_model, tmp_path):
    content = bytearray(dusted_model.read_bytes())
    # Of a weight.
    place = content.index(st.methods.load(dusted_model).model.state["encoder.weight"].numpy().tobytes()) + 5
    content[place] ^= 1
    path = tmp_path / "changed.pt"
    path.write_bytes(content)
    refused(section, path, "is damaged or no model of stdenoise: the checksum of .* is not right")


def test_files_of_others(section, dusted_model, tmp_path):
    text, table, state, checkpoint = (tmp_path / name for name in ("text.pt", "table.pt", "state.pt", "checkpoint.pt"))
    text.write_text("no model")
    section.write_h5ad(table)
    torch.save(torch.nn.Linear(2, 2).state_dict(), state)
    st.tl.denoise(section, copy=True, checkpoint=checkpoint, **DUSTED_SMALL)
    refused(section, text, "is damaged or no model")
    refused(section, table, "is damaged or no model")
    refused(section, state, "is no model of stdenoise, but None")
    refused(section, checkpoint, "is no model of stdenoise, but 'checkpoint'")
    with pytest.raises(FileNotFoundError, match="there is no model '.*missing.pt'"):
        st.methods.load(tmp_path / "missing.pt")
    with pytest.raises(FileNotFoundError, match="there is no model"):
        st.methods.load(tmp_path)


@pytest.mark.parametrize("how", ["torch", "pickle", "in a model"])
def test_nothing_in_a_file_is_executed(section, dusted_model, tmp_path, how):
    path, trace = tmp_path / "bad.pt", tmp_path / "trace"
    bad = Malicious(trace)
    if how == "torch":
        torch.save(bad, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(bad))
    else:
        content = torch.load(dusted_model, weights_only=True)
        content["content"]["history"] = bad
        torch.save(content, path)
    refused(section, path, "is damaged or no model of stdenoise: .")
    assert not trace.exists()
    if how != "pickle":
        # It would have been.
        torch.load(path, weights_only=False)
        assert trace.exists()


def test_other_versions(section, dusted_model, tmp_path):
    path = tmp_path / "other.pt"

    def changed(**parts):
        whole = torch.load(dusted_model, weights_only=True)
        whole.update({name: value for name, value in parts.items() if name == "format"})
        whole["content"].update({name: value for name, value in parts.items() if name != "format"})
        whole["content"] = {name: value for name, value in whole["content"].items() if value is not None}
        torch.save(whole, path)

    changed()
    assert "dusted_mean" in applied(section, path).layers
    changed(format=99)
    refused(section, path, r"has format 99; this version of stdenoise reads format \d+")
    for parts, message in [
        ({"method": "dusted2"}, "method='dusted2' is not valid"),
        ({"method": None}, "'method'"),
        ({"params": {"n_layers": 3}}, "dusted has no parameter 'n_layers'"),
        ({"params": {"n_hidden": -1}}, "n_hidden"),
        ({"genes": None}, "genes"),
        ({"weights": 3}, "weights"),
    ]:
        changed(**parts)
        refused(section, path, f"is of another version of stdenoise: .*{message}")


def test_what_is_written_is_read(tmp_path):
    state = {"a": torch.arange(3.0), "b": torch.zeros(0, 2), "c": torch.tensor(1, dtype=torch.int64)}
    model = Model(state, ("x", "ÿ", "z y"), 12.5, {"loss": [3.0, 2.5]})
    Trained(DUSTED(alpha=0.25, schedule="paper"), model).save(tmp_path / "a")
    loaded = st.methods.load(tmp_path / "a")
    back = loaded.model
    assert loaded.config == DUSTED(alpha=0.25, schedule="paper").config
    assert (back.genes, back.median_total, back.history) == (model.genes, model.median_total, model.history)
    assert back.state.keys() == state.keys()
    for name, tensor in state.items():
        assert back.state[name].dtype == tensor.dtype
        assert torch.equal(back.state[name], tensor)


def test_a_model_and_an_earlier_file_of_that_name(tmp_path, monkeypatch):
    model = Model({"a": torch.arange(3.0)}, ("x",), 1.0, {})
    Trained(DUSTED(), model).save(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="cannot write the model '.*a': No space left on device"):
        Trained(DUSTED(), Model({"a": torch.arange(4.0)}, ("x",), 1.0, {})).save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_place_where_no_model_can_be_written(tmp_path):
    trained = Trained(DUSTED(), Model({"a": torch.arange(3.0)}, ("x",), 1.0, {}))
    with pytest.raises(FileNotFoundError, match="'.*nowhere/a'"):
        trained.save(tmp_path / "nowhere" / "a")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="'.*notes'"):
        trained.save(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"
    # The network is not lost with it.
    trained.save(tmp_path / "a")
    assert st.methods.load(tmp_path / "a").model.genes == ("x",)
