import errno
import logging
import math
import os
import signal

import pytest
import torch
from torch import nn

from stdenoise.train import checkpoint as module_under_test
from stdenoise.train.checkpoint import Checkpoint, load_tensors, save_tensors
from stdenoise.train.loop import train
from stdenoise.train.run import Run
from stdenoise.train.schedule import Anneal

# -- Files: what is no checkpoint is refused as a file that is no model is (`tests/methods/test_models.py`) --------------


def test_a_file_with_a_wrong_bit_is_refused_or_the_same(tmp_path):
    path = tmp_path / "some.ckpt"
    # Of types and precisions; all numbers are short.
    content = {"weights": [torch.arange(12.0).view(3, 4), torch.tensor(2.5).double()], "losses": (1.5, math.inf, None)}
    save_tensors(path, "checkpoint", content)
    assert repr(load_tensors(path, "checkpoint")) == repr(content)
    whole = path.read_bytes()
    refused, positions = 0, range(0, len(whole), 23)
    for position in positions:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            # Between the parts there is padding, and each has its name and size twice.
            assert repr(load_tensors(path, "checkpoint")) == repr(content)
        except ValueError:
            refused += 1
    assert refused > len(positions) / 4


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("at", "error"),
    [("fsync", FULL), ("replace", FULL), ("save", RuntimeError("pos 64")), ("fsync", KeyboardInterrupt())],
)
def test_a_write_that_fails_or_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, at, error):
    path = tmp_path / "some.ckpt"
    save_tensors(path, "checkpoint", {"old": 1})
    before = path.read_bytes()

    def fail(content, file=None):
        if at == "save":
            file.write(b"PK half a file")
        raise error

    monkeypatch.setattr({"fsync": os, "replace": type(path), "save": torch}[at], at, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError) as failure:
        save_tensors(path, "checkpoint", {"new": 1})
    if failure.type is not KeyboardInterrupt:
        assert "some.ckpt" in str(failure.value)
        assert (error.strerror if error is FULL else "pos 64") in str(failure.value)
        assert failure.value.errno == (errno.ENOSPC if error is FULL else None)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["some.ckpt"]


# -- Going on ----------------------------------------------------------------------------------------------------------


class Crash(Exception):
    pass


