"""How a method is run: what is asked for, what has an effect, and what surrounds the training."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import stdenoise as st
from stdenoise.methods import DUSTED
from stdenoise.train.run import Run

SMALL = {"n_hidden": 8, "n_latent": 3, "n_epochs": 3, "lr": 1e-2, "gate_reduction": 4}
NETWORKS = ["dusted", "stagate", "dca"]


# What is asked for


def test_what_is_not_valid_is_refused_when_it_is_said():
    for make, arguments, error, fragment in [
        (st.Compute, {"devices": 0}, ValueError, "devices .*not 0"),
        (st.Compute, {"devices": 2.5}, TypeError, "devices .*not 2.5"),
        (st.Compute, {"precision": "16-mixed"}, ValueError, "precision='16-mixed'.*bf16-mixed"),
        (st.Compute, {"strategy": 3}, TypeError, "strategy .*not 3"),
        (st.Compute, {"memory": "much"}, ValueError, "memory='much'"),
        (st.Compute, {"memory": 0}, ValueError, "memory"),
        (st.Compute, {"threads": 0}, ValueError, "threads .*not 0"),
        (st.Checkpoint, {"path": "a.pt", "minutes": -1}, ValueError, "minutes .*not -1"),
        (st.Checkpoint, {"path": "a.pt", "resume": 1}, TypeError, "resume .*not 1"),
        (st.Checkpoint, {"path": "nowhere/a.pt"}, FileNotFoundError, "checkpoint='nowhere/a.pt'"),
    ]:
        with pytest.raises(error, match=fragment):
            make(**arguments)


@pytest.mark.parametrize("function", [st.tl.denoise, st.tl.train])
def test_what_was_an_argument_says_where_it_is_now(hexagonal, unchanged, function):
    for arguments, fragment in [
        ({"memory": "4 GB"}, "Compute(memory=...)"),
        ({"devices": 2}, "Compute(devices=...)"),
        ({"strategy": "ddp"}, "Compute(strategy=...)"),
        ({"precision": "32-true"}, "Compute(precision=...)"),
        ({"checkpoint_minutes": 1}, "Checkpoint(path, minutes=...)"),
        ({"resume": True}, "Checkpoint(path, resume=True)"),
        ({"save_model": "a"}, "tl.train"),
        ({"model": "a"}, "methods.load"),
        ({"check_counts": False}, "settings.check_counts"),
        ({"compute": {"devices": 2}}, "stdenoise.Compute"),
        ({"checkpoint": 3}, "stdenoise.Checkpoint"),
    ]:
        with unchanged(hexagonal), pytest.raises(TypeError, match=re.escape(fragment)):
            function(hexagonal, **arguments)


def test_what_has_no_effect_is_refused(hexagonal, unchanged, tmp_path):
    for name, value, able in [
        ("memory", 4.0, NETWORKS),
        ("devices", 2, NETWORKS[:2]),
        ("strategy", "ddp", NETWORKS[:2]),
        ("precision", "bf16-mixed", NETWORKS[:1]),
        ("checkpoint", None, NETWORKS),
    ]:
        arguments = {"checkpoint": tmp_path / "a"} if value is None else {"compute": st.Compute(**{name: value})}
        for method in ["gene_mean", *NETWORKS]:
            if method not in able:
                with unchanged(hexagonal), pytest.raises(TypeError) as caught:
                    st.tl.denoise(hexagonal, method, **arguments)
                for part in (f"['{name}'] have no effect for {method}", ", ".join(map(repr, able))):
                    assert part in str(caught.value)


def test_settings_are_for_those_that_can_and_half_precision_is_close(hexagonal):
    with st.settings.override(compute=st.Compute(memory=40.0, precision="bf16-mixed")):
        st.tl.denoise(hexagonal, "gene_mean")
        half = st.tl.denoise(hexagonal, copy=True, **SMALL)
        # What is said in the call counts.
        full = st.tl.denoise(hexagonal, copy=True, compute=st.Compute(), **SMALL)
    one, two = (adata.uns["dusted"]["history"]["loss"] for adata in (full, half))
    assert not np.array_equal(one, two)
    np.testing.assert_allclose(two, one, rtol=0.05)
    assert not np.array_equal(half.layers["dusted_mean"], full.layers["dusted_mean"])


def test_threads_are_those_of_the_call(hexagonal):
    before, seen = torch.get_num_threads(), []

    class Look(DUSTED):
        def train(self, spots, run):
            seen.append(torch.get_num_threads())
            return super().train(spots, run)

    st.tl.denoise(hexagonal, Look(**SMALL), compute=st.Compute(threads=before + 1))
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_no_processes_are_started_where_a_launcher_has(read_spots, hexagonal):
    class Alone(DUSTED):
        def train(self, spots, run):
            return run

    launched = Run(fabric=object(), compute=st.Compute(devices=3))
    assert Alone(**SMALL).trained(read_spots(hexagonal), launched) is launched


# Depth and patches


def test_depth_in_units_of_the_training_section(hexagonal, read_spots):
    few = hexagonal[:4, :2].copy()
    few.X = np.array([[2, 2], [0, 0], [4, 4], [0, 16]])
    spots = read_spots(few)
    assert spots.median_total == 8
    assert spots.size_factors.tolist() == [0.5, 1, 1, 2]
    scaled = spots.at_depth(2.0)
    # An empty spot has no depth, and keeps that of a typical one.
    assert scaled.size_factors.tolist() == [2, 1, 4, 8]
    assert scaled.median_total == 2
    assert spots.size_factors.tolist() == [0.5, 1, 1, 2]
    assert torch.equal(spots.at_depth(8.0).size_factors, spots.size_factors)


def test_a_bar_counts_the_spots_of_the_patches(hexagonal, read_spots, capsys):
    spots = read_spots(hexagonal, graph_key="spatial", spatial_key="spatial")
    network, run = DUSTED(**SMALL), Run()
    model = network.train(spots, run)
    # All spots at a time take no bar.
    for options, wanted in (
        ({"max_spots": 20, "progress": True}, True),
        ({"max_spots": 20}, False),
        ({"progress": True}, False),
    ):
        list(network.predicted(model, spots, replace(run, **options)))
        assert ("61/61" in capsys.readouterr().err) == wanted


# Checkpoints


def test_the_checkpoint_of_another_training_is_refused(hexagonal, tmp_path):
    path = tmp_path / "run.pt"
    saving = st.Checkpoint(path, resume=True)
    st.tl.denoise(hexagonal, copy=True, checkpoint=path, **SMALL)
    before = path.read_bytes()
    deep, renamed, wide, moved, swapped = (hexagonal.copy() for _ in range(5))
    st.pp.spatial_graph(wide, radius=250)
    moved.obsm["spatial"] = moved.obsm["spatial"] * [1, 1.01]
    # Two counts of a spot change places: no total changes.
    swapped.X = hexagonal.X.toarray()
    order = swapped.X[0].argsort()
    swapped.X[0, order[[0, -1]]] = swapped.X[0, order[[-1, 0]]]
    of_two = hexagonal.copy()
    of_two.obs["half"] = np.where(np.arange(61) < 30, "a", "b")
    st.pp.spatial_graph(of_two, library_key="half")
    deep.X = 2 * hexagonal.X
    renamed.var_names = ["other", *hexagonal.var_names[1:]]
    for adata, method, changed, fragment in [
        (hexagonal, "dusted", {"seed": 1}, "seed 0, now 1"),
        (hexagonal, "dusted", {"alpha": 0.5}, "parameters"),
        (hexagonal, "dusted", {"genes": list(hexagonal.var_names[:11])}, "genes"),
        (renamed, "dusted", {}, "genes"),
        (deep, "dusted", {}, "counts"),
        (swapped, "dusted", {}, "counts"),
        (wide, "dusted", {}, "graph '.* edges"),
        (moved, "dusted", {}, "coordinates"),
        (of_two, "dusted", {"library_key": "half"}, "libraries"),
        (hexagonal[:60].copy(), "dusted", {}, "spots 61, now 60"),
        (hexagonal, "stagate", {}, "method 'dusted', now 'stagate'"),
    ]:
        params = SMALL if method == "dusted" else {"n_hidden": 8, "n_latent": 3, "n_epochs": 3}
        with pytest.raises(ValueError, match=f"run.pt' .* another run: .*{fragment}"):
            st.tl.denoise(adata, method, checkpoint=saving, **{**params, **changed})
        assert path.read_bytes() == before


def test_a_checkpoint_is_replaced_unless_it_is_resumed_with_whatever_memory(hexagonal, tmp_path):
    path = tmp_path / "run.pt"
    one = st.tl.denoise(hexagonal, copy=True, checkpoint=path, seed=1, **SMALL)
    before = path.read_bytes()
    two = st.tl.denoise(hexagonal, copy=True, checkpoint=str(path), seed=2, **SMALL)
    assert path.read_bytes() != before
    assert not np.allclose(one.layers["dusted_mean"], two.layers["dusted_mean"], rtol=1e-3)
    saving, roomy = st.Checkpoint(path, resume=True), st.Compute(memory=40)
    again = st.tl.denoise(hexagonal, copy=True, checkpoint=saving, compute=roomy, seed=2, **SMALL)
    np.testing.assert_array_equal(again.layers["dusted_mean"], two.layers["dusted_mean"])
