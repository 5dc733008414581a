from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import mean_poisson_deviance

from stdenoise.methods import DUSTED, DUSTEDConfig
from stdenoise.methods.dusted import training
from stdenoise.methods.dusted.config import PRESETS, SCHEDULES
from stdenoise.methods.dusted.module import DUSTEDModule, make_batch
from stdenoise.spatial.results import collect
from stdenoise.train.held_out import HeldOut
from stdenoise.train.patches import Patches
from stdenoise.train.run import Run
from stdenoise.train.schedule import Outcome

SMALL = {"n_hidden": 16, "n_latent": 4, "n_epochs": 5, "lr": 1e-2}
PAPER = {**SMALL, "schedule": "paper"}
FAST = {**SMALL, "schedule": "fast", "n_epochs": 3, "batch_size": 12}


@pytest.fixture(scope="session")
def ring(spots_of):
    """A random tissue on a ring, optionally with its spots in another order or some of them emptied."""

    def ring(seed=0, n_spots=30, n_genes=8, order=None, empty=()):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(rng.gamma(1.0, 1.0, size=(n_spots, n_genes)))
        counts[list(empty)] = 0
        links = np.roll(np.eye(n_spots), 1, 0) + np.roll(np.eye(n_spots), -1, 0)
        order = np.arange(n_spots) if order is None else order
        return spots_of(counts[order], links=links[np.ix_(order, order)])

    return ring


@pytest.fixture(scope="session")
def trained(fit):
    return lambda data, seed=0, **params: fit(DUSTED(**{**PAPER, **params}), data, seed=seed)


def module_of(n_genes, **params):
    return DUSTEDModule(n_genes, DUSTEDConfig(**{**SMALL, **params}), generator=torch.Generator().manual_seed(0))


def patches_of(data, dtype=torch.float64):
    return Patches(replace(data, counts=data.counts.to(dtype), size_factors=data.size_factors.to(dtype)), n_hops=4)


def batch_of(data, dtype=torch.float64, *, per_entry):
    """The whole tissue as one patch."""
    (patch,) = patches_of(data, dtype).cover()
    return make_batch(patch, per_entry=per_entry)


# -- Parameters --------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_released_dlpfc_run_and_presets_those_of_the_paper():
    config = DUSTED().config
    assert replace(config, lr=1e-4) == DUSTED(preset="dlpfc").config
    assert (config.schedule, config.likelihood, config.alpha, config.restore_best) == ("paper", "zinb", 1.5, True)
    assert (config.weight_decay, config.clip, config.n_hidden, config.n_latent) == (1e-4, 5.0, 512, 30)
    for preset, expected in (("hocwta", ("nb", 1.0, 2e-4)), ("simulated", ("nb", 0.3, 1e-4))):
        config = DUSTED(preset=preset).config
        assert (config.likelihood, config.alpha, config.lr, config.schedule) == (*expected, "paper")
        assert DUSTED(preset=preset, alpha=0.7).config.alpha == 0.7
    assert len(PRESETS) == 3


def test_given_values_win_over_those_of_the_schedule(ring, monkeypatch):
    taken = {}

    def no_training(module, loss_of, **arguments):
        taken.update(arguments)
        return Outcome({}, {})

    monkeypatch.setattr(training, "train", no_training)

    def resolved(**params):
        taken.clear()
        DUSTED(n_hidden=4, n_latent=2, **params).fit(ring(), seed=0, progress=False)
        return {"lr": taken["lr"], "n_epochs": taken["n_epochs"], "batch_size": taken["batches"].batch_size}

    published = {"lr": 1e-4, "n_epochs": 500, "batch_size": None}
    for schedule, defaults in (("paper", published), ("fast", {"lr": 1e-3, "n_epochs": 20, "batch_size": 128})):
        assert resolved(schedule=schedule) == defaults
        for changed in ({"lr": 3e-5}, {"n_epochs": 7}, {"batch_size": 11}):
            assert resolved(schedule=schedule, **changed) == {**defaults, **changed}
    assert resolved(preset="hocwta") == {**published, "lr": 2e-4}
    assert taken.get("anneal") is None
    resolved(schedule="fast")
    assert taken["anneal"].n_steps == taken["batches"].n_steps >= 12
    # It cannot stop on the plateau of the first hundred steps.
    assert taken["anneal"].least * taken["anneal"].n_steps >= 96
    resolved(schedule="fast", patience=7)
    assert taken["anneal"].patience == 7


def test_fast_steps_grow_with_the_tissue_between_two_bounds():
    for n_spots, batch_size in [(1, 128), (3072, 128), (3639, 152), (12000, 500), (10**6, 2048)]:
        assert training.batch_size_of(DUSTEDConfig(schedule="fast"), n_spots) == batch_size