class Tiny(nn.Module):
    """A regression, with a running average that belongs to its weights."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        self.weight = nn.Parameter(torch.randn(4, generator=draw))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("average", torch.zeros(()))

    def loss(self, batch):
        x, y = batch
        error = (x @ self.weight + self.bias - y).square().mean()
        if torch.is_grad_enabled():
            self.average.lerp_(error.detach(), 0.1)
        return error


BEST = {"restore_best": True, "validate": True}
KERAS = {**BEST, "optimizer": "rmsprop", "clip_by": "value", "reduce_lr": 1, "early_stop": 2}
SETTINGS = {
    "plain": {"n_epochs": 3, "restore_best": False},
    "best step": {"n_epochs": 3, "restore_best": True, "lr": 0.5},
    "best": {"n_epochs": 4, **BEST, "lr": 0.3},
    "keras": {"n_epochs": 8, **KERAS, "lr": 0.5},
    "anneal": {"n_epochs": 8, **BEST, "anneal": True, "lr": 0.2},
    "steps back": {"n_epochs": 40, **BEST, "reduce_lr": 3, "bad": 9},
    "anneal and step back": {"n_epochs": 8, **BEST, "anneal": True, "bad": 12},
}
N_STEPS = 3


class Training:
    """A training of the module, from the start or from a checkpoint; `at_call` sees the number of each call of the loss."""

    def __init__(self, *, checkpoint=None, at_call=lambda number: None, at_validation=lambda number: None, **settings):
        settings = {"lr": 0.05, **settings}
        draw = torch.Generator().manual_seed(1)
        x = torch.randn(24, 4, generator=draw)
        y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + torch.randn(24, generator=draw)
        self.module = Tiny()
        self.generator = torch.Generator().manual_seed(2)
        self.n_calls = self.n_validations = self.n_begun = 0
        bad = settings.pop("bad", None)
        fallen = []

        def batches(skip):
            # Two parts in each of three steps; the last part of a training sees other data.
            order = torch.randperm(18, generator=self.generator).view(N_STEPS, 2, 3)
            scale = 1.5 if self.n_begun else 0.5
            return ([(x[rows], y[rows] * scale) for rows in step] for step in order[skip:])

        def loss_of(batch):
            self.n_calls += 1
            at_call(self.n_calls)
            loss = self.module.loss(batch)
            return loss * torch.nan if self.n_calls == bad and not fallen.append(1) else loss

        def validation_loss():
            self.n_validations += 1
            at_validation(self.n_validations)
            return self.module.loss((x[18:], y[18:]))

        def begin():
            self.n_begun += 1
            return {"weights": float(sum(x.double().sum() for x in self.module.parameters()))}

        if settings.pop("validate", False):
            settings["validation_loss"] = validation_loss
        if settings.pop("anneal", False):
            settings["anneal"] = Anneal(n_steps=N_STEPS, warmup=4, least=1, patience=1, share=1.0, begin=begin)
        self.outcome = train(
            self.module,
            loss_of,
            batches=batches,
            generator=self.generator,
            clip=5.0,
            weight_decay=1e-3,
            description="tiny",
            run=Run(checkpoint=checkpoint),
            **settings,
        )


def assert_same_training(ours, whole):
    for one, other in zip(ours.module.state_dict().values(), whole.module.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert ours.outcome == whole.outcome
    # Where there was something left to do, the generator went on as well.
    assert ours.n_calls == 0 or torch.equal(ours.generator.get_state(), whole.generator.get_state())


def crash_at(last):
    def crash(number):
        if number == last:
            raise Crash

    return crash


def interrupted(path, settings, **crash):
    """What a training that crashes and goes on comes to."""
    path.unlink(missing_ok=True)
    with pytest.raises(Crash):
        Training(checkpoint=Checkpoint(path, minutes=0), **crash, **settings)
    return Training(checkpoint=Checkpoint(path, minutes=1e9, resume=True), **settings)


@pytest.mark.parametrize("name", ["best step", "best", "keras", "anneal"])
def test_an_interrupted_training_goes_on_to_the_same_bits(name, tmp_path):
    settings, path = SETTINGS[name], tmp_path / "tiny.ckpt"
    whole = Training(**settings)
    n_calls = whole.n_calls
    assert n_calls == 2 * N_STEPS * len(whole.outcome.history["loss"])
    # Each place of an epoch, in one epoch or another.
    for last in (2, 3, *range(1, n_calls + 1, 5)):
        again = interrupted(path, settings, at_call=crash_at(last))
        # What was done of the step at hand is lost, and no more.
        assert again.n_calls == n_calls - (last - 1) // 2 * 2
        assert_same_training(again, whole)
    if whole.n_validations:
        again = interrupted(path, settings, at_validation=crash_at(whole.n_validations))
        assert_same_training(again, whole)
    # And it is not done again, once it is over.
    for minutes in (0, 1e9):
        over = Training(checkpoint=Checkpoint(path, minutes=minutes, resume=True), **settings)
        assert (over.n_calls, over.n_validations) == (0, 0)
        assert_same_training(over, whole)


@pytest.mark.parametrize("name", ["steps back", "anneal and step back"])
def test_a_training_that_went_back_goes_on_to_the_same_bits(name, tmp_path, caplog):
    settings, path = SETTINGS[name], tmp_path / "tiny.ckpt"
    whole = Training(**settings)
    assert "going on from the weights before" in caplog.text
    bad_step = (settings["bad"] + 1) // 2
    for last in (*range(2 * bad_step - 1, 2 * bad_step + 7, 2), 2 * bad_step + 25):
        path.unlink(missing_ok=True)
        with pytest.raises(Crash):
            Training(checkpoint=Checkpoint(path, minutes=0), at_call=crash_at(last), **settings)
        # Until a step is done after going back, the one that went wrong is still to come. Calls count from where it goes on.
        is_past = last > 2 * bad_step + 2
        left = {**settings, "bad": None if is_past else settings["bad"] - 2 * min((last - 1) // 2, bad_step - 1)}
        assert_same_training(Training(checkpoint=Checkpoint(path, minutes=1e9, resume=True), **left), whole)


def test_a_training_interrupted_at_every_step_goes_on_to_the_same_bits(tmp_path):
    settings, checkpoint = SETTINGS["anneal"], Checkpoint(tmp_path / "tiny.ckpt", minutes=0, resume=True)
    whole = Training(**settings)
    for _ in range(whole.n_calls // 2 - 1):
        with pytest.raises(Crash):
            Training(checkpoint=checkpoint, at_call=crash_at(3), **settings)
    assert_same_training(Training(checkpoint=checkpoint, at_call=crash_at(3), **settings), whole)


def test_without_resume_a_training_starts_anew_whatever_is_there(tmp_path):
    path, settings = tmp_path / "tiny.ckpt", SETTINGS["plain"]
    n_calls = 2 * N_STEPS * settings["n_epochs"]
    # With it, where there is nothing to go on from.
    assert Training(checkpoint=Checkpoint(path, minutes=0, resume=True), **settings).n_calls == n_calls
    assert Training(checkpoint=Checkpoint(path, minutes=0), **settings).n_calls == n_calls
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="tiny.ckpt' is damaged or no checkpoint"):
        Training(checkpoint=Checkpoint(path, resume=True), **settings)
    Training(checkpoint=Checkpoint(path, minutes=0), **settings)
    assert load_tensors(path, "checkpoint")


def test_it_is_saved_once_in_a_while_and_at_the_end(tmp_path, monkeypatch):
    path, now, saved = tmp_path / "tiny.ckpt", [0.0], []
    monkeypatch.setattr(module_under_test.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module_under_test, "save_tensors", lambda path, kind, content: saved.append(now[0]))

    def pass_time(number):
        # A minute for each step.
        now[0] += 30

    Training(checkpoint=Checkpoint(path, minutes=4, _saved_at=0.0), at_call=pass_time, **SETTINGS["plain"])
    assert saved == [240.0, 480.0, 540.0]


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path):
    path = tmp_path / "tiny.ckpt"
    identity = {"method": "dusted", "seed": 1, "shape": (3, 4), "params": {"lr": 0.1, "patience": None}}
    Training(checkpoint=Checkpoint(path, minutes=0, identity=identity), **SETTINGS["plain"])
    # A copy equals it.
    same = Checkpoint(path, resume=True, identity={**identity, "params": dict(identity["params"])})
    assert same.load()["identity"] == identity
    for changed, message in (
        ({"shape": (3, 5)}, r"shape \(3, 4\), now \(3, 5\)"),
        ({"params": {"lr": 0.2}}, "params .*now {'lr': 0.2}"),
        ({"layer": "X"}, "layer None, now 'X'"),
        ({"seed": 2, "method": "dca"}, "method 'dusted', now 'dca', seed 1, now 2"),
    ):
        checkpoint = Checkpoint(path, resume=True, identity={**identity, **changed})
        with pytest.raises(ValueError, match=f"tiny.ckpt' is the checkpoint of another run: {message}"):
            Training(checkpoint=checkpoint, **SETTINGS["plain"])


# -- Interruptions -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of signals are the same at the end of a test as at its beginning."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


def at(moments):
    """What happens at which call."""

    def act(number):
        for action in moments.get(number, ()):
            action()

    return act


def tell(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "last"), [(signal.SIGINT, 1), (signal.SIGTERM, 6), (signal.SIGINT, 11)])
def test_a_training_that_is_stopped_saves_and_says_how_to_go_on(tmp_path, caplog, number, last):
    settings = SETTINGS["best"]
    # Not for hours, but now.
    checkpoint = Checkpoint(tmp_path / "tiny.ckpt", minutes=1e9, resume=True)
    with pytest.raises(
        KeyboardInterrupt, match=rf"stopped by {number.name}; '.*tiny.ckpt' is saved: .* resume to go on"
    ):
        Training(checkpoint=checkpoint, at_call=at({last: [lambda: tell(number)]}), **settings)
    whole = Training(**settings)
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        again = Training(checkpoint=checkpoint, **settings)
    # The step at hand was finished.
    n_steps = (last + 1) // 2
    assert again.n_calls == whole.n_calls - 2 * n_steps
    assert f"going on at epoch {(n_steps - 1) // N_STEPS + 1}, step {(n_steps - 1) % N_STEPS + 2}" in caplog.text
    assert_same_training(again, whole)


def test_a_signal_during_the_validation_stops_after_the_next_step_if_there_is_one(tmp_path):
    settings = SETTINGS["best"]
    checkpoint = Checkpoint(tmp_path / "tiny.ckpt", minutes=1e9, resume=True)
    whole = Training(**settings)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        Training(checkpoint=checkpoint, at_validation=at({2: [tell]}), **settings)
    # After the last step, it is not lost.
    with pytest.raises(KeyboardInterrupt):
        Training(checkpoint=checkpoint, at_validation=at({2: [tell]}), **settings)
    assert_same_training(Training(checkpoint=checkpoint, **settings), whole)


@pytest.mark.parametrize("n_signals", [1, 2])
def test_a_second_signal_acts_at_once_and_without_a_checkpoint_the_first(tmp_path, n_signals):
    path, calls = tmp_path / "tiny.ckpt", []
    checkpoint = Checkpoint(path, minutes=1e9) if n_signals == 2 else None
    stop = at({2: [lambda: calls.append("reached")], 3: [tell] * n_signals + [lambda: calls.append("not reached")]})
    with pytest.raises(KeyboardInterrupt) as stopped:
        Training(checkpoint=checkpoint, at_call=stop, **SETTINGS["plain"])
    assert calls == ["reached"]
    assert not stopped.value.args
    assert not path.exists()


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while the list is not empty."""
    full, fsync = [], os.fsync

    def write(number):
        if full:
            raise FULL
        fsync(number)

    monkeypatch.setattr(os, "fsync", write)
    return full


