from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

import stdenoise as st
from stdenoise.methods.stagate import STAGATE, STAGATEConfig
from stdenoise.methods.stagate.module import STAGATEModule, make_batch
from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.results import collect
from stdenoise.spatial.spots import Context, make_spots
from stdenoise.train.loop import train
from stdenoise.train.patches import Patches
from stdenoise.train.run import Run

SMALL = {"n_hidden": 8, "n_latent": 3, "n_epochs": 5, "lr": 1e-2}


def spots_of(adata):
    graph = SpatialGraph.from_scipy(adata.obsp["spatial_connectivities"])
    return spots(adata.X, graph.to_scipy())


def spots(counts, links):
    graph = SpatialGraph.from_scipy(sparse.csr_matrix(links))
    names = [f"gene{j}" for j in range(counts.shape[1])]
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    return make_spots(counts, names, positions=None, context=Context(graph), device=torch.device("cpu"))


def ring(n_spots):
    return np.roll(np.eye(n_spots), 1, 0) + np.roll(np.eye(n_spots), -1, 0)


def fit(data, seed=0, **params):
    return STAGATE(**{**SMALL, **params}).fit(data, seed=seed, progress=False)


def module_of(n_genes, seed=0, **params):
    return STAGATEModule(n_genes, STAGATEConfig(**{**SMALL, **params}), generator=torch.Generator().manual_seed(seed))


def batch_of(data, dtype=torch.float64):
    """The whole tissue as one patch."""
    (patch,) = Patches(replace(data, counts=data.counts.to(dtype)), n_hops=2).cover()
    return make_batch(patch)


def dense_loss(module, data):
    """Mean squared error over non-empty spots, with dense attention and the whole reconstruction."""
    counts = data.counts.to_dense().double()
    x = torch.log1p(1e4 * counts / counts.sum(1, keepdim=True).clamp(min=1)).to(module.bottleneck.dtype)
    linked = (data.graph.matrix(torch.ones(data.graph.n_edges)).to_dense() + torch.eye(len(x))) > 0
    projected = x @ module.encoder.weight
    score = torch.sigmoid((projected @ module.encoder.source)[None] + (projected @ module.encoder.target)[:, None])
    attention = torch.softmax(score.masked_fill(~linked, -torch.inf), dim=1)
    latent = F.elu(attention @ projected) @ module.bottleneck
    hidden = F.elu(attention @ latent @ module.bottleneck.T)
    return F.mse_loss((hidden @ module.encoder.weight.T)[data.nonempty], x[data.nonempty])


def loss_and_gradients(module, loss):
    return loss, torch.autograd.grad(loss, list(module.parameters()))


# -- The loss without the reconstruction -------------------------------------------------------------------------------


@given(
    n_spots=some.integers(1, 12),
    n_genes=some.integers(1, 12),
    n_hidden=some.integers(1, 12),
    share=some.sampled_from([0.05, 0.5, 1.0]),
    seed=some.integers(0, 1000),
)
def test_loss_and_gradients_equal_those_of_the_plain_formulation(n_spots, n_genes, n_hidden, share, seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3, (n_spots, n_genes)) * (rng.random((n_spots, n_genes)) < share)
    counts[0, 0] += 1
    data = spots(counts, rng.random((n_spots, n_spots)) < 0.4)
    module = module_of(n_genes, seed, n_hidden=n_hidden).double()
    ours = loss_and_gradients(module, module.loss(batch_of(data)))
    plain = loss_and_gradients(module, dense_loss(module, data))
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n_genes", [300, 20], ids=["many genes", "few genes"])
@pytest.mark.parametrize("n_epochs", [1, 300], ids=["untrained", "trained"])
def test_single_precision_suffices(n_genes, n_epochs):
    # Two programmes only: a trained model reconstructs nearly all, so that the terms of the loss cancel.
    rng = np.random.default_rng(0)
    data = spots(rng.poisson(rng.gamma(1, 3, (200, 2)) @ rng.gamma(1, 3, (2, n_genes))), ring(200))
    module = module_of(n_genes, n_hidden=64, n_latent=10)
    batch = batch_of(data, torch.float32)
    train(
        module,
        lambda: module.loss(batch),
        lr=3e-3,
        weight_decay=1e-4,
        clip=5.0,
        n_epochs=n_epochs,
        restore_best=False,
        run=Run(),
        description="test",
    )
    loss, ours = loss_and_gradients(module, module.loss(batch))
    _, plain = loss_and_gradients(module, dense_loss(module, data))
    module.double()
    exact_loss, exact = loss_and_gradients(module, dense_loss(module, data))
    if n_epochs > 1:
        assert exact_loss < 0.05 * batch.square * batch.scale
    assert loss.item() == pytest.approx(exact_loss.item(), rel=2e-6)
    for gradient, other, truth in zip(ours, plain, exact, strict=True):
        # Near its minimum the gradient is a small difference, and the plain formulation rounds it off as well.
        allowed = max(1e-5 * truth.norm(), 5 * (other - truth).norm())
        assert (gradient - truth).norm() <= allowed


