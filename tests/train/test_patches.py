"""What a training step sees: tiles that map as the whole does, and parts of a step that add up to it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy import sparse

from stdenoise.methods.dusted import module as dusted
from stdenoise.methods.dusted.config import DUSTEDConfig
from stdenoise.methods.stagate import module as stagate
from stdenoise.methods.stagate.config import STAGATEConfig
from stdenoise.spatial.graph import SpatialGraph
from stdenoise.spatial.spots import Context, make_spots
from stdenoise.spatial.tiles import order_by_graph, partition
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
    context = Context(
        graph=SpatialGraph.from_scipy(sparse.csr_matrix(links)),
        coordinates=torch.from_numpy(rng.uniform(0, 9, (n_spots, n_dims))) if n_dims else None,
        libraries=torch.from_numpy(libraries) if n_libraries > 1 else None,
    )
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    spots = make_spots(counts, list("abcdefgh")[:n_genes], positions=None, context=context, device=torch.device("cpu"))
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
    ("dusted", {"likelihood": "nb"}),
    ("dusted", {"likelihood": "zinb", "gene_attention": False}),
    ("dusted", {"likelihood": "nb", "gene_attention": False}),
    ("stagate", {}),
]


@pytest.mark.parametrize(("kind", "params"), NETWORKS)
@given(spots=tissues, size=some.integers(1, 30))
def test_tiles_give_the_outputs_and_gradients_of_the_whole(kind, params, spots, size):
    module, make, map_batch = network(kind, spots, **params)
    data = patches_of(kind, spots, max_spots=size)
    (whole,) = patches_of(kind, spots).cover()
    expected = map_batch(make(whole))
    tiles = list(data.cover())
    assert len(tiles) >= -(-data.n_spots // size)
    for patch in tiles:
        for ours, theirs in zip(map_batch(make(patch)), expected, strict=True):
            assert len(ours) == patch.n_core
            torch.testing.assert_close(ours, theirs[patch.spots[: patch.n_core]], rtol=1e-10, atol=1e-10)
    scored = [make(patch) for patch in tiles if len(patch.scored)]
    assert_same_step(loss_and_gradients(module, scored), loss_and_gradients(module, [make(whole)]))


@pytest.mark.parametrize(("kind", "params"), NETWORKS)
def test_one_ring_less_is_not_enough(kind, params):
    spots = tissue(n_spots=40, share_empty=0.0)
    path = np.eye(40, k=1) + np.eye(40, k=-1)
    spots = replace(spots, graph=SpatialGraph.from_scipy(sparse.csr_matrix(path)))
    _, make, map_batch = network(kind, spots, **params)
    (whole,) = patches_of(kind, spots).cover()
    expected = map_batch(make(whole))[1][15:25]
    core = np.arange(15, 25)
    for n_hops, same in ((N_HOPS[kind], True), (N_HOPS[kind] - 1, False)):
        ours = map_batch(make(Patches(spots, n_hops=n_hops).patch(core, 10)))[1]
        assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-10) is same


@given(spots=tissues, size=some.integers(1, 30))
def test_the_attention_of_tiles_is_that_of_the_whole(spots, size):
    module, make, _ = network("dusted", spots)
    n_spots = len(spots.size_factors)
    (whole,) = patches_of("dusted", spots).cover()
    expected = whole.graph.matrix(module.encode(make(whole))[2].detach()).to_dense()
    rows = torch.zeros(n_spots, n_spots, dtype=torch.float64)
    for patch in patches_of("dusted", spots, max_spots=size).cover():
        crow, col, weights = patch.core_edges(module.encode(make(patch))[2].detach())
        receivers = patch.spots[: patch.n_core].repeat_interleave(crow.diff())
        rows[receivers, col] = weights
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-12)


def test_without_a_graph_there_are_no_edges():
    (patch,) = Patches(replace(tissue(), graph=None)).cover()
    assert patch.graph is None
    with pytest.raises(ValueError, match="there is no graph"):
        patch.core_edges(torch.ones(3))


# -- Parts of a step add up to it --------------------------------------------------------------------------------------


def steps_of(data, make, batch_size, seed=0, skip=0):
    return list(data.steps(make, batch_size, draw(seed), skip))


@pytest.mark.parametrize("kind", N_HOPS)
@given(
    spots=tissues,
    world=some.integers(1, 3),
    max_spots=some.one_of(some.none(), some.integers(1, 12)),
    batch_size=some.one_of(some.none(), some.integers(1, 30)),
)
def test_neither_memory_nor_devices_change_a_step(kind, spots, world, max_spots, batch_size):
    module, make, _ = network(kind, spots)
    whole = steps_of(patches_of(kind, spots), make, batch_size)
    assert whole
    assert all(len(parts) == 1 for parts in whole)
    of_ranks = [
        steps_of(patches_of(kind, spots, max_spots=max_spots, share=(rank, world)), make, batch_size)
        for rank in range(world)
    ]
    for parts in of_ranks:
        # All processes take the same number of steps, or they would wait for each other for ever.
        assert len(parts) == len(whole)
    for expected, *shares in zip(whole, *of_ranks, strict=True):
        together = [batch for share in shares for batch in share]
        assert_same_step(loss_and_gradients(module, together), loss_and_gradients(module, expected))
        if max_spots is not None:
            assert max(len(batch.size_factors) if kind == "dusted" else batch.n_core for batch in together) <= max_spots


@given(
    spots=tissues,
    batch_size=some.one_of(some.none(), some.integers(1, 30)),
    world=some.integers(1, 3),
    seed=some.integers(0, 100),
    skip=some.integers(0, 40),
)
def test_skip_leaves_out_exactly_the_first_steps(spots, batch_size, world, seed, skip):
    def cores(patch):
        return patch.spots[: patch.n_core].tolist()

    data = Patches(spots, n_hops=1, max_spots=4, share=(world - 1, world))
    every = steps_of(data, cores, batch_size, seed)
    assert steps_of(data, cores, batch_size, seed, skip) == every[skip:]
    # Whatever is skipped, the generator is then where it is after a whole pass.
    whole, skipped = draw(seed), draw(seed)
    list(data.steps(cores, batch_size, whole))
    list(data.steps(cores, batch_size, skipped, skip))
    assert torch.equal(whole.get_state(), skipped.get_state())


@given(spots=tissues, batch_size=some.one_of(some.none(), some.integers(1, 40)), seed=some.integers(0, 100))
def test_a_pass_scores_each_filled_spot_once(spots, batch_size, seed):
    data = Patches(spots, n_hops=2, max_spots=3)
    scored, n_scored = [], []
    for parts in steps_of(data, lambda patch: patch, batch_size, seed):
        in_step = [patch.spots[patch.scored] for patch in parts]
        assert {patch.n_scored for patch in parts} == {sum(map(len, in_step))}
        n_scored.append(sum(map(len, in_step)))
        scored += in_step
    assert sorted(torch.cat(scored).tolist()) == spots.nonempty.nonzero().squeeze(1).tolist()
    assert min(n_scored) >= 1
    assert max(n_scored) <= (batch_size or data.n_spots)


@given(
    seed=some.integers(0, 10_000),
    n_spots=some.integers(1, 30),
    n_libraries=some.integers(1, 3),
    batch_size=some.one_of(some.none(), some.integers(1, 40)),
)
def test_n_steps_is_the_number_of_steps(seed, n_spots, n_libraries, batch_size):
    data = Patches(tissue(seed, n_spots, share_empty=0.0, n_libraries=n_libraries), n_hops=1)
    assert data.n_steps(batch_size) == len(steps_of(data, lambda patch: 0, batch_size, seed))


@given(spots=tissues, batch_size=some.integers(1, 40))
def test_there_are_no_more_steps_than_n_steps(spots, batch_size):
    data = Patches(spots, n_hops=1)
    assert data.n_steps(batch_size) >= len(steps_of(data, lambda patch: 0, batch_size))


@given(
    spots=tissues,
    batch_size=some.one_of(some.none(), some.integers(1, 30)),
    n_passes=some.integers(1, 4),
    skip=some.integers(0, 60),
)
def test_several_passes_are_one_after_the_other(spots, batch_size, n_passes, skip):
    def cores(patch):
        return patch.spots[: patch.n_core].tolist()

    data, generator = Patches(spots, n_hops=1), draw()
    expected = [step for _ in range(n_passes) for step in data.steps(cores, batch_size, generator)]
    assert list(data.steps(cores, batch_size, draw(), skip, n_passes)) == expected[skip:]


@given(
    seed=some.integers(0, 1000),
    batch_size=some.one_of(some.none(), some.integers(1, 40)),
    least_steps=some.integers(1, 20),
)
def test_a_feed_has_as_many_steps_as_it_says(seed, batch_size, least_steps):
    data = Patches(tissue(seed, share_empty=0.0), n_hops=1)
    feed = Feed(data, lambda patch: 0, batch_size, draw(), least_steps=least_steps)
    n_steps = len(list(feed(0)))
    assert n_steps == feed.n_steps
    for skip in (1, n_steps // 2, n_steps, n_steps + 3):
        assert len(list(feed(skip))) == max(0, n_steps - skip)
    # Whole passes, and at least two thirds of what was asked for.
    assert n_steps % data.n_steps(batch_size) == 0
    assert n_steps >= least_steps * 2 / 3


def test_steps_are_drawn_from_the_generator():
    data = Patches(tissue(n_spots=60), n_hops=1)

    def cores(patch):
        return tuple(patch.spots[: patch.n_core].tolist())

    generator = draw(1)
    first, second = (list(data.steps(cores, 7, generator)) for _ in range(2))
    assert steps_of(data, cores, 7, seed=1) == first
    assert first != second
    assert sorted(map(str, first)) != sorted(map(str, second))


def test_one_step_is_not_beside_the_one_before():
    data, generator = Patches(tissue(n_spots=400, density=0), n_hops=0), draw()

    def center(patch):
        return data.spots.coordinates[patch.spots].mean(0)

    apart, pairs = [], []
    for _ in range(10):
        centers = torch.stack([center for (center,) in data.steps(center, 16, generator)])
        apart.append((centers[1:] - centers[:-1]).norm(dim=1).mean())
        pairs.append(torch.pdist(centers).mean())
    assert 0.9 < sum(apart) / sum(pairs) < 1.1


def test_libraries_that_fit_into_a_step_are_not_cut():
    spots = tissue(n_spots=60, n_libraries=5)
    most = int(spots.libraries.bincount().max())
    for parts in steps_of(Patches(spots, n_hops=1), lambda patch: patch.spots[: patch.n_core], most):
        (core,) = parts
        for library in spots.libraries[core].unique():
            assert (spots.libraries[core] == library).sum() == (spots.libraries == library).sum()


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
    spots = replace(spots, graph=SpatialGraph.from_scipy(sparse.csr_matrix(links)))

    def n_halo(patch):
        return len(patch.spots) - patch.n_core

    halos = [step[0] for step in steps_of(Patches(spots, n_hops=1), n_halo, 36)]
    at_random = replace(spots, coordinates=torch.rand(side**2, 2, generator=draw()))
    others = [step[0] for step in steps_of(Patches(at_random, n_hops=1), n_halo, 36)]
    assert len(halos) == len(others) == 4
    assert sum(halos) < 0.6 * sum(others)
    # And not the same ones in each pass.
    data, generator = Patches(spots, n_hops=1), draw(1)
    first, second = (
        sorted(step[0] for step in data.steps(lambda patch: patch.spots[: patch.n_core].tolist(), 36, generator))
        for _ in range(2)
    )
    assert first != second
    np.testing.assert_array_equal(
        np.sort(data._partition(36)[0]), np.sort(partition(order_by_graph(spots.graph), 36)[0])
    )


def test_without_coordinates_and_graph_spots_are_taken_as_they_come():
    spots = replace(tissue(n_spots=10, n_dims=0), graph=None)
    parts = [patch.spots.tolist() for patch in Patches(spots, max_spots=5).cover()]
    assert parts == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


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
    again = data.sample(size, share, most, draw(seed))
    assert [core.tolist() for core in again] == [core.tolist() for core in cores]


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_finds_the_one_filled_spot(seed):
    spots = tissue(n_spots=40, share_empty=1.0)
    (core,) = Patches(spots).sample(4, 0.1, 8, draw(seed))
    assert core.tolist() == spots.nonempty.nonzero().squeeze(1).tolist()


@given(spots=tissues, entries=some.integers(1, 400))
def test_blocks_of_rows_are_the_counts(spots, entries):
    data = Patches(spots)
    blocks = list(data.row_blocks(entries))
    assert torch.equal(torch.cat([block.to_dense() for block in blocks]), spots.counts.to_dense())
    held_out = HeldOut(spots.counts, spots.nonempty.nonzero().squeeze(1)[:3], 0.5, draw())
    thinned = torch.cat([block.to_dense() for block in data.without(held_out).row_blocks(entries)])
    taken = spots.counts.to_dense() - thinned
    chosen = spots.nonempty.nonzero().squeeze(1)[:3]
    assert torch.equal(taken[chosen], held_out.of(chosen).to_dense())
    assert taken.sum() == taken[chosen].sum()


@given(spots=tissues, batch_size=some.integers(1, 30))
def test_patches_without_held_out_molecules(spots, batch_size):
    data = Patches(spots, n_hops=1, max_spots=4)
    chosen = spots.nonempty.nonzero().squeeze(1)[::2]
    held_out = HeldOut(spots.counts, chosen, 0.5, draw())
    thinned = data.without(held_out)
    expected = spots.counts.to_dense().clone()
    expected[chosen] -= held_out.of(chosen).to_dense()
    depth = torch.where(torch.isin(torch.arange(data.n_spots), chosen), 0.5, 1.0) * spots.size_factors
    for patch in thinned.cover():
        assert torch.equal(patch.counts.to_dense(), expected[patch.spots])
        torch.testing.assert_close(patch.size_factors, depth[patch.spots])
    # The data set itself is as it was, and so are its patches.
    for ours, theirs in zip(thinned.cover(), data.cover(), strict=True):
        assert torch.equal(ours.spots, theirs.spots)
        assert torch.equal(theirs.counts.to_dense(), spots.counts.to_dense()[theirs.spots])
    assert torch.equal(
        torch.cat([patch.counts.to_dense() for patch in thinned.without(None).cover()]),
        torch.cat([patch.counts.to_dense() for patch in data.cover()]),
    )


# -- The feed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 30, 99])
def test_a_whole_batch_is_made_once(batch_size):
    made = []

    def make(patch):
        made.append(patch)
        return len(made)

    generator = draw()
    data = Patches(tissue(), n_hops=1)
    feed = Feed(data, make, batch_size, generator)
    before = generator.get_state()
    assert [list(feed(skip)) for skip in (0, 0, 1, 0)] == [[[1]], [[1]], [], [[1]]]
    # Of another data set it is another one.
    feed.data = data.without(None)
    assert [list(feed(0)) for _ in range(2)] == [[[2]], [[2]]]
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("arguments", [{"batch_size": 7}, {"max_spots": 9}, {"share": (0, 2)}])
def test_other_batches_are_made_as_they_are_needed(arguments):
    made = []
    batch_size = arguments.pop("batch_size", None)
    data = Patches(tissue(share_empty=0.0), n_hops=1, **arguments)
    feed = Feed(data, lambda patch: made.append(patch), batch_size, draw())
    steps = feed(0)
    next(steps)
    n_first = len(made)
    list(steps)
    list(feed(0))
    assert len(made) > n_first
    assert len(made) == 2 * sum(map(len, steps_of(data, lambda patch: patch, batch_size)))
    # Those that are left out are not made.
    made.clear()
    list(feed(10_000))
    assert made == []
