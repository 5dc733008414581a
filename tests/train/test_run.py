import signal
import threading

import pytest
import torch
from torch import nn

from stdenoise.train.checkpoint import Checkpoint
from stdenoise.train.loop import train
from stdenoise.train.run import Run
from stdenoise.train.schedule import Anneal


class Threads:
    """What Lightning Fabric does, between threads: sums in the order of the ranks."""

    def __init__(self, world_size):
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.given = {}

    def of(self, rank):
        return _Rank(self, rank)

    def run(self, work):
        """Call `work` with each rank's fabric, each in a thread, and return what it returns."""
        results, errors = {}, []

        def call(rank):
            try:
                results[rank] = work(self.of(rank))
            except BaseException as error:  # noqa: BLE001 - shown by the test
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        assert not errors
        return [results[rank] for rank in range(self.world_size)]


class _Rank:
    def __init__(self, world, rank):
        self.world, self.global_rank, self.world_size = world, rank, world.world_size

    def all_reduce(self, tensor, reduce_op):
        assert reduce_op == "sum"
        self.world.given[self.global_rank] = tensor.clone()
        self.world.barrier.wait()
        total = sum(self.world.given[rank] for rank in range(self.world_size))
        self.world.barrier.wait()
        return total


def test_tensors_are_replaced_by_their_sums_over_all_processes():
    def work(fabric):
        run = Run(fabric=fabric)
        assert run.share == (fabric.global_rank, 3)
        assert run.is_first is (fabric.global_rank == 0)
        tensors = [torch.full((2, 3), 1.0 + fabric.global_rank), torch.tensor(10.0), torch.zeros(0), torch.arange(4.0)]
        kept = list(tensors)
        run.add_up(tensors)
        # In place: a gradient stays that of its parameter.
        assert all(one is other for one, other in zip(tensors, kept, strict=True))
        return [tensor.tolist() for tensor in tensors]

    for result in Threads(3).run(work):
        assert result == [[[6.0] * 3] * 2, 30.0, [], [0.0, 3.0, 6.0, 9.0]]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(4, generator=draw, dtype=torch.float64))
        # Of each step, only one part has a gradient for it.
        self.other = nn.Parameter(torch.ones((), dtype=torch.float64))

    def loss(self, x):
        loss = (x @ self.weight - x.sum(1)).square().sum()
        return loss + self.other**2 if len(x) == 1 else loss


def training(fabric=None, folder=None, bad=None, anneal=False):
    """A training in which this process takes its parts of each step, at times none; and its results."""
    checkpoint = None if folder is None else Checkpoint(folder / f"{fabric.global_rank}.ckpt", minutes=0)
    run, module, generator = Run(fabric=fabric, checkpoint=checkpoint), Net(), torch.Generator().manual_seed(5)
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    n_steps, rank, world = [0], *run.share

    def batches(skip):
        order = torch.randperm(12, generator=generator)
        for rows in (order[:1], order[1:6], order[6:9])[skip:]:
            n_steps[0] += 1
            # A loss that is not finite in one process only.
            factor = torch.nan if n_steps[0] == bad else 1.0
            parts = [data[part] for part in rows.split(2)]
            yield [part * (factor if i == 0 else 1.0) for i, part in enumerate(parts) if i % world == rank]

    def validation():
        parts = data.split(3)[rank::world]
        return sum((module.loss(part) for part in parts), torch.zeros((), dtype=torch.float64))

    outcome = train(
        module,
        module.loss,
        lr=0.05,
        clip=1.0,
        n_epochs=6,
        restore_best=True,
        description="test",
        run=run,
        batches=batches,
        generator=generator,
        validation_loss=validation,
        anneal=Anneal(n_steps=3, warmup=2, least=1, patience=1, share=1.0, begin=dict) if anneal else None,
    )
    return module, outcome.history


@pytest.mark.parametrize(
    ("world_size", "settings"), [(2, {}), (3, {"bad": 8}), (3, {"anneal": True})], ids=["plain", "step back", "anneal"]
)
def test_several_processes_train_as_one_does_and_the_first_writes(world_size, settings, tmp_path):
    alone, expected = training(**settings)
    (first, _), *_ = trained = Threads(world_size).run(lambda fabric: training(fabric, tmp_path, **settings))
    for module, history in trained:
        assert set(history) == set(expected)
        for name, values in expected.items():
            assert history[name] == pytest.approx(values, rel=1e-9)
        for ours, theirs, same in zip(module.parameters(), alone.parameters(), first.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
            # All of them to the same bits.
            assert torch.equal(ours, same)
    assert [path.name for path in tmp_path.iterdir()] == ["0.ckpt"]


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    def work(fabric):
        module, n_steps = Net(), [0]
        checkpoint = Checkpoint(tmp_path / f"{fabric.global_rank}.ckpt", minutes=1e9)

        def loss(x):
            n_steps[0] += 1
            if n_steps[0] == 3 and fabric.global_rank == 1:
                # As its handler does.
                checkpoint._signal = signal.SIGTERM
            return module.loss(x)

        with pytest.raises(KeyboardInterrupt, match="is saved"):
            train(
                module,
                loss,
                lr=0.1,
                clip=1.0,
                n_epochs=9,
                restore_best=False,
                description="test",
                run=Run(fabric=fabric, checkpoint=checkpoint),
                batches=lambda skip: [[torch.ones(1, 4, dtype=torch.float64)]][skip:],
            )
        return n_steps[0]

    assert Threads(2).run(work) == [3, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["0.ckpt"]
