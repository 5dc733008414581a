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
