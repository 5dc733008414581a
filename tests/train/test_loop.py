import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from stdenoise.train import loop
from stdenoise.train.loop import train
from stdenoise.train.run import Run
from stdenoise.train.schedule import Anneal

SETTINGS = {"weight_decay": 0.0, "clip": 5.0, "run": Run(), "description": "test"}


class Point(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


def run(point, loss, n_epochs, lr=0.1, *, restore_best=False, **settings):
    settings = {**SETTINGS, **settings}
    return train(point, loss, lr=lr, n_epochs=n_epochs, restore_best=restore_best, **settings).history


def test_equals_torch_adam_with_coupled_decay_and_clipping():
    ours, theirs = Point([3.0, -2.0]), Point([3.0, -2.0])
    history = run(ours, lambda: (ours.value**4).sum(), 6, weight_decay=0.1, clip=2.0)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.1, weight_decay=0.1, foreach=False, fused=False)
    losses, norms = [], []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (theirs.value**4).sum()
        loss.backward()
        norms.append(theirs.value.grad.norm().item())
        theirs.value.grad *= min(1.0, 2.0 / norms[-1])
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(ours.value, theirs.value)
    assert history["loss"] == pytest.approx(losses)
    assert history["gradient_norm"] == pytest.approx(norms)


def test_best_weights_are_those_of_the_lowest_loss():
    point = Point([0.3])
    seen = []

    def loss():
        seen.append(point.value.item())
        return (point.value**2).sum()

    # A step of 1 jumps over the minimum and back.
    history = run(point, loss, 5, lr=1.0, restore_best=True)
    best = min(range(5), key=history["loss"].__getitem__)
    assert best < 4
    assert point.value.item() == seen[best]
    last = Point([0.3])
    run(last, lambda: (last.value**2).sum(), 5, lr=1.0)
    assert last.value.item() != point.value.item()


def test_a_loss_that_is_not_finite_stops_with_advice():
    point = Point([1.0])
    # Tried at 0.1 and, once more, at half of it.
    with pytest.raises(FloatingPointError, match=r"test: the loss is nan at epoch 1; try a learning rate below 0\.05"):
        run(point, lambda: (point.value * torch.nan).sum(), 3)