# -- The network -------------------------------------------------------------------------------------------------------


def counts_of(n_spots, n_genes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 1.0, size=(n_spots, n_genes)))


def test_a_spot_feels_two_hops_and_no_more():
    counts = counts_of(30, 8)
    changed = counts.copy()
    changed[0] = changed[0][::-1] + 1
    module = module_of(8)
    latents, means = zip(
        *(module.predict(batch_of(spots(c, ring(30)), torch.float32)) for c in (counts, changed)), strict=True
    )
    assert (latents[0] != latents[1]).any(1).nonzero().squeeze(1).tolist() == [0, 1, 29]
    assert (means[0] != means[1]).any(1).nonzero().squeeze(1).tolist() == [0, 1, 2, 28, 29]


def test_libraries_do_not_mix(irregular):
    irregular.obsm["spatial"] = np.random.default_rng(0).uniform(0, 10, (41, 2))
    st.pp.spatial_graph(irregular, radius=5, library_key="library")
    left = (irregular.obs["library"] == "left").to_numpy()
    changed = irregular.copy()
    changed.X = sparse.csr_matrix(irregular.X.toarray() * np.where(left, 1, 3)[:, None] + np.where(left, 0, 1)[:, None])
    module = module_of(10)
    means = [module.predict(batch_of(spots_of(a), torch.float32))[1] for a in (irregular, changed)]
    assert torch.equal(means[0][left], means[1][left])
    assert not torch.equal(means[0][~left], means[1][~left])


