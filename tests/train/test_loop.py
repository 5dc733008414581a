import math

import pytest
import torch
from torch import nn

from stdenoise.train.loop import train

SETTINGS = {"weight_decay": 0.0, "clip": 5.0, "progress": False, "description": "test"}


class Point(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


def run(point, loss, n_epochs, lr=0.1, *, restore_best=False, **settings):
    return train(point, loss, lr=lr, n_epochs=n_epochs, restore_best=restore_best, **{**SETTINGS, **settings})


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
    with pytest.raises(FloatingPointError, match=r"test: the loss is nan at epoch 1; try a learning rate below 0\.1"):
        run(point, lambda: (point.value * torch.nan).sum(), 3)


def test_progress_goes_to_standard_error_only(capsys):
    point = Point([1.0])
    run(point, lambda: (point.value**2).sum(), 3, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err
    run(point, lambda: (point.value**2).sum(), 3)
    assert capsys.readouterr().err == ""


def test_batches_take_a_step_each():
    ours, theirs = Point([3.0, -2.0]), Point([3.0, -2.0])
    targets = [torch.tensor([x, -x]) for x in (0.0, 5.0, 40.0)]
    epochs = []

    def batches():
        epochs.append(len(epochs))
        return iter(targets[: 2 + epochs[-1]])

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
        run(point, lambda: (point.value**2).sum(), 3, validation_loss=scripted([1.0, math.inf], point))
