from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.metrics import mean_poisson_deviance
from torch.autograd import gradcheck
from torch.func import functional_call

from stdenoise.methods import DUSTED, DUSTEDConfig
from stdenoise.methods.dusted import training
from stdenoise.methods.dusted.config import PRESETS, SCHEDULES
from stdenoise.methods.dusted.module import DUSTEDModule, make_batch
from stdenoise.spatial.graph import SpatialGraph, to_csr_tensor
from stdenoise.spatial.results import collect
from stdenoise.spatial.spots import Context, Spots, make_spots
from stdenoise.train.held_out import HeldOut
from stdenoise.train.patches import Patches
from stdenoise.train.run import Run
from stdenoise.train.schedule import Outcome

SMALL = {"n_hidden": 16, "n_latent": 4, "n_epochs": 5, "lr": 1e-2}
PAPER = {**SMALL, "schedule": "paper"}


def spots(seed=0, n_spots=30, n_genes=8, order=None, empty=()):
    """A random tissue on a ring, optionally with its spots in another order or some of them emptied."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(1.0, 1.0, size=(n_spots, n_genes))).astype(np.float32)
    counts[list(empty)] = 0
    ring = sparse.coo_array((np.ones(n_spots), (np.arange(n_spots), (np.arange(n_spots) + 1) % n_spots))).toarray()
    ring += ring.T
    order = np.arange(n_spots) if order is None else order
    counts, ring = counts[order], ring[np.ix_(order, order)]
    depth = np.maximum(counts.sum(1, keepdims=True), 1)
    return Spots(
        counts=to_csr_tensor(sparse.csr_matrix(counts), dtype=torch.float32),
        size_factors=torch.tensor(depth[:, 0] / np.median(depth), dtype=torch.float32),
        median_total=float(np.median(depth)),
        nonempty=torch.tensor(counts.sum(1) > 0),
        genes=tuple(f"g{j}" for j in range(n_genes)),
        graph=SpatialGraph.from_scipy(sparse.csr_matrix(ring)),
    )


def fit(data, seed=0, **params):
    return DUSTED(**{**PAPER, **params}).fit(data, seed=seed, progress=False)


def patches_of(data, dtype=torch.float64):
    return Patches(replace(data, counts=data.counts.to(dtype), size_factors=data.size_factors.to(dtype)), n_hops=4)


def batch_of(data, dtype=torch.float64, *, per_entry):
    """The whole tissue as one patch."""
    (patch,) = patches_of(data, dtype).cover()
    return make_batch(patch, per_entry=per_entry)


def test_defaults_are_those_of_the_released_dlpfc_run(monkeypatch):
    config = DUSTED().config
    assert config.schedule == "paper"
    assert replace(config, lr=1e-4) == DUSTED(preset="dlpfc").config
    assert (config.likelihood, config.alpha, config.restore_best) == ("zinb", 1.5, True)
    assert (config.weight_decay, config.clip, config.n_hidden, config.n_latent) == (1e-4, 5.0, 512, 30)
    taken = resolved(monkeypatch, schedule="paper")
    assert (taken["lr"], taken["n_epochs"], taken["batches"].batch_size) == (1e-4, 500, None)
    assert (SCHEDULES["paper"].lr, SCHEDULES["paper"].n_epochs) == (1e-4, 500)


def resolved(monkeypatch, **params):
    """What the training loop is given."""
    taken = {}

    def no_training(module, loss_of, **arguments):
        taken.update(arguments)
        return Outcome({}, {})

    monkeypatch.setattr(training, "train", no_training)
    DUSTED(n_hidden=4, n_latent=2, **params).fit(spots(), seed=0, progress=False)
    return taken


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "value"), [("lr", 3e-5), ("n_epochs", 7), ("batch_size", 11)])
def test_given_values_win_over_the_schedule(monkeypatch, schedule, name, value):
    defaults, given = (
        {"lr": taken["lr"], "n_epochs": taken["n_epochs"], "batch_size": taken["batches"].batch_size}
        for taken in (resolved(monkeypatch, schedule=schedule, **params) for params in ({}, {name: value}))
    )
    assert (defaults["lr"], defaults["n_epochs"]) == (SCHEDULES[schedule].lr, SCHEDULES[schedule].n_epochs)
    assert given == {**defaults, name: value}
    assert given != defaults


@pytest.mark.parametrize(("n_spots", "batch_size"), [(1, 128), (3072, 128), (3639, 152), (12000, 500), (10**6, 2048)])
def test_fast_steps_grow_with_the_tissue_between_two_bounds(n_spots, batch_size):
    data = SimpleNamespace(n_spots=n_spots, n_steps=lambda size: -(-n_spots // size))
    feed = training._feed(data, DUSTEDConfig(schedule="fast"), torch.Generator())
    assert feed.batch_size == batch_size


def test_presets_are_of_the_published_schedule(monkeypatch):
    assert {DUSTED(preset=name).config.schedule for name in PRESETS} == {"paper"}
    taken = resolved(monkeypatch, preset="hocwta")
    assert (taken["lr"], taken["n_epochs"], taken["batches"].batch_size) == (2e-4, 500, None)
    assert taken.get("anneal") is None


def test_the_fast_schedule(monkeypatch):
    taken = resolved(monkeypatch, schedule="fast")
    assert (taken["lr"], taken["n_epochs"]) == (1e-3, 20)
    assert taken["anneal"].n_steps == taken["batches"].n_steps >= 12
    # It cannot stop on the plateau of the first hundred steps.
    assert taken["anneal"].least * taken["anneal"].n_steps >= 96
    assert resolved(monkeypatch, schedule="fast", patience=7)["anneal"].patience == 7


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
def test_the_decay_of_many_genes_falls_with_the_gradient_of_their_mean(params, n_genes, share):
    feed = SimpleNamespace(data=SimpleNamespace(spots=spots(n_genes=n_genes, n_spots=3)), generator=None)
    assert training._common(DUSTEDConfig(**params), Run(), feed)["weight_decay"] == pytest.approx(1e-4 * share)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"schedule": "slow"}, r"schedule='slow' is not valid; choose from .*fast"),
        ({"schedule": "paper", "patience": 3}, "patience=3 applies to schedule='fast' only"),
        ({"patience": 3}, "patience=3 applies to schedule='fast' only"),
        ({"schedule": "fast", "restore_best": False}, "restore_best=False applies to schedule='paper' only"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, not 0"),
        ({"n_epochs": 2.5}, "n_epochs must be an integer >= 1, not 2.5"),
        ({"patience": True}, "patience must be an integer"),
        ({"lr": 0}, "lr must be a number > 0, not 0"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DUSTED(**params)


@pytest.mark.parametrize(("preset", "expected"), [("hocwta", ("nb", 1.0, 2e-4)), ("simulated", ("nb", 0.3, 1e-4))])
def test_presets_of_the_paper(preset, expected):
    config = DUSTED(preset=preset).config
    assert (config.likelihood, config.alpha, config.lr) == expected
    assert DUSTED(preset=preset, alpha=0.7).config.alpha == 0.7


def test_order_of_spots_does_not_matter():
    order = np.random.default_rng(1).permutation(30)
    straight, shuffled = fit(spots()), fit(spots(order=order))
    torch.testing.assert_close(shuffled.mean, straight.mean[order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shuffled.latent, straight.latent[order], rtol=1e-3, atol=1e-4)


def test_loss_goes_down():
    data = spots(n_spots=60, n_genes=40)
    result = fit(data, likelihood="nb", n_hidden=64, lr=1e-3, n_epochs=300)
    assert result.history["loss"][-1] < 0.8 * result.history["loss"][0]


def test_empty_spots_are_not_scored_and_stay_finite():
    data = spots(empty=[3, 17])
    result = fit(data)
    assert result.mean.isfinite().all()
    batch = batch_of(data, per_entry=False)
    config = DUSTEDConfig(**SMALL, likelihood="nb")
    module = DUSTEDModule(8, config, generator=torch.Generator().manual_seed(0)).double()
    _, _, (mean, theta) = module.predict(batch)
    log_nb = torch.distributions.NegativeBinomial(theta, logits=mean.log() - theta.log())
    entries = -log_nb.log_prob(data.counts.to_dense().double())
    assert module.loss(batch).item() == pytest.approx(entries[data.nonempty].sum(1).mean().item(), rel=1e-6)


def test_reduction_mean_divides_by_the_genes():
    data = spots()
    published, mean = (fit(data, likelihood="nb", reduction=r, n_epochs=1) for r in ("published", "mean"))
    assert published.history["loss"][0] == pytest.approx(8 * mean.history["loss"][0], rel=1e-6)


def test_without_gene_attention_there_is_no_gate():
    ungated = DUSTEDModule(8, DUSTEDConfig(**SMALL, gene_attention=False), generator=torch.Generator().manual_seed(0))
    gated = DUSTEDModule(8, DUSTEDConfig(**SMALL, alpha=0.0), generator=torch.Generator().manual_seed(0))
    assert not any("gate" in name for name, _ in ungated.named_parameters())
    batch = batch_of(spots(), torch.float32, per_entry=True)
    ungated.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gate")})
    assert torch.equal(ungated.predict(batch)[2][0], gated.predict(batch)[2][0])


def test_a_spot_feels_four_hops_and_no_more():
    data = spots()
    changed = data.counts.to_dense()
    changed[0] = changed[0].flip(0) + 1
    module = DUSTEDModule(8, DUSTEDConfig(**SMALL, gene_attention=False), generator=torch.Generator().manual_seed(0))
    means = [
        module.predict(batch_of(replace(data, counts=counts), torch.float32, per_entry=True))[2][0]
        for counts in (data.counts, changed.to_sparse_csr())
    ]
    reached = (means[0] != means[1]).any(1).nonzero().squeeze(1).tolist()
    assert reached == [0, 1, 2, 3, 4, 26, 27, 28, 29]


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_gradcheck_of_the_whole_network(likelihood):
    data = spots(n_spots=6, n_genes=4)
    config = DUSTEDConfig(likelihood=likelihood, n_hidden=3, n_latent=2, gate_reduction=2)
    module = DUSTEDModule(4, config, generator=torch.Generator().manual_seed(1)).double()
    batch = batch_of(data, per_entry=True)
    module.set_pooled(patches_of(data))
    assert (module.gene_mean > 0).all()

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self):
            return self.inner.loss(batch)

    wrapped = Loss()
    names, values = zip(*wrapped.named_parameters(), strict=True)
    values = [v.detach().clone().requires_grad_() for v in values]
    assert gradcheck(lambda *v: functional_call(wrapped, dict(zip(names, v, strict=True)), ()), values)


def test_attention_is_returned_on_request():
    assert fit(spots()).attention is None
    crow, col, weights = fit(spots(), return_attention=True).attention
    assert crow.tolist() == list(range(0, 93, 3))
    neighbours = [sorted([i, (i + 1) % 30, (i - 1) % 30]) for i in range(30)]
    assert [sorted(row) for row in col.view(30, 3).tolist()] == neighbours
    torch.testing.assert_close(weights.view(30, 3).sum(1), torch.ones(30))


def test_pooled_expression_equals_a_dense_evaluation():
    data = spots(n_spots=40, n_genes=6, empty=[4])
    module = DUSTEDModule(6, DUSTEDConfig(**SMALL), generator=torch.Generator().manual_seed(0)).double()
    patches = patches_of(data)
    x = data.counts.to_dense().double()
    x = torch.log1p(1e4 * x / x.sum(1, keepdim=True).clamp(min=1))
    module.set_pooled(patches)
    torch.testing.assert_close(module.gene_mean, x.mean(0))
    torch.testing.assert_close(module.gene_max, x.max(0).values)
    # Again, and by blocks of few spots.
    patches.row_blocks = lambda: Patches.row_blocks(patches, 20)
    assert len(list(patches.row_blocks())) > 5
    module.set_pooled(patches)
    torch.testing.assert_close(module.gene_mean, x.mean(0))
    torch.testing.assert_close(module.gene_max, x.max(0).values)


# -- The fast schedule -------------------------------------------------------------------------------------------------

FAST = {**SMALL, "schedule": "fast", "n_epochs": 8, "batch_size": 12}


def result_of(data, run=None, **params):
    method, run = DUSTED(**{**FAST, **params}), run or Run()
    model = method.train(data, run)
    return model, collect(method.predict(model, data, run), len(data.size_factors), {"history": model.history})


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_fast_learns_with_any_likelihood(likelihood):
    data = spots(n_spots=80, n_genes=20, empty=[3, 4, 5])
    model, result = result_of(data, likelihood=likelihood, n_epochs=60, lr=3e-3)
    history = result.history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    # The last part has no validation loss, and is as long as it should be.
    n_before = len(history["validation_loss"])
    assert len(history["loss"]) == min(60, n_before + max(1, round(training._ANNEALING * n_before)))
    assert len(history["loss"]) <= 60
    assert min(history["validation_loss"]) < history["validation_loss"][0]
    assert result.mean.isfinite().all()
    # What the gate sees at the end is the data set with all its molecules.
    pooled = DUSTEDModule(20, DUSTEDConfig(**SMALL), generator=torch.Generator().manual_seed(0))
    pooled.set_pooled(Patches(data))
    torch.testing.assert_close(model.state["gene_mean"], pooled.gene_mean)
    torch.testing.assert_close(model.state["gene_max"], pooled.gene_max)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not():
    data = spots()
    (_, first), (_, again), (_, other) = (result_of(data, Run(seed=seed)) for seed in (4, 4, 5))
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.latent, again.latent)
    assert first.history == again.history
    assert not torch.equal(first.mean, other.mean)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("max_spots", [1, 5, 17])
def test_memory_does_not_change_what_is_computed(schedule, max_spots):
    data = spots(empty=[8], n_spots=40)
    params = {"schedule": schedule, "n_epochs": 3, "return_attention": True}
    if schedule == "paper":
        params["batch_size"] = None
    (_, whole), (_, parts) = (result_of(data, Run(max_spots=n), **params) for n in (None, max_spots))
    assert parts.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-4)
    for name in ("mean", "dispersion", "dropout", "latent"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=2e-3, atol=2e-4)
    ours, theirs = (torch.sparse_csr_tensor(*result.attention, size=(40, 40)).to_dense() for result in (parts, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_spots", [1, 2, 13])
@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_tiny_data(n_spots, likelihood):
    data = make_spots(
        sparse.csr_matrix(np.eye(n_spots, 3, dtype=np.float32)),
        ["a", "b", "c"],
        positions=None,
        context=Context(SpatialGraph.from_scipy(sparse.csr_matrix(np.ones((n_spots, n_spots))))),
        device=torch.device("cpu"),
    )
    for size in (1, 12):
        _, result = result_of(data, likelihood=likelihood, batch_size=size)
        assert result.mean.shape == (n_spots, 3)
        assert result.mean.isfinite().all()


def test_a_stored_zero_is_no_count():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, (25, 6)).astype(np.float32))
    links = SpatialGraph.from_scipy(sparse.csr_matrix(np.eye(25, k=1) + np.eye(25, k=-1)))
    dense = counts.toarray()
    explicit = sparse.csr_matrix((dense.ravel(), np.tile(np.arange(6), 25), np.arange(0, 151, 6)), shape=(25, 6))
    assert explicit.nnz > counts.nnz
    results = [
        DUSTED(**params).fit(
            make_spots(x, list("abcdef"), positions=None, context=Context(links), device=torch.device("cpu")),
            seed=0,
            progress=False,
        )
        for params in (FAST, PAPER)
        for x in (counts, explicit)
    ]
    assert explicit.nnz == 150
    for plain, with_zeros in (results[:2], results[2:]):
        for name in ("mean", "dispersion", "dropout", "latent"):
            assert torch.equal(getattr(with_zeros, name), getattr(plain, name))


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_the_validation_loss_is_the_mean_deviance_of_the_held_out_molecules(likelihood, monkeypatch):
    data = spots(n_spots=60, n_genes=7, empty=[0, 1])
    drawn = []

    class Watched(HeldOut):
        def __init__(self, counts, chosen, fraction, generator):
            super().__init__(counts, chosen, fraction, generator)
            drawn.append((self, chosen))

    monkeypatch.setattr(training, "HeldOut", Watched)
    patches = patches_of(data)
    validation = training._Validation(patches, 12, torch.Generator().manual_seed(3), Run())
    ((held_out, chosen),) = drawn
    config = DUSTEDConfig(**SMALL, likelihood=likelihood)
    module = DUSTEDModule(7, config, generator=torch.Generator().manual_seed(0)).double()
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


def test_training_sees_held_out_molecules_only_in_the_last_part(monkeypatch):
    data = spots(n_spots=60, n_genes=7)
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
