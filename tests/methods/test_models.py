"""Trained networks: saved, read, and applied to sections that they were not trained on."""

import os
import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise._io.read import layers_of
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
    found = {name: values for name, values in layers_of(adata).items() if name.startswith(key)}
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_network_from_a_gpu_runs_on_the_cpu(section, tmp_path):
    path = tmp_path / "network.pt"
    before = kept(section, path, device="cuda", **DUSTED_SMALL)
    after = applied(section, path, device="cpu")
    np.testing.assert_allclose(after.layers["dusted_mean"], before.layers["dusted_mean"], rtol=1e-3)


def test_a_network_of_some_genes(section, tmp_path):
    path = tmp_path / "network.pt"
    before = kept(section, path, genes=["gene3", "gene11", "gene7"], **DUSTED_SMALL)
    after = applied(section, path)
    assert list(after.obsm["dusted_mean"].columns) == ["gene3", "gene7", "gene11"]
    compare(arrays_of(after, "dusted"), arrays_of(before, "dusted"), np.testing.assert_array_equal)
    np.testing.assert_array_equal(after.var["dusted_modelled"], before.var["dusted_modelled"])


# Other genes


def test_genes_are_found_by_name(section, trained):
    method, path, before = trained
    genes = list(section.var_names)
    for order in (genes[::-1], list(np.random.default_rng(0).permutation([*genes, *EXTRA]))):
        after = applied(with_genes(section, order), path)
        compare(arrays_of(after, method), arrays_of(before, method), np.testing.assert_array_equal)
        has_extra = len(order) > len(genes)
        assert has_extra == (f"{method}_modelled" in after.var)
        if has_extra:
            assert set(after.var_names[~after.var[f"{method}_modelled"]]) == set(EXTRA)
            # In the order of the section.
            assert list(after.obsm[f"{method}_mean"].columns) == [gene for gene in order if gene not in EXTRA]


def test_missing_genes_are_named(section, dusted_model):
    other = section[:, section.var_names != "gene4"].copy()
    other.var_names = ["Gene7" if name == "gene7" else name for name in other.var_names]
    with pytest.raises(KeyError, match=r"2 of .*\['gene4', 'gene7'\]"):
        applied(other, dusted_model)
    assert set(layers_of(other)) == {"true_mean"}


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
    part = applied(section[keep].copy(), path)
    whole, part = arrays_of(before, method), arrays_of(part, method)
    for name in whole:
        np.testing.assert_allclose(
            part[name].loc[section.obs_names[inner]], whole[name].loc[section.obs_names[inner]], rtol=1e-4, atol=1e-6
        )

    # Nor on the depth of the others, although the unit of depth is a median: it is that of the training section.
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


def test_neither_the_order_of_spots_nor_one_without_counts_matters(section, trained):
    method, path, before = trained
    order = np.random.default_rng(0).permutation(section.n_obs)
    after = arrays_of(applied(section[order].copy(), path), method)
    for name, frame in arrays_of(before, method).items():
        np.testing.assert_allclose(after[name], frame.iloc[order], rtol=1e-4, atol=1e-6)
    counts = section.X.toarray()
    counts[7] = 0
    other = section.copy()
    other.X = sparse.csr_matrix(counts)
    for frame in arrays_of(applied(other, path), method).values():
        assert np.isfinite(frame.to_numpy()).all()


# Arguments