def test_order_of_spots_does_not_matter():
    counts, order = counts_of(30, 8), np.random.default_rng(1).permutation(30)
    straight = fit(spots(counts, ring(30)))
    shuffled = fit(spots(counts[order], ring(30)[np.ix_(order, order)]))
    torch.testing.assert_close(shuffled.mean, straight.mean[order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shuffled.latent, straight.latent[order], rtol=1e-3, atol=1e-4)


def test_an_empty_spot_is_filled_in_from_its_neighbours_and_not_scored():
    counts = np.tile([9, 0, 3, 1], (20, 1))
    counts[4] = 0
    result = fit(spots(counts, ring(20)), n_hidden=32, lr=3e-3, n_epochs=400)
    expected = spots(counts, ring(20)).lognorm.to_dense()[0]
    assert result.history["loss"][-1] < 0.1
    torch.testing.assert_close(result.mean[12], expected, rtol=0.1, atol=0.5)
    assert result.mean[4, 0] > 0.9 * expected[0]


# -- The method --------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_published_code():
    config = STAGATE().config
    assert (config.n_hidden, config.n_latent, config.n_epochs, config.batch_size) == (512, 30, 1000, None)
    assert (config.lr, config.weight_decay, config.clip, config.restore_best) == (1e-3, 1e-4, 5.0, False)


def test_it_learns_what_spots_share():
    rng = np.random.default_rng(0)
    truth = rng.gamma(1, 2, (2, 40))[np.repeat([0, 1], 50)]
    data = spots(rng.poisson(truth), np.eye(100, k=1) + np.eye(100, k=-1))
    result = fit(data, n_hidden=64, lr=3e-3, n_epochs=200)
    assert result.scale == "log1p"
    assert result.latent.shape == (100, 3)
    assert (result.mean >= 0).all()
    assert result.history["loss"][-1] < 0.5 * result.history["loss"][0]
    expected = torch.tensor(np.log1p(1e4 * truth / truth.sum(1, keepdims=True)))
    errors = [((values - expected) ** 2).mean() for values in (result.mean, data.lognorm.to_dense())]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("batch_size", [None, 9])
def test_memory_does_not_change_what_is_computed(irregular, batch_size):
    data, method = spots_of(irregular), STAGATE(**SMALL, batch_size=batch_size)
    results = []
    for max_spots in (None, 1, 7):
        run = Run(max_spots=max_spots)
        model = method.train(data, run)
        results.append(collect(method.predict(model, data, run), 41, {"history": model.history}))
    whole, *others = results
    for parts in others:
        assert parts.history["loss"] == pytest.approx(whole.history["loss"], rel=1e-5)
        torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(parts.latent, whole.latent, rtol=1e-3, atol=1e-4)


def test_steps_on_patches_learn_in_fewer_passes():
    data = spots(counts_of(100, 20), ring(100))
    full, patches = (fit(data, n_epochs=20, lr=3e-3, batch_size=n).history["loss"] for n in (None, 10))
    assert len(full) == len(patches) == 20
    assert patches[-1] < full[-1] < full[0]


def test_the_same_seed_gives_the_same_bits(irregular):
    data = spots_of(irregular)
    first, again, other = (fit(data, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.latent, again.latent)
    assert not torch.equal(first.mean, other.mean)


def test_restore_best_returns_the_weights_of_the_lowest_loss():
    data = spots(counts_of(30, 8), ring(30))
    params = {"lr": 0.3, "n_epochs": 11}
    losses = fit(data, **params).history["loss"]
    best = int(np.argmin(losses))
    assert 0 < best < 10
    assert torch.equal(fit(data, **params, restore_best=True).mean, fit(data, lr=0.3, n_epochs=best).mean)


@pytest.mark.parametrize(("n_spots", "n_genes"), [(1, 1), (1, 5), (2, 1), (2, 5), (5, 1)], ids=lambda n: str(n))
@pytest.mark.parametrize("joined", [True, False])
def test_tiny_data(n_spots, n_genes, joined):
    counts = np.full((n_spots, n_genes), 1_000_000)
    counts[-1, 0] = 1
    result = fit(spots(counts, np.ones((n_spots, n_spots)) * joined))
    assert result.mean.shape == (n_spots, n_genes)
    assert result.mean.isfinite().all()
    assert result.latent.isfinite().all()


def test_it_runs_behind_the_verb(irregular, reload, assert_same):
    st.tl.denoise(irregular, STAGATE(**SMALL))
    assert np.isfinite(irregular.layers["stagate_mean"]).all()
    assert irregular.obsm["X_stagate"].shape == (41, 3)
    assert irregular.uns["stagate"]["scale"] == "log1p"
    assert len(irregular.uns["stagate"]["history"]["loss"]) == 5
    again = reload(irregular, ".h5ad")
    assert_same(again.layers["stagate_mean"], irregular.layers["stagate_mean"])


def test_it_needs_a_graph(irregular):
    del irregular.obsp["spatial_connectivities"]
    with pytest.raises(KeyError, match="spatial_connectivities"):
        st.tl.denoise(irregular, STAGATE(**SMALL))


def test_divergence_is_an_error_with_advice():
    with pytest.raises(FloatingPointError, match="stagate: the loss is .* try a learning rate below 5e\\+29"):
        fit(spots(counts_of(30, 8), ring(30)), lr=1e30)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_hidden": 0}, "n_hidden must be an integer >= 1, not 0"),
        ({"n_latent": 2.5}, "n_latent must be an integer >= 1, not 2.5"),
        ({"n_epochs": -1}, "n_epochs must be an integer >= 1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, not 0"),
        ({"lr": 0}, "lr must be a number > 0"),
        ({"clip": float("inf")}, "clip must be a number > 0"),
        ({"weight_decay": -1}, "weight_decay must be a number >= 0"),
        ({"restore_best": "yes"}, "restore_best='yes' is not valid"),
        ({"alpha": 1}, "stagate has no parameter 'alpha'"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        STAGATE(**params)
