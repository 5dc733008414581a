import errno
import logging
import math
import os
import pickle
import signal
import threading

import pytest
import torch
from torch import nn

from stdenoise.train import checkpoint as module_under_test
from stdenoise.train.checkpoint import Checkpoint, load_tensors, save_tensors
from stdenoise.train.loop import train
from stdenoise.train.run import Run
from stdenoise.train.schedule import Anneal

CONTENT = {
    "weights": [torch.arange(12.0).reshape(3, 4), torch.tensor([3, 1], dtype=torch.int32), torch.tensor(2.5).double()],
    "state": {"epoch": 3, "losses": [1.5, math.inf], "annealing": None, "stepped_back": False},
    "genes": ("a", "b"),
    "empty": torch.zeros(0, 5),
}


# -- Files -------------------------------------------------------------------------------------------------------------


def assert_same(ours, expected):
    assert type(ours) is type(expected)
    if isinstance(expected, dict):
        assert list(ours) == list(expected)
        for name in expected:
            assert_same(ours[name], expected[name])
    elif isinstance(expected, list | tuple):
        for one, other in zip(ours, expected, strict=True):
            assert_same(one, other)
    elif torch.is_tensor(expected):
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)
    else:
        assert ours == expected


def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "some.ckpt"
    save_tensors(path, "checkpoint", CONTENT)
    assert_same(load_tensors(path, "checkpoint"), CONTENT)
    save_tensors(path, "checkpoint", {"other": 1})
    assert load_tensors(path, "checkpoint") == {"other": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["some.ckpt"]


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "some.ckpt"
    save_tensors(path, "checkpoint", CONTENT)
    whole = path.read_bytes()
    for length in [*range(8), *range(8, len(whole), 29), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"some.ckpt' is damaged or no checkpoint of stdenoise: \S"):
            load_tensors(path, "checkpoint")


def test_a_file_with_a_wrong_bit_is_refused_or_the_same(tmp_path):
    path = tmp_path / "some.ckpt"
    save_tensors(path, "checkpoint", CONTENT)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            content = load_tensors(path, "checkpoint")
        except ValueError:
            refused += 1
        else:
            # Between the parts there is padding, and each has its name and size twice.
            assert_same(content, CONTENT)
    assert refused > len(whole) / 7 / 4


def test_a_wrong_number_in_a_weight_is_refused(tmp_path):
    path = tmp_path / "some.ckpt"
    save_tensors(path, "checkpoint", CONTENT)
    whole = path.read_bytes()
    at = whole.index(CONTENT["weights"][0].numpy().tobytes())
    path.write_bytes(whole[: at + 7] + b"\x01" + whole[at + 8 :])
    with pytest.raises(ValueError, match="is damaged .*: the checksum of .* is not right"):
        load_tensors(path, "checkpoint")


class Bomb:
    """Makes a file when it is read as a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "write", [lambda x, path: torch.save(x, path), lambda x, path: path.write_bytes(pickle.dumps(x))]
)
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"stdenoise": "model", "format": 1, "content": bomb}])
def test_code_in_a_file_is_not_executed(tmp_path, write, wrap):
    path, trace = tmp_path / "foreign.pt", tmp_path / "trace"
    write(wrap(Bomb(trace)), path)
    with pytest.raises(ValueError, match=r"foreign.pt' is damaged or no model of stdenoise: \S"):
        load_tensors(path, "model")
    assert not trace.exists()
    # It is one that works.
    torch.load(path, weights_only=False) if path.read_bytes()[:2] == b"PK" else pickle.loads(path.read_bytes())
    assert trace.exists()


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "some.pt"
    save_tensors(path, "model", CONTENT)
    with pytest.raises(ValueError, match=r"some.pt' is no checkpoint of stdenoise, but 'model'"):
        load_tensors(path, "checkpoint")
    for foreign, found in (({"weight": torch.ones(2)}, "None"), ([1, 2], "'list'"), (torch.ones(2), "'Tensor'")):
        torch.save(foreign, path)
        with pytest.raises(ValueError, match=f"some.pt' is no model of stdenoise, but {found}"):
            load_tensors(path, "model")
    path.write_bytes(b"obs,var\n1,2\n")
    with pytest.raises(ValueError, match="some.pt' is damaged or no model of stdenoise: File is not a zip file"):
        load_tensors(path, "model")


@pytest.mark.parametrize("version", [2, None])
def test_other_versions_of_the_format_are_refused(tmp_path, version):
    path = tmp_path / "some.pt"
    torch.save({"stdenoise": "model", **({"format": version} if version else {}), "content": {}}, path)
    with pytest.raises(ValueError, match=rf"has format {version}; this version of stdenoise reads format 1\."):
        load_tensors(path, "model")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no model '.*nowhere\.pt'"):
        load_tensors(tmp_path / "nowhere.pt", "model")
    with pytest.raises(FileNotFoundError, match="there is no model"):
        load_tensors(tmp_path, "model")
    with pytest.raises(OSError, match="cannot write the model .*nowhere"):
        save_tensors(tmp_path / "nowhere" / "some.pt", "model", CONTENT)


@pytest.mark.parametrize("at", ["fsync", "save", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, at):
    path = tmp_path / "some.ckpt"
    save_tensors(path, "checkpoint", {"old": 1})
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(content, file):
        file.write(b"PK half a file")
        raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 14")

    if at == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif at == "replace":
        monkeypatch.setattr(type(path), "replace", full)
    else:
        monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="cannot write the checkpoint '.*some.ckpt': ") as failure:
        save_tensors(path, "checkpoint", CONTENT)
    if at != "save":
        assert failure.value.errno == errno.ENOSPC
        assert "No space left" in str(failure.value)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["some.ckpt"]


def test_a_write_that_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "some.ckpt"
    save_tensors(path, "checkpoint", {"old": 1})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, "checkpoint", CONTENT)
    assert load_tensors(path, "checkpoint") == {"old": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["some.ckpt"]


def test_the_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    path, order = tmp_path / "some.ckpt", []
    fsync, replace = os.fsync, type(path).replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("fsync"), fsync(number)))
    monkeypatch.setattr(type(path), "replace", lambda *ends: (order.append("replace"), replace(*ends)))
    save_tensors(path, "checkpoint", CONTENT)
    assert order == ["fsync", "replace"]


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


SETTINGS = {
    "plain": {"n_epochs": 3, "restore_best": False},
    "best": {"n_epochs": 4, "restore_best": True, "validate": True, "lr": 0.3},
    "best step": {"n_epochs": 3, "restore_best": True, "lr": 0.5},
    "keras": {
        "n_epochs": 8,
        "restore_best": True,
        "validate": True,
        "optimizer": "rmsprop",
        "clip_by": "value",
        "reduce_lr": 1,
        "early_stop": 2,
        "lr": 0.5,
    },
    "anneal": {"n_epochs": 8, "restore_best": True, "validate": True, "anneal": True, "lr": 0.2},
    "rmsprop": {"n_epochs": 3, "restore_best": False, "optimizer": "rmsprop"},
    "steps back": {"n_epochs": 44, "restore_best": True, "validate": True, "reduce_lr": 3, "bad": 9},
    "anneal and step back": {"n_epochs": 8, "restore_best": True, "validate": True, "anneal": True, "bad": 12},
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
    assert_same_result(ours, whole)
    assert torch.equal(ours.generator.get_state(), whole.generator.get_state())


def assert_same_result(ours, whole):
    for one, other in zip(ours.module.state_dict().values(), whole.module.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert ours.outcome == whole.outcome


@pytest.mark.parametrize("name", [name for name, settings in SETTINGS.items() if "bad" not in settings])
def test_an_interrupted_training_goes_on_to_the_same_bits(name, tmp_path):
    settings, path = SETTINGS[name], tmp_path / "tiny.ckpt"
    whole = Training(**settings)
    n_calls = whole.n_calls
    assert n_calls == 2 * N_STEPS * len(whole.outcome.history["loss"])
    for last in range(1, n_calls + 1):
        path.unlink(missing_ok=True)

        def crash(number, last=last):
            if number == last:
                raise Crash

        with pytest.raises(Crash):
            Training(checkpoint=Checkpoint(path, minutes=0), at_call=crash, **settings)
        # What was done of the step at hand is lost, and no more.
        assert path.exists() is (last > 2)
        again = Training(checkpoint=Checkpoint(path, minutes=0, resume=True), **settings)
        assert again.n_calls == n_calls - (last - 1) // 2 * 2
        assert_same_training(again, whole)


@pytest.mark.parametrize("name", ["best", "keras", "anneal"])
def test_a_training_that_was_interrupted_in_its_validation_goes_on_to_the_same_bits(name, tmp_path):
    settings, path = SETTINGS[name], tmp_path / "tiny.ckpt"
    whole = Training(**settings)
    for last in range(1, whole.n_validations + 1):

        def crash(number, last=last):
            if number == last:
                raise Crash

        with pytest.raises(Crash):
            Training(checkpoint=Checkpoint(path, minutes=0), at_validation=crash, **settings)
        assert_same_training(Training(checkpoint=Checkpoint(path, minutes=0, resume=True), **settings), whole)


@pytest.mark.parametrize("name", ["steps back", "anneal and step back"])
def test_a_training_that_went_back_goes_on_to_the_same_bits(name, tmp_path, caplog):
    settings, path = SETTINGS[name], tmp_path / "tiny.ckpt"
    whole = Training(**settings)
    assert "going on from the weights before" in caplog.text
    bad_step = (settings["bad"] + 1) // 2
    for last in (3, *range(2 * bad_step - 1, 2 * bad_step + 7), whole.n_calls // 2, whole.n_calls):
        path.unlink(missing_ok=True)

        def crash(number, last=last):
            if number == last:
                raise Crash

        with pytest.raises(Crash):
            Training(checkpoint=Checkpoint(path, minutes=0), at_call=crash, **settings)
        # Until a step is done after going back, the one that went wrong is still to come. Calls count from where it goes on.
        is_past = last > 2 * bad_step + 2
        left = {**settings, "bad": None if is_past else settings["bad"] - 2 * min((last - 1) // 2, bad_step - 1)}
        assert_same_training(Training(checkpoint=Checkpoint(path, minutes=0, resume=True), **left), whole)


def test_a_training_interrupted_at_every_step_goes_on_to_the_same_bits(tmp_path):
    settings, path = SETTINGS["anneal"], tmp_path / "tiny.ckpt"
    whole = Training(**settings)

    def crash(number):
        if number == 3:
            raise Crash

    n_crashes = 0
    while True:
        try:
            ours = Training(checkpoint=Checkpoint(path, minutes=0, resume=True), at_call=crash, **settings)
            break
        except Crash:
            n_crashes += 1
    assert n_crashes == whole.n_calls // 2 - 1
    assert_same_training(ours, whole)


def test_saving_does_not_change_a_training(tmp_path):
    path = tmp_path / "tiny.ckpt"
    for settings in SETTINGS.values():
        saved = Training(checkpoint=Checkpoint(path, minutes=0), **settings)
        assert_same_training(saved, Training(**settings))


@pytest.mark.parametrize("minutes", [0, 1e9])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_finished_training_is_not_done_again(tmp_path, name, minutes):
    path = tmp_path / "tiny.ckpt"
    whole = Training(checkpoint=Checkpoint(path, minutes=minutes), **SETTINGS[name])
    for _ in range(2):
        again = Training(checkpoint=Checkpoint(path, minutes=minutes, resume=True), **SETTINGS[name])
        assert (again.n_calls, again.n_validations) == (0, 0)
        assert_same_result(again, whole)


def test_without_resume_a_training_starts_anew(tmp_path):
    path = tmp_path / "tiny.ckpt"
    whole = Training(checkpoint=Checkpoint(path, minutes=0), **SETTINGS["plain"])
    again = Training(checkpoint=Checkpoint(path, minutes=0), **SETTINGS["plain"])
    assert again.n_calls == whole.n_calls
    # And with it, where there is nothing to go on from.
    fresh = Training(checkpoint=Checkpoint(tmp_path / "none.ckpt", minutes=0, resume=True), **SETTINGS["plain"])
    assert fresh.n_calls == whole.n_calls


def test_it_says_where_it_goes_on(tmp_path, caplog):
    path = tmp_path / "tiny.ckpt"

    def crash(number):
        if number == 2 * N_STEPS * 2 + 3:
            raise Crash

    with pytest.raises(Crash):
        Training(checkpoint=Checkpoint(path, minutes=0), at_call=crash, **SETTINGS["plain"])
    with caplog.at_level(logging.INFO, logger="stdenoise"):
        Training(checkpoint=Checkpoint(path, resume=True), **SETTINGS["plain"])
    assert "going on at epoch 3, step 2" in caplog.text


def test_it_is_saved_once_in_a_while(tmp_path, monkeypatch):
    path, now, saved = tmp_path / "tiny.ckpt", [0.0], []
    monkeypatch.setattr(module_under_test.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module_under_test, "save_tensors", lambda path, kind, content: saved.append(now[0]))

    def pass_time(number):
        # A minute for each step.
        now[0] += 30

    Training(checkpoint=Checkpoint(path, minutes=4, _saved_at=0.0), at_call=pass_time, **SETTINGS["plain"])
    # And at the end.
    assert saved == [240.0, 480.0, 540.0]


# -- Of another run ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path):
    path = tmp_path / "tiny.ckpt"
    identity = {"method": "dusted", "seed": 1, "shape": (3, 4), "params": {"lr": 0.1, "patience": None}}
    Training(checkpoint=Checkpoint(path, minutes=0, identity=identity), **SETTINGS["plain"])
    # A copy equals it.
    same = Checkpoint(path, resume=True, identity={**identity, "params": dict(identity["params"])})
    assert same.load()["identity"] == identity
    for name, other, message in (
        ("seed", 2, "seed 1, now 2"),
        ("method", "dca", "method 'dusted', now 'dca'"),
        ("shape", (3, 5), r"shape \(3, 4\), now \(3, 5\)"),
        ("params", {"lr": 0.2}, "params .*now {'lr': 0.2}"),
        ("layer", "X", "layer None, now 'X'"),
    ):
        checkpoint = Checkpoint(path, resume=True, identity={**identity, name: other})
        with pytest.raises(ValueError, match=f"tiny.ckpt' is the checkpoint of another run: {message}"):
            Training(checkpoint=checkpoint, **SETTINGS["plain"])
    two = Checkpoint(path, resume=True, identity={**identity, "seed": 2, "method": "dca"})
    with pytest.raises(ValueError, match="method 'dusted', now 'dca', seed 1, now 2"):
        two.load()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "tiny.ckpt"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="tiny.ckpt' is damaged or no checkpoint"):
        Training(checkpoint=Checkpoint(path, resume=True), **SETTINGS["plain"])
    # It is replaced where it is not to be gone on from.
    Training(checkpoint=Checkpoint(path, minutes=0), **SETTINGS["plain"])
    assert load_tensors(path, "checkpoint")


# -- Interruptions -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of signals are the same at the end of a test as at its beginning."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 2, 5, 6, 11])
def test_a_training_that_is_stopped_saves_and_says_how_to_go_on(tmp_path, number, at):
    path, settings = tmp_path / "tiny.ckpt", SETTINGS["best"]

    def stop(call):
        if call == at:
            send(number)

    # Not for hours, but now.
    with pytest.raises(
        KeyboardInterrupt, match=rf"stopped by {number.name}; '.*tiny.ckpt' is saved: .* resume to go on"
    ):
        Training(checkpoint=Checkpoint(path, minutes=1e9), at_call=stop, **settings)
    whole = Training(**settings)
    again = Training(checkpoint=Checkpoint(path, minutes=1e9, resume=True), **settings)
    # The step at hand was finished.
    assert again.n_calls == whole.n_calls - (at + 1) // 2 * 2
    assert_same_training(again, whole)


def test_a_signal_during_the_validation_stops_after_the_next_step(tmp_path):
    path, settings = tmp_path / "tiny.ckpt", SETTINGS["best"]

    def stop(number):
        if number == 2:
            send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        Training(checkpoint=Checkpoint(path, minutes=1e9), at_validation=stop, **settings)
    whole = Training(**settings)
    again = Training(checkpoint=Checkpoint(path, resume=True), **settings)
    assert again.n_calls == whole.n_calls - 2 * (2 * N_STEPS + 1)
    assert_same_training(again, whole)


def test_a_signal_after_the_last_step_is_not_lost(tmp_path):
    def stop(number):
        if number == SETTINGS["best"]["n_epochs"]:
            send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Training(checkpoint=Checkpoint(tmp_path / "tiny.ckpt", minutes=1e9), at_validation=stop, **SETTINGS["best"])


def test_a_second_signal_acts_at_once(tmp_path):
    path, calls = tmp_path / "tiny.ckpt", []

    def stop(number):
        calls.append(number)
        if number == 3:
            send(signal.SIGINT)
            send(signal.SIGINT)
            calls.append("not reached")

    with pytest.raises(KeyboardInterrupt) as stopped:
        Training(checkpoint=Checkpoint(path, minutes=1e9), at_call=stop, **SETTINGS["plain"])
    assert calls == [1, 2, 3]
    assert not stopped.value.args
    assert not path.exists()


def test_without_a_checkpoint_an_interruption_acts_at_once():
    calls = []

    def stop(number):
        calls.append(number)
        if number == 3:
            send(signal.SIGINT)
            calls.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        Training(at_call=stop, **SETTINGS["plain"])
    assert calls == [1, 2, 3]


def test_a_checkpoint_can_be_used_again_after_a_signal(tmp_path):
    checkpoint = Checkpoint(tmp_path / "tiny.ckpt", minutes=1e9, resume=True)

    def stop(number):
        if number == 3:
            send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Training(checkpoint=checkpoint, at_call=stop, **SETTINGS["plain"])
    assert not checkpoint.is_stopped
    assert_same_training(Training(checkpoint=checkpoint, **SETTINGS["plain"]), Training(**SETTINGS["plain"]))


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while the list is not empty."""
    full, fsync = [], os.fsync

    def write(number):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", write)
    return full


def test_a_full_disk_does_not_end_a_training(tmp_path, disk, caplog):
    path, settings = tmp_path / "tiny.ckpt", SETTINGS["best"]
    whole = Training(**settings)

    def fill(number):
        if number == 7:
            disk.append("full")

    full = Training(checkpoint=Checkpoint(path, minutes=0), at_call=fill, **settings)
    assert_same_training(full, whole)
    messages = {record.message for record in caplog.records}
    assert len(messages) == 1
    assert "tiny.ckpt': No space left on device; the training goes on" in messages.pop()
    # What was saved before stays, and nothing of what was not.
    assert [each.name for each in tmp_path.iterdir()] == ["tiny.ckpt"]
    again = Training(checkpoint=Checkpoint(path, minutes=1e9, resume=True), **settings)
    assert again.n_calls == whole.n_calls - 6
    assert_same_training(again, whole)


def test_a_training_that_is_stopped_while_the_disk_is_full_does_not_say_that_it_is_saved(tmp_path, disk):
    path, settings = tmp_path / "tiny.ckpt", SETTINGS["best"]

    def stop(number):
        if number == 7:
            disk.append("full")
            send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT; .*No space left on device") as stopped:
        Training(checkpoint=Checkpoint(path, minutes=0), at_call=stop, **settings)
    assert "is saved" not in str(stopped.value)
    disk.clear()
    again = Training(checkpoint=Checkpoint(path, minutes=0, resume=True), **settings)
    assert_same_training(again, Training(**settings))


def test_a_disk_that_has_space_again_is_used_again(tmp_path, disk):
    path, settings = tmp_path / "tiny.ckpt", SETTINGS["best"]

    def change(number):
        if number == 7:
            disk.append("full")
        if number == 13:
            disk.clear()
        if number == 17:
            send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="is saved"):
        Training(checkpoint=Checkpoint(path, minutes=0), at_call=change, **settings)
    again = Training(checkpoint=Checkpoint(path, minutes=0, resume=True), **settings)
    assert again.n_calls == Training(**settings).n_calls - 18


def test_threads_leave_signals_alone(tmp_path):
    done = []

    def work():
        done.append(Training(checkpoint=Checkpoint(tmp_path / "tiny.ckpt", minutes=0), **SETTINGS["plain"]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert_same_training(done[0], Training(**SETTINGS["plain"]))