def test_progress_goes_to_standard_error_only(capsys):
    point = Point([1.0])
    run(point, lambda: (point.value**2).sum(), 3, run=Run(progress=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err
    run(point, lambda: (point.value**2).sum(), 3)
    assert capsys.readouterr().err == ""


def test_batches_take_a_step_each():
    ours, theirs = Point([3.0, -2.0]), Point([3.0, -2.0])
    targets = [torch.tensor([x, -x]) for x in (0.0, 5.0, 40.0)]
    epochs = []

    def batches(skip):
        assert skip == 0
        epochs.append(len(epochs))
        return ([target] for target in targets[: 2 + epochs[-1]])

    def loss_of(point):
        return lambda target: ((point.value - target) ** 2).mean()

    history = run(ours, loss_of(ours), 2, batches=batches, optimizer="rmsprop", clip_by="value")
    optimizer = torch.optim.RMSprop(theirs.parameters(), lr=0.1, alpha=0.9, eps=1e-7)
    means = []
    for n_batches in (2, 3):
        losses = []
        for target in targets[:n_batches]:
            optimizer.zero_grad()
            loss = loss_of(theirs)(target)
            loss.backward()
            theirs.value.grad.clamp_(-5, 5)
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / n_batches)
    torch.testing.assert_close(ours.value, theirs.value)
    assert history == {"loss": pytest.approx(means)}


def scripted(values, module, seen=None):
    """A validation loss that follows a script."""
    left = iter(values)

    def loss():
        assert not torch.is_grad_enabled()
        assert not module.training
        if seen is not None:
            seen.append([x.clone() for x in module.state_dict().values()])
        return torch.tensor(next(left), dtype=torch.float64)

    return loss


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


@pytest.mark.parametrize(
    ("losses", "n_epochs"),
    [
        ([5.0, 4.0, 4.0, 4.5, 3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7], 10),
        # Improvements below 1e-4 keep training alive, not the learning rate.
        ([1 - 1e-5 * i for i in range(12)], 12),
        ([2.0] * 12, 6),
    ],
)
def test_learning_rate_and_stop_follow_the_validation_loss_as_in_keras(losses, n_epochs):
    point = Point([1.0])
    history = run(
        point,
        lambda: (point.value**2).sum(),
        12,
        validation_loss=scripted(losses, point),
        reduce_lr=3,
        early_stop=5,
    )
    expected = keras(losses, 3, 5)
    assert len(expected) == n_epochs
    assert len(set(expected)) > 1
    assert history["lr"] == pytest.approx(expected)
    assert history["validation_loss"] == pytest.approx(losses[:n_epochs])
    assert len(history["loss"]) == n_epochs
    assert point.training


def test_without_validation_the_training_loss_is_watched():
    point = Point([1.0])
    history = run(point, lambda: (point.value * 0).sum() + 1, 12, early_stop=4)
    assert len(history["loss"]) == 5


class Counter(Point):
    """Counts the steps in a buffer, as running averages do."""

    def __init__(self):
        super().__init__([1.0])
        self.register_buffer("n_steps", torch.zeros(1))

    def loss(self):
        self.n_steps += 1
        return (self.value**2).sum()


@pytest.mark.parametrize("restore_best", [True, False])
def test_best_weights_are_those_of_the_lowest_validation_loss(restore_best):
    module, seen = Counter(), []
    losses = scripted([3.0, 1.0, 2.0, 1.0, 4.0], module, seen)
    run(module, module.loss, 5, restore_best=restore_best, validation_loss=losses)
    for ours, expected in zip(module.state_dict().values(), seen[1 if restore_best else 4], strict=True):
        assert torch.equal(ours, expected)
    assert not torch.equal(seen[1][0], seen[4][0])


def test_a_validation_loss_that_is_not_finite_stops_with_advice():
    point = Point([1.0])
    with pytest.raises(FloatingPointError, match="test: the loss is inf at epoch 2"):
        run(point, lambda: (point.value**2).sum(), 3, validation_loss=scripted([1.0, math.inf, math.inf], point))


# -- Steps of several parts --------------------------------------------------------------------------------------------


def test_the_parts_of_a_step_add_up():
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, generator=draw) for _ in range(6)]
    steps = [parts[:1], parts[1:3], parts[3:]]
    by_parts, at_once = Point([1.0, 2.0, 3.0]), Point([1.0, 2.0, 3.0])

    def loss_of(point):
        return lambda target: ((point.value - target) ** 4).sum()

    ours = run(by_parts, loss_of(by_parts), 4, batches=lambda skip: steps[skip:])
    whole = run(
        at_once,
        lambda step: sum(loss_of(at_once)(part) for part in step),
        4,
        batches=lambda skip: [[step] for step in steps[skip:]],
    )
    assert ours["loss"] == pytest.approx(whole["loss"])
    assert ours["gradient_norm"] == pytest.approx(whole["gradient_norm"])
    torch.testing.assert_close(by_parts.value, at_once.value)


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


def annealed(point, n_epochs, validation, *, n_steps=4, warmup=6, patience=2, share=1.0, begin=dict, **settings):
    return run(
        point,
        lambda _: (point.value**2).sum(),
        n_epochs,
        batches=lambda skip: [[None]] * (n_steps - skip),
        validation_loss=validation,
        anneal=Anneal(n_steps=n_steps, warmup=warmup, least=1, patience=patience, share=share, begin=begin),
        **settings,
    )


