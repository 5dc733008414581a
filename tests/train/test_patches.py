"""What a training step sees: tiles that map as the whole does, and parts of a step that add up to it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import sparse

from stdenoise.methods.dusted import module as dusted
from stdenoise.methods.dusted.config import DUSTEDConfig
from stdenoise.methods.stagate import module as stagate
from stdenoise.methods.stagate.config import STAGATEConfig
from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.spots import Tissue
from stdenoise.train.held_out import HeldOut
from stdenoise.train.patches import Feed, Patches

N_GENES = 5
N_HOPS = {"dusted": 4, "stagate": 2}


def tissue(
    seed=0, n_spots=30, density=0.08, *, directed=False, n_dims=2, n_libraries=1, share_empty=0.2, n_genes=N_GENES
):
    """A random tissue in double precision: isolated spots, several components, empty spots and, if asked for, libraries."""
    rng = np.random.default_rng(seed)
    links = rng.random((n_spots, n_spots)) < density
    links = links if directed else links | links.T
    libraries = rng.integers(n_libraries, size=n_spots)
    links &= libraries[:, None] == libraries
    counts = rng.poisson(rng.gamma(1.0, 2.0, size=(n_spots, n_genes)))
    counts[:, 0] += 1
    counts[rng.random(n_spots) < share_empty] = 0
    counts[rng.integers(n_spots), 0] += 1
    arrays = {"coordinates": torch.from_numpy(rng.uniform(0, 9, (n_spots, n_dims)))} if n_dims else {}
    if n_libraries > 1:
        arrays["libraries"] = torch.from_numpy(libraries)
    around = Tissue(graphs={"spatial": SpatialGraph.from_scipy(sparse.csr_matrix(links))}, arrays=arrays)
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    spots = around.with_counts(counts, list("abcdefgh")[:n_genes], positions=None, device=torch.device("cpu"))
    return replace(spots, counts=spots.counts.double(), size_factors=spots.size_factors.double())


tissues = some.builds(
    tissue,
    seed=some.integers(0, 10_000),
    n_spots=some.integers(1, 30),
    density=some.sampled_from([0.0, 0.03, 0.1, 0.4]),
    directed=some.booleans(),
    n_dims=some.sampled_from([0, 2, 3]),
    n_libraries=some.integers(1, 3),
)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


# -- Tiles map as the whole does ---------------------------------------------------------------------------------------


def network(kind, spots, **params):
    """A module, what makes its batches, and what it maps a batch to."""
    if kind == "stagate":
        module = stagate.STAGATEModule(N_GENES, STAGATEConfig(n_hidden=6, n_latent=3), generator=draw()).double()
        return module, stagate.make_batch, lambda batch: list(module.predict(batch))
    config = DUSTEDConfig(n_hidden=6, n_latent=3, gate_reduction=2, **params)
    module = dusted.DUSTEDModule(N_GENES, config, generator=draw()).double()
    module.set_pooled(Patches(spots))
    per_entry = config.likelihood == "zinb"

    def map_batch(batch):
        latent, _, arrays = module.predict(batch)
        return [latent, *arrays]

    return module, lambda patch: dusted.make_batch(patch, per_entry=per_entry), map_batch


def patches_of(kind, spots, **arguments):
    return Patches(spots, n_hops=N_HOPS[kind], **arguments)


def loss_and_gradients(module, batches):
    """Loss of a step and its gradients: both are sums over the batches."""
    module.zero_grad()
    total = 0.0
    for batch in batches:
        loss = module.loss(batch)
        loss.backward()
        total += loss.item()
    return total, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]


def assert_same_step(ours, whole):
    assert ours[0] == pytest.approx(whole[0], rel=1e-9, abs=1e-9)
    for gradient, expected in zip(ours[1], whole[1], strict=True):
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9 * scale)


NETWORKS = [
    ("dusted", {"likelihood": "zinb"}),
    ("dusted", {"likelihood": "nb", "gene_attention": False}),
    ("stagate", {}),
]


@pytest.mark.parametrize(("kind", "params"), NETWORKS)
@settings(max_examples=12)
@given(spots=tissues, size=some.integers(1, 30))
def test_tiles_give_the_outputs_of_the_whole(kind, params, spots, size):
    module, make, map_batch = network(kind, spots, **params)
    data = patches_of(kind, spots, max_spots=size)
    (whole,) = patches_of(kind, spots).cover()
    expected = map_batch(make(whole))
    tiles = list(data.cover())
    assert len(tiles) >= -(-data.n_spots // size)
    for patch in tiles:
        core = patch.spots[: patch.n_core]
        for ours, theirs in zip(map_batch(make(patch)), expected, strict=True):
            torch.testing.assert_close(ours, theirs[core], rtol=1e-10, atol=1e-10)
        if kind == "dusted":
            attention, of_whole = (module.encode(make(part))[2].detach() for part in (patch, whole))
            crow, col, weights = patch.core_edges(attention)
            rows = torch.zeros(patch.n_core, data.n_spots, dtype=torch.float64)
            rows[torch.arange(patch.n_core).repeat_interleave(crow.diff()), col] = weights
            torch.testing.assert_close(rows, whole.graph.matrix(of_whole).to_dense()[core], rtol=0, atol=1e-12)


# -- Parts of a step add up to it --------------------------------------------------------------------------------------


def core_of(patch):
    return patch.spots[: patch.n_core].tolist()


def steps_of(data, make, batch_size, seed=0, skip=0):
    return list(data.steps(make, batch_size, draw(seed), skip))


@pytest.mark.parametrize(("kind", "params"), NETWORKS)
@settings(max_examples=12)
@given(
    spots=tissues,
    world=some.integers(1, 3),
    max_spots=some.one_of(some.none(), some.integers(1, 12)),
    batch_size=some.one_of(some.none(), some.integers(1, 30)),
)
def test_neither_memory_nor_devices_change_a_step(kind, params, spots, world, max_spots, batch_size):
    module, make, _ = network(kind, spots, **params)
    whole = steps_of(patches_of(kind, spots), make, batch_size)
    assert whole
    assert all(len(parts) == 1 for parts in whole)
    ranks = [patches_of(kind, spots, max_spots=max_spots, share=(rank, world)) for rank in range(world)]
    of_ranks = [steps_of(data, make, batch_size) for data in ranks]
    # All processes take the same number of steps, or they would wait for each other for ever.
    assert {len(parts) for parts in of_ranks} == {len(whole)}
    for expected, *shares in zip(whole, *of_ranks, strict=True):
        together = [batch for share in shares for batch in share]
        assert_same_step(loss_and_gradients(module, together), loss_and_gradients(module, expected))
        if max_spots is not None:
            assert max(len(batch.size_factors) if kind == "dusted" else batch.n_core for batch in together) <= max_spots


@given(
    spots=tissues,
    batch_size=some.one_of(some.none(), some.integers(1, 30)),
    world=some.integers(1, 3),
    n_passes=some.integers(1, 3),
    seed=some.integers(0, 100),
    skip=some.integers(0, 40),
)
def test_passes_follow_each_other_and_skip_leaves_out_exactly_the_first_steps(
    spots, batch_size, world, n_passes, seed, skip
):
    data, whole, skipped = Patches(spots, n_hops=1, max_spots=4, share=(world - 1, world)), draw(seed), draw(seed)
    every = [step for _ in range(n_passes) for step in data.steps(core_of, batch_size, whole)]
    assert list(data.steps(core_of, batch_size, skipped, skip, n_passes)) == every[skip:]
    # Whatever is skipped, the generator is then where it is after whole passes.
    assert torch.equal(whole.get_state(), skipped.get_state())


@given(spots=tissues, batch_size=some.one_of(some.none(), some.integers(1, 40)), seed=some.integers(0, 100))
def test_a_pass_scores_each_filled_spot_once(spots, batch_size, seed):
    data = Patches(spots, n_hops=2, max_spots=3)
    scored, n_scored = [], []
    steps = steps_of(data, lambda patch: patch, batch_size, seed)
    assert len(steps) <= data.n_steps(batch_size)
    for parts in steps:
        in_step = [patch.spots[patch.scored] for patch in parts]
        assert {patch.n_scored for patch in parts} == {sum(map(len, in_step))}
        n_scored.append(sum(map(len, in_step)))
        scored += in_step
    assert sorted(torch.cat(scored).tolist()) == spots.nonempty.nonzero().squeeze(1).tolist()
    assert min(n_scored) >= 1
    assert max(n_scored) <= (batch_size or data.n_spots)


@given(
    seed=some.integers(0, 1000),
    n_libraries=some.integers(1, 3),
    batch_size=some.one_of(some.none(), some.integers(1, 40)),
    least_steps=some.integers(1, 20),
)
def test_a_feed_has_as_many_steps_as_it_says(seed, n_libraries, batch_size, least_steps):
    data = Patches(tissue(seed, share_empty=0.0, n_libraries=n_libraries), n_hops=1)
    assert data.n_steps(batch_size) == len(steps_of(data, core_of, batch_size, seed))
    feed = Feed(data, lambda patch: 0, batch_size, draw(), least_steps=least_steps)
    n_steps = len(list(feed(0)))
    assert n_steps == feed.n_steps
    for skip in (1, n_steps // 2, n_steps, n_steps + 3):
        assert len(list(feed(skip))) == max(0, n_steps - skip)
    # Whole passes, and at least two thirds of what was asked for.
    assert n_steps % data.n_steps(batch_size) == 0
    assert n_steps >= least_steps * 2 / 3


def test_steps_are_drawn_from_the_generator_and_one_is_not_beside_the_one_before():
    data, generator = Patches(tissue(n_spots=400, density=0), n_hops=0), draw(1)
    passes = [[core for (core,) in data.steps(core_of, 16, generator)] for _ in range(10)]
    assert [core for (core,) in steps_of(data, core_of, 16, seed=1)] == passes[0]
    assert sorted(passes[0]) != sorted(passes[1])
    centers = [torch.stack([data.spots.coordinates[core].mean(0) for core in one]) for one in passes]
    apart = sum((center[1:] - center[:-1]).norm(dim=1).mean() for center in centers)
    assert 0.9 < apart / sum(torch.pdist(center).mean() for center in centers) < 1.1


def test_libraries_that_fit_into_a_step_are_not_cut():
    spots = tissue(n_spots=60, n_libraries=5)
    libraries = spots.libraries
    for (core,) in steps_of(Patches(spots, n_hops=1), core_of, int(libraries.bincount().max())):
        for library in libraries[core].unique():
            assert (libraries[core] == library).sum() == (libraries == library).sum()


@given(
    spots=tissues,
    world=some.integers(1, 4),
    max_spots=some.one_of(some.none(), some.integers(1, 12)),
    n_hops=some.integers(0, 2),
)
def test_patches_cover_each_spot_once_over_all_processes(spots, world, max_spots, n_hops):
    covered = []
    for rank in range(world):
        for patch in Patches(spots, n_hops=n_hops, max_spots=max_spots, share=(rank, world)).cover():
            core = patch.spots[: patch.n_core]
            assert len(core) <= (max_spots or len(spots.nonempty))
            assert torch.equal(core[patch.scored], core[spots.nonempty[core]])
            assert torch.equal(patch.counts.to_dense(), spots.counts.to_dense()[patch.spots])
            assert torch.equal(patch.size_factors, spots.size_factors[patch.spots])
            covered += core.tolist()
    assert sorted(covered) == list(range(len(spots.nonempty)))


def test_a_tile_that_reaches_all_spots_is_in_its_own_order():
    # As many rows as the whole, and yet not the whole: its core comes first.
    spots = tissue(n_spots=12, density=0.9)
    patch = Patches(spots, n_hops=2).patch(np.arange(6, 12), 6)
    assert patch.spots.tolist() == [*range(6, 12), *range(6)]
    assert torch.equal(patch.counts.to_dense(), spots.counts.to_dense()[patch.spots])


def test_patches_without_coordinates_follow_the_graph():
    side = 12
    shuffled = np.random.default_rng(0).permutation(side**2)
    path = np.eye(side, k=1) + np.eye(side, k=-1)
    links = (np.kron(path, np.eye(side)) + np.kron(np.eye(side), path))[np.ix_(shuffled, shuffled)]
    spots = tissue(n_spots=side**2, n_dims=0)
    spots = replace(spots, graphs={"spatial": SpatialGraph.from_scipy(sparse.csr_matrix(links))})
    at_random = replace(spots, arrays={"coordinates": torch.rand(side**2, 2, generator=draw())})

    def cores_and_halos(spots):
        steps = Patches(spots, n_hops=1).steps(lambda p: (core_of(p), len(p.spots) - p.n_core), 36, draw(1), 0, 2)
        return zip(*(step[0] for step in steps), strict=True)

    (cores, halos), (_, others) = cores_and_halos(spots), cores_and_halos(at_random)
    assert len(halos) == len(others) == 8
    assert sum(halos) < 0.6 * sum(others)
    # And not the same ones in each pass.
    assert sorted(cores[:4]) != sorted(cores[4:])


def test_without_coordinates_and_graph_spots_are_taken_as_they_come_and_have_no_edges():
    spots = replace(tissue(n_spots=10, n_dims=0), graphs={})
    with pytest.raises(ValueError, match="no spatial graph"):
        Patches(spots, n_hops=1)
    patches = list(Patches(spots, max_spots=5).cover())
    assert [patch.spots.tolist() for patch in patches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert patches[0].graph is None
    with pytest.raises(ValueError, match="there is no graph"):
        patches[0].core_edges(torch.ones(3))


# -- Samples, blocks and held-out molecules ----------------------------------------------------------------------------


@given(
    spots=tissues,
    size=some.integers(1, 40),
    share=some.sampled_from([0.1, 0.25, 1.0]),
    most=some.integers(1, 40),
    seed=some.integers(0, 20),
)
def test_a_sample_is_some_filled_parts(spots, size, share, most, seed):
    data = Patches(spots)
    cores = data.sample(size, share, most, draw(seed))
    assert cores
    chosen = torch.cat(cores)
    assert len(set(chosen.tolist())) == len(chosen)
    assert spots.nonempty[chosen].all()
    parts = [set(part.tolist()) for part in data._partition(size)]
    for core in cores:
        assert len(core)
        (part,) = [part for part in parts if core[0].item() in part]
        # All that is filled of a part.
        assert set(core.tolist()) == {spot for spot in part if spots.nonempty[spot]}
    assert len(cores) == 1 or len(cores) * size <= most
    assert len(cores) <= max(1, round(share * len(parts)))
    assert list(map(list, data.sample(size, share, most, draw(seed)))) == list(map(list, cores))


@given(spots=tissues, entries=some.integers(1, 400))
def test_held_out_molecules_are_missing_in_patches_and_blocks_of_the_one_data_set_only(spots, entries):
    data = Patches(spots, n_hops=1, max_spots=4)
    chosen = spots.nonempty.nonzero().squeeze(1)[::2]
    held_out = HeldOut(spots.counts, chosen, 0.5, draw())
    thinned = data.without(held_out)
    counts = spots.counts.to_dense()
    expected = counts.clone()
    expected[chosen] -= held_out.of(chosen).to_dense()
    depth = torch.where(torch.isin(torch.arange(data.n_spots), chosen), 0.5, 1.0) * spots.size_factors
    for patch in thinned.cover():
        assert torch.equal(patch.counts.to_dense(), expected[patch.spots])
        torch.testing.assert_close(patch.size_factors, depth[patch.spots])
    for part, left in ((thinned, expected), (data, counts), (thinned.without(None), counts)):
        assert torch.equal(torch.cat([block.to_dense() for block in part.row_blocks(entries)]), left)
    assert [patch.spots.tolist() for patch in thinned.cover()] == [patch.spots.tolist() for patch in data.cover()]


# -- The feed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 30, 99])
def test_a_whole_batch_is_made_once(batch_size):
    made, generator = [], draw()
    data = Patches(tissue(), n_hops=1)
    feed = Feed(data, lambda patch: made.append(patch) or len(made), batch_size, generator)
    before = generator.get_state()
    assert [list(feed(skip)) for skip in (0, 0, 1, 0)] == [[[1]], [[1]], [], [[1]]]
    # Of another data set it is another one.
    feed.data = data.without(None)
    assert [list(feed(0)) for _ in range(2)] == [[[2]], [[2]]]
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("arguments", [{"batch_size": 7}, {"max_spots": 9}, {"share": (0, 2)}])
def test_other_batches_are_made_as_they_are_needed(arguments):
    made, batch_size = [], arguments.pop("batch_size", None)
    data = Patches(tissue(share_empty=0.0), n_hops=1, **arguments)
    feed = Feed(data, made.append, batch_size, draw())
    steps = feed(0)
    next(steps)
    n_first = len(made)
    list(steps)
    list(feed(0))
    assert n_first < len(made) == 2 * sum(map(len, steps_of(data, core_of, batch_size)))
    # Those that are left out are not made.
    made.clear()
    list(feed(10_000))
    assert made == []