def test_what_concerns_training_is_refused(section, dusted_model, tmp_path):
    model = st.methods.load(dusted_model)
    for arguments, message in [
        ({"n_hidden": 8}, "n_hidden"),
        ({"preset": "dlpfc"}, "preset"),
        ({"genes": ["gene1"]}, "genes .*trained network"),
        ({"compute": st.Compute(devices=2)}, "devices.* trained network"),
        ({"checkpoint": tmp_path / "a.pt"}, "checkpoint.* trained network"),
    ]:
        with pytest.raises(TypeError, match=message):
            st.tl.denoise(section, model, **arguments)
    assert "dusted" not in section.uns
    assert not any(tmp_path.iterdir())
    # Memory is no part of training; nor is the seed of a prediction.
    before = st.tl.denoise(section, model, copy=True)
    after = st.tl.denoise(section, model, seed=5, compute=st.Compute(memory="50 GB"), copy=True)
    compare(arrays_of(after, "dusted"), arrays_of(before, "dusted"), np.testing.assert_array_equal)
    with pytest.raises(TypeError, match=r"gene_mean .*\['dusted', 'stagate', 'dca'\]"):
        st.tl.train(section, "gene_mean")


def test_a_trained_network_has_seen_what_would_be_held_out(section, dusted_model):
    model = st.methods.load(dusted_model)
    for score in (st.metrics.held_out, st.metrics.masked_recovery, st.metrics.null_test):
        with pytest.raises(TypeError, match="dusted.* trained already"):
            score(section, model)
    with pytest.raises(TypeError, match="dusted.* trained already"):
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


def test_half_a_model_or_a_changed_byte(section, dusted_model, tmp_path):
    whole, path = dusted_model.read_bytes(), tmp_path / "half.pt"
    for share in (0, 0.01, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(section, path, "damaged")
    content = bytearray(whole)
    # Of a weight.
    place = content.index(st.methods.load(dusted_model).model.state["encoder.weight"].numpy().tobytes()) + 5
    content[place] ^= 1
    path.write_bytes(content)
    refused(section, path, "damaged .*checksum")


def test_files_of_others(section, dusted_model, tmp_path):
    text, table, state, checkpoint = (tmp_path / name for name in ("text.pt", "table.pt", "state.pt", "checkpoint.pt"))
    text.write_text("no model")
    section.write_h5ad(table)
    torch.save(torch.nn.Linear(2, 2).state_dict(), state)
    st.tl.denoise(section, copy=True, checkpoint=checkpoint, **DUSTED_SMALL)
    for path, found in ((text, "damaged"), (table, "damaged"), (state, "but None"), (checkpoint, "but 'checkpoint'")):
        refused(section, path, found)
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"'.*{path.name}'"):
            st.methods.load(path)


def test_nothing_in_a_file_is_executed(section, dusted_model, tmp_path):
    path, trace = tmp_path / "bad.pt", tmp_path / "trace"
    content = torch.load(dusted_model, weights_only=True)
    content["content"]["history"] = Malicious(trace)
    for bad in (Malicious(trace), content):
        torch.save(bad, path)
        refused(section, path, "damaged")
        assert not trace.exists()
        # It would have been.
        torch.load(path, weights_only=False)
        trace.unlink()
    path.write_bytes(pickle.dumps(Malicious(trace)))
    refused(section, path, "damaged")
    assert not trace.exists()


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
    refused(section, path, "format 99")
    for parts, message in [
        ({"method": "dusted2"}, "'dusted2'"),
        ({"method": None}, "'method'"),
        ({"params": {"n_layers": 3}}, "'n_layers'"),
        ({"params": {"n_hidden": -1}}, "n_hidden"),
        ({"genes": None}, "genes"),
        ({"weights": 3}, "weights"),
    ]:
        changed(**parts)
        refused(section, path, f"another version .*{message}")


def test_a_place_where_no_model_can_be_written(tmp_path, monkeypatch):
    first, second = (Trained(DUSTED(), Model({"a": torch.arange(n)}, ("x",), 1.0, {})) for n in (3.0, 4.0))
    with pytest.raises(FileNotFoundError, match="'.*nowhere/a'"):
        first.save(tmp_path / "nowhere" / "a")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="'.*notes'"):
        first.save(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"
    # The network is not lost with it.
    first.save(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="'.*a': No space left on device"):
        second.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "notes"]
    monkeypatch.undo()
    second.save(tmp_path / "a")
    assert len(st.methods.load(tmp_path / "a").model.state["a"]) == 4