@pytest.mark.parametrize(("share", "n_last"), [(1.0, 5), (0.4, 2), (0.01, 1), (2.0, 10)])
def test_the_learning_rate_rises_stays_and_falls_to_zero(rates, share, n_last):
    point = Point([1.0])
    # The best is the third of them, and two more end the middle part.
    history = annealed(point, 40, scripted([5.0, 4.0, 3.0, 3.5, 3.0], point), share=share)
    assert history["validation_loss"] == [5.0, 4.0, 3.0, 3.5, 3.0]
    assert len(history["loss"]) == 5 + n_last
    rising = [0.1 * (step + 1) / 6 for step in range(6)]
    falling = [0.1 * (1 - (step + 0.5) / (4 * n_last)) for step in range(4 * n_last)]
    assert rates == pytest.approx([*rising, *[0.1] * 14, *falling])
    assert 0 < rates[-1] <= 0.1 / (8 * n_last) * 1.001


def test_the_last_part_begins_once_from_the_best_weights(rates):
    module, seen, begun = Counter(), [], []
    validation = scripted([3.0, 1.0, 2.0, 1.5], module, seen)

    def begin():
        begun.append((len(rates), [x.clone() for x in module.state_dict().values()]))
        return {}

    run(
        module,
        lambda _: module.loss(),
        30,
        batches=lambda skip: [[None]] * (3 - skip),
        validation_loss=validation,
        anneal=Anneal(n_steps=3, warmup=1, least=1, patience=2, share=1.0, begin=begin),
    )
    ((n_steps, weights),) = begun
    assert n_steps == 12
    assert len(rates) == 24
    for ours, expected, latest in zip(weights, seen[1], seen[3], strict=True):
        assert torch.equal(ours, expected)
        assert not torch.equal(ours, latest)
    # And ends with its own last ones: twelve steps on from the sixth.
    assert module.n_steps.item() == 6 + 12


@given(
    n_epochs=some.integers(1, 30),
    share=some.sampled_from([0.1, 0.5, 1.0, 3.0]),
    patience=some.integers(1, 5),
    losses=some.lists(some.floats(0, 1), min_size=30, max_size=30),
)
def test_there_are_no_more_epochs_than_asked_for(n_epochs, share, patience, losses):
    point, begun = Point([1.0]), []
    history = annealed(
        point,
        n_epochs,
        scripted(losses, point),
        n_steps=1,
        share=share,
        patience=patience,
        begin=lambda: begun.append(1) or {},
    )
    n_before = len(history.get("validation_loss", []))
    assert len(begun) == 1
    assert n_before < len(history["loss"]) <= n_epochs
    # The last part is as long as it should be, but for rounding and for the end of the epochs.
    n_last = len(history["loss"]) - n_before
    assert n_last == min(max(1, round(share * n_before)), n_epochs - n_before)
    # And never cut short by more than rounding.
    assert n_last >= share * n_before - 1 - share


def test_improvements_keep_the_middle_part_going(rates):
    point = Point([1.0])
    history = annealed(point, 20, scripted([1 / (1 + i) for i in range(20)], point))
    assert len(history["validation_loss"]) == 10
    assert len(history["loss"]) == 20


def test_small_improvements_do_not_keep_the_middle_part_going(rates):
    point = Point([1.0])
    history = annealed(point, 20, scripted([1.0, 0.9995, 0.9991, 0.9, 0.8], point))
    assert history["validation_loss"] == [1.0, 0.9995, 0.9991]
    # But it begins from the best of them.
    module, seen, begun = Counter(), [], []
    run(
        module,
        lambda _: module.loss(),
        20,
        batches=lambda skip: [[None]][skip:],
        validation_loss=scripted([1.0, 0.9995, 0.9991], module, seen),
        anneal=Anneal(
            n_steps=1, warmup=1, least=1, patience=2, share=1.0, begin=lambda: begun.append(module.n_steps.item()) or {}
        ),
    )
    assert begun == [3]


# -- A loss that is not finite, once -----------------------------------------------------------------------------------


def watched(point, bad):
    """A loss that is not finite at these calls; and the weights at each call."""
    seen = []

    def loss(*_):
        seen.append(point.value.item())
        factor = torch.nan if len(seen) in bad else 1.0
        return ((point.value - 0.2) ** 2).sum() * factor

    return loss, seen