@pytest.mark.parametrize(
    ("params", "n_genes", "share"),
    [
        ({"schedule": "fast"}, 300, 1),
        ({"schedule": "fast"}, 6000, 0.5),
        ({"schedule": "fast", "likelihood": "nb"}, 6000, 0.5),
        # Summed over genes, the gradient does not fall with their number.
        ({"schedule": "fast", "likelihood": "nb", "reduction": "published"}, 6000, 1),
        ({"schedule": "paper"}, 6000, 1),
    ],
)
def test_the_decay_of_many_genes_falls_with_the_gradient_of_their_mean(ring, params, n_genes, share):
    feed = SimpleNamespace(data=SimpleNamespace(spots=ring(n_genes=n_genes, n_spots=3)), generator=None)
    assert training._common(DUSTEDConfig(**params), Run(), feed)["weight_decay"] == pytest.approx(1e-4 * share)


# -- The network -------------------------------------------------------------------------------------------------------


def test_order_of_spots_does_not_matter(ring, trained):
    order = np.random.default_rng(1).permutation(30)
    straight, shuffled = trained(ring()), trained(ring(order=order))
    torch.testing.assert_close(shuffled.mean, straight.mean[order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shuffled.latent, straight.latent[order], rtol=1e-3, atol=1e-4)


def test_empty_spots_are_not_scored_and_stay_finite(ring, trained):
    data = ring(empty=[3, 17])
    assert trained(data).mean.isfinite().all()
    batch, module = batch_of(data, per_entry=False), module_of(8, likelihood="nb").double()
    _, _, (mean, theta) = module.predict(batch)
    log_nb = torch.distributions.NegativeBinomial(theta, logits=mean.log() - theta.log())
    entries = -log_nb.log_prob(data.counts.to_dense().double())
    assert module.loss(batch).item() == pytest.approx(entries[data.nonempty].sum(1).mean().item(), rel=1e-6)


def test_without_gene_attention_there_is_no_gate(ring):
    ungated, gated = module_of(8, gene_attention=False), module_of(8, alpha=0.0)
    assert not any("gate" in name for name, _ in ungated.named_parameters())
    batch = batch_of(ring(), torch.float32, per_entry=True)
    ungated.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gate")})
    assert torch.equal(ungated.predict(batch)[2][0], gated.predict(batch)[2][0])


def test_a_spot_feels_four_hops_and_no_more(ring):
    data = ring()
    changed = data.counts.to_dense()
    changed[0] = changed[0].flip(0) + 1
    module = module_of(8, gene_attention=False)
    means = [
        module.predict(batch_of(replace(data, counts=counts), torch.float32, per_entry=True))[2][0]
        for counts in (data.counts, changed.to_sparse_csr())
    ]
    reached = (means[0] != means[1]).any(1).nonzero().squeeze(1).tolist()
    assert reached == [0, 1, 2, 3, 4, 26, 27, 28, 29]


def test_attention_is_returned_on_request(ring, trained):
    assert trained(ring(), n_epochs=1).attention is None
    crow, col, weights = trained(ring(), n_epochs=1, return_attention=True).attention
    assert crow.tolist() == list(range(0, 93, 3))
    neighbours = [sorted([i, (i + 1) % 30, (i - 1) % 30]) for i in range(30)]
    assert [sorted(row) for row in col.view(30, 3).tolist()] == neighbours
    torch.testing.assert_close(weights.view(30, 3).sum(1), torch.ones(30))


def test_pooled_expression_equals_a_dense_evaluation(ring):
    data = ring(n_spots=40, n_genes=6, empty=[4])
    module, patches = module_of(6).double(), patches_of(data)
    x = data.counts.to_dense().double()
    x = torch.log1p(1e4 * x / x.sum(1, keepdim=True).clamp(min=1))
    # Again, and by blocks of few spots.
    for entries in (10**6, 20):
        patches.row_blocks = lambda entries=entries: Patches.row_blocks(patches, entries)
        assert (len(list(patches.row_blocks())) > 5) == (entries == 20)
        module.set_pooled(patches)
        torch.testing.assert_close(module.gene_mean, x.mean(0))
        torch.testing.assert_close(module.gene_max, x.max(0).values)


# -- The schedules -----------------------------------------------------------------------------------------------------


def result_of(data, run=None, **params):
    method, run = DUSTED(**{**FAST, **params}), run or Run()
    model = method.train(data, run)
    return model, collect(method.predict(model, data, run), len(data.size_factors), {"history": model.history})


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_fast_learns_with_any_likelihood(ring, likelihood):
    data = ring(n_spots=60, n_genes=20, empty=[3, 4, 5])
    model, result = result_of(data, likelihood=likelihood, n_epochs=24, lr=1e-2, patience=2)
    history = result.history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    # The last part has no validation loss, and is as long as it should be.
    n_before = len(history["validation_loss"])
    assert len(history["loss"]) == min(24, n_before + max(1, round(training._ANNEALING * n_before)))
    assert min(history["validation_loss"]) < history["validation_loss"][0]
    assert result.mean.isfinite().all()
    # What the gate sees at the end is the data set with all its molecules.
    pooled = module_of(20)
    pooled.set_pooled(Patches(data))
    torch.testing.assert_close(model.state["gene_mean"], pooled.gene_mean)
    torch.testing.assert_close(model.state["gene_max"], pooled.gene_max)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not(ring):
    (_, first), (_, again), (_, other) = (result_of(ring(), Run(seed=seed)) for seed in (4, 4, 5))
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.latent, again.latent)
    assert first.history == again.history
    assert not torch.equal(first.mean, other.mean)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_memory_does_not_change_what_is_computed(ring, schedule):
    data = ring(empty=[8], n_spots=40)
    params = {"schedule": schedule, "n_epochs": 2, "return_attention": True}
    if schedule == "paper":
        params["batch_size"] = None
    _, whole = result_of(data, **params)
    for max_spots in (1, 17):
        _, parts = result_of(data, Run(max_spots=max_spots), **params)
        assert parts.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-4)
        for name in ("mean", "dispersion", "dropout", "latent"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=2e-3, atol=2e-4)
        ours, theirs = (
            torch.sparse_csr_tensor(*result.attention, size=(40, 40)).to_dense() for result in (parts, whole)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_tiny_data(spots_of, likelihood):
    for n_spots, size in [(1, 1), (2, 1), (2, 12), (13, 1), (13, 12)]:
        data = spots_of(np.eye(n_spots, 3), links=np.ones((n_spots, n_spots)))
        _, result = result_of(data, likelihood=likelihood, batch_size=size, n_epochs=2)
        assert result.mean.shape == (n_spots, 3)
        assert result.mean.isfinite().all()


def test_a_stored_zero_is_no_count(spots_of, trained):
    counts = np.random.default_rng(0).poisson(1.0, (25, 6)).astype(np.float32)
    explicit = sparse.csr_matrix((counts.ravel(), np.tile(np.arange(6), 25), np.arange(0, 151, 6)), shape=(25, 6))
    assert explicit.nnz == 150 > np.count_nonzero(counts)
    links = np.eye(25, k=1) + np.eye(25, k=-1)
    for params in ({**FAST, "n_epochs": 1}, {"n_epochs": 2}):
        plain, with_zeros = (trained(spots_of(x, links=links), **params) for x in (counts, explicit))
        for name in ("mean", "dispersion", "dropout", "latent"):
            assert torch.equal(getattr(with_zeros, name), getattr(plain, name))


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_the_validation_loss_is_the_mean_deviance_of_the_held_out_molecules(ring, likelihood, monkeypatch):
    data = ring(n_spots=60, n_genes=7, empty=[0, 1])
    drawn = []

    class Watched(HeldOut):
        def __init__(self, counts, chosen, fraction, generator):
            super().__init__(counts, chosen, fraction, generator)
            drawn.append((self, chosen))

    monkeypatch.setattr(training, "HeldOut", Watched)
    validation = training._Validation(patches_of(data), 12, torch.Generator().manual_seed(3), Run())
    ((held_out, chosen),) = drawn
    module = module_of(7, likelihood=likelihood).double()
    module.set_pooled(validation.training)
    # A quarter of the tissue, less the empty spots.
    assert 0 < len(chosen) <= 15
    taken = held_out.of(chosen).to_dense()
    seen = data.counts.to_dense().double()
    seen[chosen] -= taken
    depth = data.size_factors.double()
    depth[chosen] *= 0.9
    thinned = replace(data, counts=seen.to_sparse_csr(), size_factors=depth)
    (patch,) = Patches(thinned, n_hops=4).cover()
    mean, _, *dropout = module.predict(make_batch(patch, per_entry=True))[2]
    expected = mean * (1 - dropout[0]) if dropout else mean
    expected = (expected[chosen] / 9).clamp(min=1e-6)
    truth = mean_poisson_deviance(taken.ravel().numpy(), expected.ravel().numpy())
    assert validation.loss(module).item() == pytest.approx(truth, rel=1e-6)


def test_training_sees_held_out_molecules_only_in_the_last_part(ring, monkeypatch):
    data = ring(n_spots=60, n_genes=7)
    seen = []
    loss = DUSTEDModule.loss

    def watched(self, batch):
        seen.append(sum(block.count.sum().item() for block in batch.blocks))
        return loss(self, batch)

    monkeypatch.setattr(DUSTEDModule, "loss", watched)
    model, _ = result_of(data, n_epochs=6)
    total = data.counts.values().sum().item()
    per_epoch = np.reshape(seen, (len(model.history["loss"]), -1)).sum(1)
    n_before = len(model.history["validation_loss"])
    assert 0 < n_before < len(per_epoch)
    # An epoch may be several passes.
    n_passes = per_epoch[-1] / total
    assert n_passes == int(n_passes) >= 1
    assert (per_epoch[n_before:] == n_passes * total).all()
    # A tenth of the molecules of a quarter of the spots, always the same ones.
    assert len(set(per_epoch[:n_before])) == 1
    assert 0.95 < per_epoch[0] / per_epoch[-1] < 0.995
