import numpy as np
import pytest
import torch
from scipy import sparse
from torch.autograd import gradcheck
from torch.func import functional_call

from stdenoise._spots import Spots
from stdenoise.graph.csr import SpatialGraph, to_csr_tensor
from stdenoise.methods import DUSTED, DUSTEDConfig
from stdenoise.methods.dusted.module import DUSTEDModule, make_batch

SMALL = {"n_hidden": 16, "n_latent": 4, "n_epochs": 5, "lr": 1e-2}


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
        lognorm=to_csr_tensor(sparse.csr_matrix(np.log1p(1e4 * counts / depth)), dtype=torch.float32),
        size_factors=torch.tensor(depth[:, 0] / np.median(depth), dtype=torch.float32),
        nonempty=torch.tensor(counts.sum(1) > 0),
        genes=tuple(f"g{j}" for j in range(n_genes)),
        graph=SpatialGraph.from_scipy(sparse.csr_matrix(ring)),
    )


def fit(data, seed=0, **params):
    return DUSTED(**{**SMALL, **params}).fit(data, seed=seed, progress=False)


def test_defaults_are_those_of_the_released_dlpfc_run():
    config = DUSTED().config
    assert config == DUSTED(preset="dlpfc").config
    assert (config.likelihood, config.alpha, config.lr, config.n_epochs) == ("zinb", 1.5, 1e-4, 500)
    assert (config.weight_decay, config.clip, config.n_hidden, config.n_latent) == (1e-4, 5.0, 512, 30)


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
    batch = make_batch(
        data.lognorm.double(),
        data.counts.double(),
        data.size_factors.double(),
        data.graph,
        data.nonempty,
        per_entry=False,
    )
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
    data = spots()
    batch = make_batch(data.lognorm, data.counts, data.size_factors, data.graph, data.nonempty, per_entry=True)
    ungated.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gate")})
    assert torch.equal(ungated.predict(batch)[2][0], gated.predict(batch)[2][0])


def test_a_spot_feels_four_hops_and_no_more():
    data = spots()
    changed = data.lognorm.to_dense()
    changed[0] = changed[0].flip(0) + 1
    module = DUSTEDModule(8, DUSTEDConfig(**SMALL, gene_attention=False), generator=torch.Generator().manual_seed(0))
    means = [
        module.predict(make_batch(x, data.counts, data.size_factors, data.graph, data.nonempty, per_entry=True))[2][0]
        for x in (data.lognorm, changed.to_sparse_csr())
    ]
    reached = (means[0] != means[1]).any(1).nonzero().squeeze(1).tolist()
    assert reached == [0, 1, 2, 3, 4, 26, 27, 28, 29]


@pytest.mark.parametrize("likelihood", ["zinb", "nb"])
def test_gradcheck_of_the_whole_network(likelihood):
    data = spots(n_spots=6, n_genes=4)
    config = DUSTEDConfig(likelihood=likelihood, n_hidden=3, n_latent=2, gate_reduction=2)
    module = DUSTEDModule(4, config, generator=torch.Generator().manual_seed(1)).double()
    batch = make_batch(
        data.lognorm.double(),
        data.counts.double(),
        data.size_factors.double(),
        data.graph,
        data.nonempty,
        per_entry=True,
    )

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
    graph, weights = fit(spots(), return_attention=True).attention
    assert graph.n_edges == 30 * 3
    torch.testing.assert_close(graph.row_sum(weights), torch.ones(30))