def test_a_full_disk_does_not_end_a_training(tmp_path, disk, caplog):
    path, settings = tmp_path / "tiny.ckpt", SETTINGS["best"]
    whole = Training(**settings)
    fill = at({7: [lambda: disk.append("full")]})
    assert_same_training(Training(checkpoint=Checkpoint(path, minutes=0), at_call=fill, **settings), whole)
    (message,) = {record.message for record in caplog.records}
    assert "tiny.ckpt': No space left on device; the training goes on" in message
    # What was saved before stays, and nothing of what was not.
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.ckpt"]
    again = Training(checkpoint=Checkpoint(path, minutes=1e9, resume=True), **settings)
    assert again.n_calls == whole.n_calls - 6
    assert_same_training(again, whole)


def test_a_training_that_is_stopped_says_whether_it_is_saved(tmp_path, disk):
    settings, checkpoint = SETTINGS["best"], Checkpoint(tmp_path / "tiny.ckpt", minutes=0, resume=True)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT; .*No space left on device") as stopped:
        Training(checkpoint=checkpoint, at_call=at({7: [lambda: disk.append("full"), tell]}), **settings)
    assert "is saved" not in str(stopped.value)
    # From the seventh call on, a disk that has space again is used again.
    with pytest.raises(KeyboardInterrupt, match="is saved"):
        Training(checkpoint=checkpoint, at_call=at({3: [disk.clear], 11: [tell]}), **settings)
    whole, again = Training(**settings), Training(checkpoint=checkpoint, **settings)
    assert again.n_calls == whole.n_calls - 18
    assert_same_training(again, whole)