def halved(n_epochs, n_before, optimizer):
    """Weights before each step: that many at the whole rate, the others at half of it."""
    point, seen = Point([1.0]), []
    stepper = loop._OPTIMIZERS[optimizer](list(point.parameters()), 0.1, 0.0)
    for step in range(n_epochs):
        stepper.param_groups[0]["lr"] = 0.1 if step < n_before else 0.05
        seen.append(point.value.item())
        stepper.zero_grad()
        ((point.value - 0.2) ** 2).sum().backward()
        stepper.step()
    return seen


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize(("bad", "back_to"), [(1, 0), (2, 0), (13, 12), (14, 12), (40, 38)])
def test_the_first_loss_that_is_not_finite_costs_half_the_learning_rate(bad, back_to, optimizer, caplog):
    point = Point([1.0])
    loss, seen = watched(point, {bad})
    with caplog.at_level(logging.WARNING, logger="stdenoise"):
        history = run(point, loss, 40, optimizer=optimizer)
    # Every second of 40 epochs can be gone back to.
    expected = halved(40, back_to, optimizer)
    assert seen[bad:] == expected[back_to:]
    assert len(history["loss"]) == 40
    assert all(map(math.isfinite, history["loss"]))
    (record,) = caplog.records
    assert f"test: the loss is nan at epoch {bad}: going on" in record.message
    assert "at learning rate 0.05" in record.message


def test_the_second_loss_that_is_not_finite_is_an_error():
    point = Point([1.0])
    loss, seen = watched(point, {5, 30})
    with pytest.raises(FloatingPointError, match=r"test: the loss is nan at epoch 28; try a learning rate below 0\.05"):
        run(point, loss, 60)
    # Every third epoch can be gone back to: the fourth and the fifth were done twice.
    assert len(seen) == 30


def test_going_back_draws_the_same_batches_again():
    point, generator, drawn = Point([1.0]), torch.Generator().manual_seed(0), []

    def batches(skip):
        drawn.append(torch.randperm(100, generator=generator).tolist())
        return [[x] for x in drawn[-1][:5]][skip:]

    loss, _ = watched(point, {5 * 4 + 3})
    run(point, loss, 40, batches=batches, generator=generator)
    # The fifth epoch again, which can be gone back to.
    assert drawn[4] == drawn[5]
    assert len({tuple(order) for order in drawn}) == 40
    assert len(drawn) == 41


def test_a_validation_loss_that_is_not_finite_is_gone_back_from_as_well():
    point = Point([1.0])
    history = run(
        point,
        lambda: (point.value**2).sum(),
        3,
        validation_loss=scripted([3.0, math.nan, 2.0, 1.0], point),
        reduce_lr=9,
        early_stop=9,
    )
    assert history["validation_loss"] == [3.0, 2.0, 1.0]
    assert history["lr"] == pytest.approx([0.1, 0.05, 0.05])


def test_the_last_part_is_never_gone_back_from_to_what_was_before_it(rates):
    point, begun = Point([1.0]), []
    losses = []

    def loss(_):
        losses.append((point.value**2).sum())
        return losses[-1] * (torch.nan if len(losses) == 4 * 5 + 2 else 1.0)

    history = run(
        point,
        loss,
        60,
        batches=lambda skip: [[None]] * (4 - skip),
        validation_loss=scripted([5.0, 4.0, 3.0, 3.5, 3.0], point),
        anneal=Anneal(n_steps=4, warmup=1, least=1, patience=2, share=1.0, begin=lambda: begun.append(1) or {}),
    )
    # The sixth epoch, where the last part begins, and not the fourth, the last one before that can be gone back to.
    assert begun == [1]
    assert len(losses) == 4 * 10 + 2
    assert len(history["validation_loss"]) == 5
    assert len(history["loss"]) == 10
    assert rates[-1] == pytest.approx(0.05 * 0.5 / 20)
