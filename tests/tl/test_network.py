"""How a network is run: what is asked for, what applies, and what surrounds the training."""

import re
from dataclasses import fields, replace

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

import stdenoise as st
from stdenoise.methods import DUSTED
from stdenoise.methods._base import Model
from stdenoise.methods._registry import registered
from stdenoise.spatial.results import Denoised
from stdenoise.spatial.spots import Context, make_spots
from stdenoise.tl import _network
from stdenoise.tl._network import Circumstances, align_genes, at_depth_of, chosen, open_run, train_network
from stdenoise.train.run import Run

CPU = torch.device("cpu")
SMALL = {"n_hidden": 8, "n_latent": 3, "n_epochs": 3, "lr": 1e-2, "gate_reduction": 4}


def how(**changed):
    return Circumstances(**{**_network._DEFAULTS, **changed})


def spots_of(counts):
    matrix = sparse.csr_matrix(np.asarray(counts, dtype=np.float32))
    genes = [f"gene{i}" for i in range(matrix.shape[1])]
    return make_spots(matrix, genes, positions=None, context=Context(), device=CPU)


def model_of(genes=("gene0",), median_total=1.0):
    return Model({}, tuple(genes), median_total, {})


# What is asked for


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"devices": 0}, ValueError, "devices"),
        ({"devices": 2.5}, (TypeError, ValueError), "devices"),
        ({"checkpoint_minutes": -1}, ValueError, "checkpoint_minutes"),
        ({"precision": "16-mixed"}, ValueError, "precision='16-mixed' is not valid; choose from.*bf16-mixed"),
        ({"resume": "yes"}, ValueError, "resume"),
        ({"strategy": 3}, TypeError, "strategy must be a name, not 3"),
        ({"resume": True}, ValueError, "resume=True needs checkpoint=, the file to go on from"),
        ({"checkpoint": "nowhere/a.pt"}, FileNotFoundError, "checkpoint='nowhere/a.pt': there is no folder"),
        ({"memory": "much"}, ValueError, "memory='much' is not valid"),
        ({"memory": 0}, ValueError, "memory"),
    ],
    ids=str,
)
def test_what_is_not_valid_is_refused_before_any_work(hexagonal, monkeypatch, tmp_path, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DUSTED, "train", lambda *_: pytest.fail("work was done"))
    with pytest.raises(error, match=message):
        st.tl.denoise(hexagonal, **arguments)
    assert "dusted" not in hexagonal.uns


def test_defaults_of_the_verb_are_those_that_apply_to_everything(hexagonal):
    import inspect

    parameters = inspect.signature(st.tl.denoise).parameters
    assert {field.name for field in fields(Circumstances)} == set(_network._DEFAULTS)
    for name, value in _network._DEFAULTS.items():
        assert parameters[name].default == value


@pytest.mark.parametrize("name", ["memory", "devices", "precision", "checkpoint", "checkpoint_minutes", "save_model"])
def test_what_has_no_use_is_refused(hexagonal, tmp_path, name):
    value = {
        "memory": 4.0,
        "devices": 2,
        "precision": "bf16-mixed",
        "checkpoint": tmp_path / "a",
        "checkpoint_minutes": 1.0,
        "save_model": tmp_path / "a",
    }[name]
    networks = {method: cls() for method, cls in registered().items() if cls.has_network}
    assert {"dusted", "stagate", "dca"} <= set(networks)
    for denoiser in networks.values():
        if value in denoiser.precisions or name != "precision":
            how(**{name: value}).check_applies_to(denoiser, is_trained=False)
    with pytest.raises(TypeError) as caught:
        st.tl.denoise(hexagonal, "gene_mean", **{name: value})
    for part in (f"['{name}'] do not apply to gene_mean", str(list(networks))):
        assert part in str(caught.value)
    trained = how(**{name: value})
    if name in ("memory", "precision"):
        trained.check_applies_to(DUSTED(), is_trained=True)
    else:
        with pytest.raises(TypeError, match=rf"\['{name}'\] do not apply with model=: nothing is trained"):
            trained.check_applies_to(DUSTED(), is_trained=True)
    assert "gene_mean" not in hexagonal.uns


@pytest.mark.parametrize("method", ["stagate", "dca"])
def test_a_precision_that_a_network_does_not_have(hexagonal, method):
    with pytest.raises(
        ValueError, match=rf"precision of {method}='bf16-mixed' is not valid; choose from \['32-true'\]"
    ):
        st.tl.denoise(hexagonal, method, precision="bf16-mixed")


def test_half_precision_is_close(hexagonal):
    full, half = (st.tl.denoise(hexagonal, copy=True, precision=p, **SMALL) for p in ("32-true", "bf16-mixed"))
    one, two = (adata.uns["dusted"]["history"]["loss"] for adata in (full, half))
    assert not np.array_equal(one, two)
    np.testing.assert_allclose(two, one, rtol=0.05)


# Genes and depth


