import logging
import math
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from stdenoise.train import loop
from stdenoise.train.loop import train
from stdenoise.train.run import Run
from stdenoise.train.schedule import Anneal


class Point(nn.Module):
    """Counts the steps in a buffer, as running averages do."""

    def __init__(self, *value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.register_buffer("n_steps", torch.zeros(1))

    def loss(self, *_):
        self.n_steps += 1
        return (self.value**2).sum()

    def state(self):
        return [x.clone() for x in self.state_dict().values()]


def run(point, loss, n_epochs, lr=0.1, *, restore_best=False, **arguments):
    fixed = {"weight_decay": 0.0, "clip": 5.0, "run": Run(), "description": "test"}
    return train(point, loss, lr=lr, n_epochs=n_epochs, restore_best=restore_best, **{**fixed, **arguments}).history


OPTIMIZERS = {
    "adam": lambda x: torch.optim.Adam(x, lr=0.1, weight_decay=0.1, foreach=False, fused=False),
    "rmsprop": lambda x: torch.optim.RMSprop(x, lr=0.1, alpha=0.9, eps=1e-7, weight_decay=0.1),
}


@pytest.mark.parametrize(("optimizer", "clip_by"), [("adam", "norm"), ("rmsprop", "value")])
def test_steps_are_those_of_torch_and_their_parts_add_up(optimizer, clip_by):
    ours, theirs = Point(3.0, -2.0), Point(3.0, -2.0)
    targets = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    epochs = [[targets[:1], targets[1:3]], [targets[:1], targets[1:3], targets[3:]]]
    left = iter(epochs)
    history = run(
        ours,
        lambda target: ((ours.value - target) ** 4).sum(),
        2,
        batches=lambda skip: next(left)[skip:],
        optimizer=optimizer,
        clip_by=clip_by,
        clip=2.0,
        weight_decay=0.1,
    )
    stepper, losses, norms = OPTIMIZERS[optimizer](theirs.parameters()), [], []
    for steps in epochs:
        for parts in steps:
            stepper.zero_grad()
            loss = ((theirs.value - parts) ** 4).sum()
            loss.backward()
            losses.append(loss.item())
            norms.append(theirs.value.grad.norm().item())
            theirs.value.grad = (
                theirs.value.grad * min(1.0, 2 / norms[-1]) if clip_by == "norm" else theirs.value.grad.clamp(-2, 2)
            )
            stepper.step()
    torch.testing.assert_close(ours.value, theirs.value)
    means = {"loss": losses, **({"gradient_norm": norms} if clip_by == "norm" else {})}
    assert history == {name: pytest.approx([fmean(x[:2]), fmean(x[2:])]) for name, x in means.items()}


def test_progress_goes_to_standard_error_only(capsys):
    point = Point(1.0)
    run(point, point.loss, 3, run=Run(progress=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err
    run(point, point.loss, 3)
    assert capsys.readouterr().err == ""


def scripted(values, module, seen=None):
    """A validation loss that follows a script."""
    left = iter(values)

    def loss():
        assert not torch.is_grad_enabled()
        assert not module.training
        if seen is not None:
            seen.append(module.state())
        return torch.tensor(next(left), dtype=torch.float64)

    return loss


def test_best_weights_are_those_of_the_lowest_loss_of_a_step():
    point, seen = Point(0.3), []
    # A step of 1 jumps over the minimum and back.
    history = run(point, lambda: seen.append(point.value.item()) or point.loss(), 5, lr=1.0, restore_best=True)
    best = min(range(5), key=history["loss"].__getitem__)
    assert best < 4
    assert point.value.item() == seen[best]


@pytest.mark.parametrize(("restore_best", "kept"), [(True, 1), (False, 4)])
def test_best_weights_are_those_of_the_lowest_validation_loss(restore_best, kept):
    point, seen = Point(1.0), []
    losses = scripted([3.0, 1.0, 2.0, 1.0, 4.0], point, seen)
    run(point, point.loss, 5, restore_best=restore_best, validation_loss=losses)
    assert point.state() == seen[kept]
    assert seen[1] != seen[4]


def keras(losses, reduce_lr, early_stop):
    """Learning rate of each epoch, by the rules of ReduceLROnPlateau and EarlyStopping."""
    rates, rate = [], 0.1
    best_plateau = best_stop = math.inf
    wait_plateau = wait_stop = 0
    for loss in losses:
        rates.append(rate)
        if loss < best_plateau - 1e-4:
            best_plateau, wait_plateau = loss, 0
        else:
            wait_plateau += 1
            if wait_plateau >= reduce_lr:
                rate, wait_plateau = rate * 0.1, 0
        if loss < best_stop:
            best_stop, wait_stop = loss, 0
        else:
            wait_stop += 1
            if wait_stop >= early_stop:
                break
    return rates


@pytest.mark.parametrize("watched", ["validation_loss", "loss"])
@pytest.mark.parametrize(
    ("losses", "n_epochs"),
    [
        ([5.0, 4.0, 4.0, 4.5, 3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7], 10),
        # Improvements below 1e-4 keep training alive, not the learning rate.
        ([1 - 1e-5 * i for i in range(12)], 12),
        ([2.0] * 12, 6),
    ],
)
def test_learning_rate_and_stop_follow_the_loss_as_in_keras(losses, n_epochs, watched):
    point, left = Point(1.0), iter(losses)
    validation = scripted(losses, point) if watched == "validation_loss" else None
    history = run(
        point,
        lambda: (point.value * 0).sum() + (next(left) if validation is None else 1),
        12,
        validation_loss=validation,
        reduce_lr=3,
        early_stop=5,
    )
    expected = keras(losses, 3, 5)
    assert len(expected) == len(history["loss"]) == n_epochs
    assert len(set(expected)) > 1
    assert history["lr"] == pytest.approx(expected)
    assert history[watched] == pytest.approx(losses[:n_epochs])
    assert point.training


# -- A learning rate that rises, stays and falls -----------------------------------------------------------------------


@pytest.fixture
def rates(monkeypatch):
    """Learning rate of each step that is taken."""
    taken = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            taken.extend(group["lr"] for group in self.param_groups)
            return super().step(closure)

    monkeypatch.setitem(loop._OPTIMIZERS, "adam", lambda parameters, lr, weight_decay: Recorder(parameters, lr=lr))
    return taken


def annealed(point, n_epochs, validation, loss=None, *, n_steps=4, warmup=6, patience=2, share=1.0, begin=dict):
    return run(
        point,
        loss or point.loss,
        n_epochs,
        batches=lambda skip: [[None]] * (n_steps - skip),
        validation_loss=validation,
        anneal=Anneal(n_steps=n_steps, warmup=warmup, least=1, patience=patience, share=share, begin=begin),
    )


@pytest.mark.parametrize(("share", "n_last"), [(1.0, 5), (0.4, 2), (0.01, 1)])
def test_the_learning_rate_rises_stays_and_falls_to_zero_from_the_best_weights(rates, share, n_last):
    point, seen, begun = Point(1.0), [], []

    def begin():
        begun.append((len(rates), point.state()))
        return {}

    # The best is the third of them, and two more end the middle part.
    losses = [5.0, 4.0, 3.0, 3.5, 3.0]
    history = annealed(point, 40, scripted(losses, point, seen), share=share, begin=begin)
    assert history["validation_loss"] == losses
    assert len(history["loss"]) == 5 + n_last
    rising = [0.1 * (step + 1) / 6 for step in range(6)]
    falling = [0.1 * (1 - (step + 0.5) / (4 * n_last)) for step in range(4 * n_last)]
    assert rates == pytest.approx([*rising, *[0.1] * 14, *falling])
    assert begun == [(20, seen[2])]
    # And ends with its own last ones.
    assert point.n_steps.item() == 4 * (3 + n_last)


@settings(max_examples=12)
@given(
    n_epochs=some.integers(1, 30),
    share=some.sampled_from([0.1, 0.5, 1.0, 3.0]),
    patience=some.integers(1, 5),
    losses=some.lists(some.floats(0, 1), min_size=30, max_size=30),
)
def test_there_are_no_more_epochs_than_asked_for(n_epochs, share, patience, losses):
    point, begun = Point(1.0), []
    validation, arguments = scripted(losses, point), {"n_steps": 1, "share": share, "patience": patience}
    history = annealed(point, n_epochs, validation, begin=lambda: begun.append(1) or {}, **arguments)
    n_before = len(history.get("validation_loss", []))
    assert len(begun) == 1
    assert n_before < len(history["loss"]) <= n_epochs
    # The last part is as long as it should be, but for rounding and for the end of the epochs.
    n_last = len(history["loss"]) - n_before
    assert n_last == min(max(1, round(share * n_before)), n_epochs - n_before)
    # And never cut short by more than rounding.
    assert n_last >= share * n_before - 1 - share


def test_improvements_by_a_thousandth_keep_the_middle_part_going(rates):
    point, begun = Point(1.0), []
    history = annealed(point, 20, scripted([1 / (1 + i) for i in range(20)], point))
    assert (len(history["validation_loss"]), len(history["loss"])) == (10, 20)
    # Smaller ones do not, but it begins from the best of them.
    losses, point = [1.0, 0.9995, 0.9991, 0.9, 0.8], Point(1.0)
    begin = lambda: begun.append(point.n_steps.item()) or {}
    history = annealed(point, 20, scripted(losses, point), n_steps=1, begin=begin)
    assert history["validation_loss"] == losses[:3]
    assert begun == [3]


# -- A loss that is not finite, once -----------------------------------------------------------------------------------


def watched(point, bad):
    """A loss that is not finite at these calls; and the weights at each call."""
    seen = []

    def loss(*_):
        seen.append(point.value.item())
        return ((point.value - 0.2) ** 2).sum() * (torch.nan if len(seen) in bad else 1.0)

    return loss, seen


def halved(n_epochs, n_before, optimizer):
    """Weights before each step: that many at the whole rate, the others at half of it."""
    point, seen = Point(1.0), []
    stepper = loop._OPTIMIZERS[optimizer](list(point.parameters()), 0.1, 0.0)
    for step in range(n_epochs):
        stepper.param_groups[0]["lr"] = 0.1 if step < n_before else 0.05
        seen.append(point.value.item())
        stepper.zero_grad()
        ((point.value - 0.2) ** 2).sum().backward()
        stepper.step()
    return seen


@pytest.mark.parametrize(
    ("bad", "back_to", "optimizer"), [(1, 0, "adam"), (2, 0, "rmsprop"), (14, 12, "rmsprop"), (40, 38, "adam")]
)
def test_the_first_loss_that_is_not_finite_costs_half_the_learning_rate(bad, back_to, optimizer, caplog):
    point = Point(1.0)
    loss, seen = watched(point, {bad})
    with caplog.at_level(logging.WARNING, logger="stdenoise"):
        history = run(point, loss, 40, optimizer=optimizer)
    # Every second of 40 epochs can be gone back to.
    assert seen[bad:] == halved(40, back_to, optimizer)[back_to:]
    assert len(history["loss"]) == 40
    assert all(map(math.isfinite, history["loss"]))
    (record,) = caplog.records
    assert f"test: the loss is nan at epoch {bad}: going on" in record.message
    assert "at learning rate 0.05" in record.message


def test_the_second_loss_that_is_not_finite_is_an_error():
    point = Point(1.0)
    loss, seen = watched(point, {5, 30})
    with pytest.raises(FloatingPointError, match=r"test: the loss is nan at epoch 28; try a learning rate below 0\.05"):
        run(point, loss, 60)
    # Every third epoch can be gone back to: the fourth and the fifth were done twice.
    assert len(seen) == 30


def test_going_back_draws_the_same_batches_again():
    point, generator, drawn = Point(1.0), torch.Generator().manual_seed(0), []

    def batches(skip):
        drawn.append(torch.randperm(100, generator=generator).tolist())
        return [[x] for x in drawn[-1][:5]][skip:]

    run(point, watched(point, {5 * 4 + 3})[0], 40, batches=batches, generator=generator)
    # The fifth epoch again, which can be gone back to.
    assert drawn[4] == drawn[5]
    assert len({tuple(order) for order in drawn}) == 40
    assert len(drawn) == 41


def test_a_validation_loss_that_is_not_finite_is_gone_back_from_as_well():
    point = Point(1.0)
    validation = scripted([3.0, math.inf, 2.0, 1.0], point)
    history = run(point, point.loss, 3, validation_loss=validation, reduce_lr=9, early_stop=9)
    assert history["validation_loss"] == [3.0, 2.0, 1.0]
    assert history["lr"] == pytest.approx([0.1, 0.05, 0.05])


def test_the_last_part_is_never_gone_back_from_to_what_was_before_it(rates):
    point, begun, losses = Point(1.0), [], []

    def loss(_):
        losses.append(point.loss())
        return losses[-1] * (torch.nan if len(losses) == 4 * 5 + 2 else 1.0)

    validation = scripted([5.0, 4.0, 3.0, 3.5, 3.0], point)
    history = annealed(point, 60, validation, loss, warmup=1, begin=lambda: begun.append(1) or {})
    # The sixth epoch, where the last part begins, and not the fourth, the last one before that can be gone back to.
    assert begun == [1]
    assert len(losses) == 4 * 10 + 2
    assert len(history["validation_loss"]) == 5
    assert len(history["loss"]) == 10
    assert rates[-1] == pytest.approx(0.05 * 0.5 / 20)
