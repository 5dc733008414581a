"""How a method is run: what is asked for, what has an effect, and what surrounds the training."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise.methods import DUSTED, Network, _network
from stdenoise.spatial.spots import Context, make_spots
from stdenoise.train.run import Run

CPU = torch.device("cpu")
SMALL = {"n_hidden": 8, "n_latent": 3, "n_epochs": 3, "lr": 1e-2, "gate_reduction": 4}


def spots_of(counts):
    matrix = sparse.csr_matrix(np.asarray(counts, dtype=np.float32))
    genes = [f"gene{i}" for i in range(matrix.shape[1])]
    return make_spots(matrix, genes, positions=None, context=Context(), device=CPU)


# What is asked for


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: st.Compute(devices=0), ValueError, "devices"),
        (lambda: st.Compute(devices=2.5), TypeError, "devices"),
        (
            lambda: st.Compute(precision="16-mixed"),
            ValueError,
            "precision='16-mixed' is not valid; choose from.*bf16-mixed",
        ),
        (lambda: st.Compute(strategy=3), TypeError, "strategy must be a name, not 3"),
        (lambda: st.Compute(memory="much"), ValueError, "memory='much' is not valid"),
        (lambda: st.Compute(memory=0), ValueError, "memory"),
        (lambda: st.Compute(threads=0), ValueError, "threads"),
        (lambda: st.Checkpoint("a.pt", minutes=-1), ValueError, "minutes"),
        (lambda: st.Checkpoint("a.pt", resume=1), TypeError, "resume must be True or False, not 1"),
        (lambda: st.Checkpoint("nowhere/a.pt"), FileNotFoundError, "checkpoint='nowhere/a.pt': there is no folder"),
    ],
)
def test_what_is_not_valid_is_refused_when_it_is_said(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"memory": "4 GB"}, "Compute(memory=...)"),
        ({"devices": 2}, "Compute(devices=...)"),
        ({"strategy": "ddp"}, "Compute(strategy=...)"),
        ({"precision": "32-true"}, "Compute(precision=...)"),
        ({"checkpoint_minutes": 1}, "Checkpoint(path, minutes=...)"),
        ({"resume": True}, "Checkpoint(path, resume=True)"),
        ({"save_model": "a"}, "tl.train"),
        ({"model": "a"}, "methods.load"),
        ({"check_counts": False}, "settings.check_counts"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [st.tl.denoise, st.tl.train])
def test_what_was_an_argument_says_where_it_is_now(hexagonal, function, arguments, place):
    with pytest.raises(TypeError, match=re.escape(place)):
        function(hexagonal, **arguments)
    assert "dusted" not in hexagonal.uns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"compute": {"devices": 2}}, "stdenoise.Compute"), ({"checkpoint": 3}, "stdenoise.Checkpoint")],
)
def test_other_types_are_refused(hexagonal, arguments, message):
    with pytest.raises(TypeError, match=message):
        st.tl.denoise(hexagonal, **arguments)


NETWORKS = ["dusted", "stagate", "dca"]


@pytest.mark.parametrize(
    ("name", "value", "able"),
    [
        ("memory", 4.0, NETWORKS),
        ("devices", 2, NETWORKS[:2]),
        ("strategy", "ddp", NETWORKS[:2]),
        ("precision", "bf16-mixed", NETWORKS[:1]),
        ("checkpoint", None, NETWORKS),
    ],
)
def test_what_has_no_effect_is_refused(hexagonal, tmp_path, name, value, able):
    arguments = {"checkpoint": tmp_path / "a"} if value is None else {"compute": st.Compute(**{name: value})}
    for method in ["gene_mean", *NETWORKS]:
        if method in able:
            continue
        with pytest.raises(TypeError) as caught:
            st.tl.denoise(hexagonal, method, **arguments)
        for part in (f"['{name}'] have no effect for {method}", str(able)):
            assert part in str(caught.value)
        assert method not in hexagonal.uns


def test_settings_are_for_those_that_can(hexagonal):
    with st.settings.override(compute=st.Compute(memory=40.0, precision="bf16-mixed")):
        st.tl.denoise(hexagonal, "gene_mean")
        half = st.tl.denoise(hexagonal, copy=True, **SMALL)
    full = st.tl.denoise(hexagonal, copy=True, **SMALL)
    assert not np.array_equal(half.layers["dusted_mean"], full.layers["dusted_mean"])


def test_threads_are_those_of_the_call(hexagonal, monkeypatch):
    seen = []
    train = DUSTED.train
    monkeypatch.setattr(DUSTED, "train", lambda *args: seen.append(torch.get_num_threads()) or train(*args))
    before = torch.get_num_threads()
    st.tl.denoise(hexagonal, compute=st.Compute(threads=before + 1), **SMALL)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_half_precision_is_close(hexagonal):
    full, half = (
        st.tl.denoise(hexagonal, copy=True, compute=st.Compute(precision=p), **SMALL) for p in ("32-true", "bf16-mixed")
    )
    one, two = (adata.uns["dusted"]["history"]["loss"] for adata in (full, half))
    assert not np.array_equal(one, two)
    np.testing.assert_allclose(two, one, rtol=0.05)


# Genes and depth


def test_genes_of_a_model_are_found_by_name(hexagonal):
    model = st.tl.train(hexagonal, genes=["gene3", "gene1"], **SMALL)
    other = hexagonal[:, ["gene4", "gene3", "gene2", "gene1"]].copy()
    st.tl.denoise(other, model)
    assert list(other.obsm["dusted_mean"].columns) == ["gene3", "gene1"]
    with pytest.raises(KeyError, match=r"1 of the 2 genes of the model are not in adata.var_names: \['gene3'\]"):
        st.tl.denoise(hexagonal[:, ["gene1", "gene2"]].copy(), model)


def test_depth_in_units_of_the_training_section():
    spots = spots_of([[2, 2], [0, 0], [4, 4], [0, 16]])
    assert spots.median_total == 8
    assert spots.size_factors.tolist() == [0.5, 1, 1, 2]
    scaled = spots.at_depth(2.0)
    # An empty spot has no depth, and keeps that of a typical one.
    assert scaled.size_factors.tolist() == [2, 1, 4, 8]
    assert scaled.median_total == 2
    assert spots.size_factors.tolist() == [0.5, 1, 1, 2]
    assert torch.equal(spots.at_depth(8.0).size_factors, spots.size_factors)


# Blocks of results


@pytest.mark.parametrize("arrays", [[], ["dispersion"], ["latent", "dropout"]], ids=str)
def test_arrays_that_were_not_asked_for_are_dropped(hexagonal, arrays):
    st.tl.denoise(hexagonal, arrays=arrays, **SMALL)
    found = {name for name in hexagonal.layers if name.startswith("dusted")} | {
        name for name in hexagonal.obsm if "dusted" in name
    }
    wanted = {"latent": "X_dusted"}
    assert found == {"dusted_mean", *(wanted.get(name, f"dusted_{name}") for name in arrays)}


def test_a_bar_counts_the_spots_of_the_patches(hexagonal, read_spots, capsys):
    spots = read_spots(hexagonal, graph_key="spatial", spatial_key="spatial")
    network = DUSTED(**SMALL)
    model = network.train(spots, Run())
    # All spots at a time take no bar.
    for run, wanted in (
        (Run(max_spots=20, progress=True), True),
        (Run(max_spots=20), False),
        (Run(progress=True), False),
    ):
        list(network.predicted(model, spots, run))
        assert ("61/61" in capsys.readouterr().err) == wanted


# Checkpoints


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed 0, now 1"),
        ({"alpha": 0.5}, "parameters"),
        ({"method": "stagate"}, "method 'dusted', now 'stagate'"),
        ({"counts": 2}, "counts"),
        ({"genes": [f"gene{i}" for i in range(11)]}, "genes"),
        ({"spots": 60}, "spots 61, now 60"),
    ],
    ids=str,
)
def test_the_checkpoint_of_another_training_is_refused(hexagonal, tmp_path, change, what):
    path = tmp_path / "run.pt"
    st.tl.denoise(hexagonal, copy=True, checkpoint=path, **SMALL)
    before = path.read_bytes()
    change = dict(change)
    other = hexagonal[: change.pop("spots", 61)].copy()
    other.X = other.X * change.pop("counts", 1)
    method = change.pop("method", "dusted")
    params = {"n_hidden": 8, "n_latent": 3, "n_epochs": 3} if method == "stagate" else SMALL
    with pytest.raises(ValueError, match=f"'.*run.pt' is the checkpoint of another run: .*{what}"):
        st.tl.denoise(other, method, checkpoint=st.Checkpoint(path, resume=True), **{**params, **change})
    assert path.read_bytes() == before


def test_another_memory_goes_on_from_the_same_checkpoint(hexagonal, tmp_path):
    path = tmp_path / "run.pt"
    whole = st.tl.denoise(hexagonal, copy=True, checkpoint=path, **SMALL)
    again = st.tl.denoise(
        hexagonal, copy=True, checkpoint=st.Checkpoint(path, resume=True), compute=st.Compute(memory=40), **SMALL
    )
    np.testing.assert_array_equal(again.layers["dusted_mean"], whole.layers["dusted_mean"])


def test_without_resume_a_checkpoint_is_replaced(hexagonal, tmp_path):
    path = tmp_path / "run.pt"
    one = st.tl.denoise(hexagonal, copy=True, checkpoint=path, seed=1, **SMALL)
    before = path.read_bytes()
    two = st.tl.denoise(hexagonal, copy=True, checkpoint=path, seed=2, **SMALL)
    assert path.read_bytes() != before
    assert not np.allclose(one.layers["dusted_mean"], two.layers["dusted_mean"], rtol=1e-3)
    np.testing.assert_array_equal(
        st.tl.denoise(hexagonal, copy=True, checkpoint=st.Checkpoint(path, resume=True), seed=2, **SMALL).layers[
            "dusted_mean"
        ],
        two.layers["dusted_mean"],
    )


def test_several_processes_are_started_only_where_no_launcher_has(monkeypatch):
    spots = spots_of(np.random.default_rng(0).poisson(3, size=(20, 4)))
    calls = []
    monkeypatch.setattr(_network, "spawn", lambda *args, **kwargs: calls.append(kwargs) or "model")

    class Alone(Network):
        info = DUSTED.info
        config_type = DUSTED.config_type

        def train(self, spots, run):
            return run

    alone, several = Alone(**SMALL), st.Compute(devices=3, strategy="ddp")
    assert alone.trained(spots, Run(compute=several)) == "model"
    assert calls == [{"device": CPU, "n_devices": 3, "strategy": "ddp"}]
    launched = Run(fabric=object(), compute=several)
    assert alone.trained(spots, launched) is launched
    assert alone.trained(spots, Run()) == Run()
    assert len(calls) == 1


@pytest.mark.parametrize("is_saved", [True, False])
def test_what_ends_the_processes_says_how_to_go_on_where_something_is_saved(monkeypatch, tmp_path, is_saved):
    spots = spots_of(np.random.default_rng(0).poisson(3, size=(20, 4)))
    path = tmp_path / "run.pt"
    if is_saved:
        path.write_text("")
    for error, wanted in (
        (KeyboardInterrupt(), "stopped; '.*run.pt' is saved: run it again with resume to go on"),
        (ChildProcessError("one has ended."), "one has ended. '.*run.pt' is saved: run it again with resume to go on"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(_network, "spawn", fail)
        with pytest.raises(type(error)) as caught:
            DUSTED(**SMALL).trained(spots, Run(compute=st.Compute(devices=2), saving=st.Checkpoint(path)))
        assert bool(re.match(wanted, str(caught.value))) == is_saved
        assert (caught.value is error) == (not is_saved)


def test_the_identity_of_a_training_does_not_depend_on_how_it_is_run():
    spots = spots_of(np.random.default_rng(0).poisson(3, size=(20, 4)))
    identity = _network._identity(DUSTED(**SMALL), spots, 0)
    assert identity == _network._identity(DUSTED(**SMALL), replace(spots), 0)
    others = [
        _network._identity(DUSTED(**{**SMALL, "alpha": 0.1}), spots, 0),
        _network._identity(DUSTED(**SMALL), spots, 1),
        _network._identity(DUSTED(**SMALL), replace(spots, genes=("a", "b", "c", "d")), 0),
        _network._identity(DUSTED(**SMALL), replace(spots, size_factors=spots.size_factors * 2), 0),
    ]
    for other in others:
        assert sum(identity[name] != other[name] for name in identity) == 1