def test_genes_of_a_model_are_found_by_name():
    adata = ad.AnnData(np.zeros((2, 4)))
    adata.var_names = ["a", "b", "c", "d"]
    assert align_genes(adata, model_of(["c", "a"]), "m.pt").tolist() == [2, 0]
    with pytest.raises(KeyError, match=r"2 of the 3 genes of 'm.pt' are not in adata.var_names: \['e', 'B'\]"):
        align_genes(adata, model_of(["e", "a", "B"]), "m.pt")


def test_depth_in_units_of_the_training_section():
    spots = spots_of([[2, 2], [0, 0], [4, 4], [0, 16]])
    assert spots.median_total == 8
    assert spots.size_factors.tolist() == [0.5, 1, 1, 2]
    scaled = at_depth_of(spots, model_of(median_total=2.0))
    # An empty spot has no depth, and keeps that of a typical one.
    assert scaled.size_factors.tolist() == [2, 1, 4, 8]
    assert scaled.median_total == 2
    assert spots.size_factors.tolist() == [0.5, 1, 1, 2]
    same = at_depth_of(spots, model_of(median_total=8.0))
    assert torch.equal(same.size_factors, spots.size_factors)


# Blocks of results


def test_arrays_that_were_not_asked_for_are_dropped():
    whole = {name: torch.ones(2, 3) for name in ("mean", "dispersion", "dropout", "latent")}
    blocks = [
        (torch.tensor([0, 1]), Denoised(scale="counts", **whole)),
        (torch.tensor([2, 3]), Denoised(scale="counts", **whole)),
    ]
    for arrays in ((), ("dispersion",), ("latent", "dropout"), ("mean", "dispersion", "dropout", "latent")):
        for (rows, block), (expected, _) in zip(chosen(blocks, arrays, 4, progress=False), blocks, strict=True):
            assert torch.equal(rows, expected)
            assert block.mean is not None
            for name in ("dispersion", "dropout", "latent"):
                assert (getattr(block, name) is not None) == (name in arrays)


def test_a_bar_counts_spots(capsys):
    blocks = [(torch.arange(30), Denoised(mean=torch.ones(30, 1), scale="counts"))] * 2
    list(chosen(blocks, (), 60, progress=True))
    assert "60/60" in capsys.readouterr().err
    list(chosen(blocks, (), 60, progress=False))
    assert capsys.readouterr().err == ""


# Checkpoints


def test_a_run_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    run = open_run(how(precision="bf16-mixed"), seed=5, progress=True, device=CPU)
    assert (run.seed, run.progress, run.device, run.precision) == (5, True, CPU, "bf16-mixed")
    assert (run.fabric, run.checkpoint, run.share) == (None, None, (0, 1))


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
        st.tl.denoise(other, method, checkpoint=path, resume=True, **{**params, **change})
    assert path.read_bytes() == before


def test_another_memory_goes_on_from_the_same_checkpoint(hexagonal, tmp_path):
    path = tmp_path / "run.pt"
    whole = st.tl.denoise(hexagonal, copy=True, checkpoint=path, **SMALL)
    again = st.tl.denoise(hexagonal, copy=True, checkpoint=path, resume=True, memory=40, **SMALL)
    np.testing.assert_array_equal(again.layers["dusted_mean"], whole.layers["dusted_mean"])


def test_without_resume_a_checkpoint_is_replaced(hexagonal, tmp_path):
    path = tmp_path / "run.pt"
    one = st.tl.denoise(hexagonal, copy=True, checkpoint=path, seed=1, **SMALL)
    before = path.read_bytes()
    two = st.tl.denoise(hexagonal, copy=True, checkpoint=path, seed=2, **SMALL)
    assert path.read_bytes() != before
    assert not np.allclose(one.layers["dusted_mean"], two.layers["dusted_mean"], rtol=1e-3)
    np.testing.assert_array_equal(
        st.tl.denoise(hexagonal, copy=True, checkpoint=path, resume=True, seed=2, **SMALL).layers["dusted_mean"],
        two.layers["dusted_mean"],
    )


def test_several_processes_are_started_only_where_no_launcher_has(monkeypatch):
    spots = spots_of(np.random.default_rng(0).poisson(3, size=(20, 4)))
    calls = []
    monkeypatch.setattr(_network, "spawn", lambda *args, **kwargs: calls.append(kwargs) or "model")

    class Alone:
        info = DUSTED.info
        config = DUSTED(**SMALL).config

        def train(self, spots, run):
            return run

    assert train_network(Alone(), spots, how(devices=3, strategy="ddp"), Run(), device=CPU) == "model"
    assert calls == [{"device": CPU, "n_devices": 3, "strategy": "ddp"}]
    launched = Run(fabric=object())
    assert train_network(Alone(), spots, how(devices=3), launched, device=CPU) is launched
    assert train_network(Alone(), spots, how(), Run(), device=CPU) == Run()
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
            train_network(DUSTED(**SMALL), spots, how(devices=2, checkpoint=path), Run(), device=CPU)
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
