"""How long a training lasts, and how fast it learns, by hand."""

import pytest

from stdenoise.train.schedule import Anneal, Course, State


def course_of(state, *, n_epochs=30, least=1, patience=2):
    anneal = Anneal(n_steps=4, warmup=6, least=least, patience=patience, share=0.5, begin=dict)
    return Course(state, 0.1, n_epochs, reduce_lr=None, early_stop=None, anneal=anneal)


def pass_through(course, state, losses):
    """A training with these losses."""
    while state.epoch < course.last_epoch:
        if course.turns_here:
            state.annealing = state.epoch
        loss = losses(state.epoch + 1)
        state.history.setdefault("loss", []).append(loss)
        course.heed(loss)
        state.epoch += 1


def shrinking(epoch):
    # Less than a thousandth is nothing.
    return max(1 / epoch, 0.2 - 1e-5 * epoch)


def bumpy(epoch):
    # What a section of thousands of silent genes shows: it falls at once, rises again, and falls only later.
    return {1: 0.13, 2: 0.1}.get(epoch, 0.12 - 1e-3 * epoch)


@pytest.mark.parametrize(
    ("losses", "patience", "least", "turns_at"),
    [
        (shrinking, 1, 1, 6),
        (shrinking, 3, 1, 8),
        (bumpy, 2, 1, 4),
        (bumpy, 2, 5, 20),
        (lambda epoch: 1 / epoch, 2, 1, 20),
    ],
)
def test_the_last_part_begins_when_nothing_is_gained_any_more(losses, patience, least, turns_at):
    state = State(notes={"held_out_explained": 0.5}, best_epoch=2)
    course = course_of(state, patience=patience, least=least)
    pass_through(course, state, losses)
    # Two thirds of the epochs at most, and then half as many.
    assert (state.annealing, state.epoch) == (turns_at, turns_at * 3 // 2)
    stopped = "all 30 epochs are over" if turns_at == 20 else f"no better for {patience} epochs, at epoch {turns_at}"
    assert course.outcome.ending == {
        "stopped": stopped,
        "best_epoch": 2,
        "annealing_from": turns_at,
        "held_out_explained": 0.5,
    }
    assert course.outcome.history["loss"] == [losses(epoch) for epoch in range(1, state.epoch + 1)]


def test_the_least_number_of_epochs_does_not_exceed_those_there_are():
    state = State()
    course = course_of(state, n_epochs=6, least=50)
    counted = []
    for state.epoch in range(6):
        counted.append(course.counts)
    assert counted == [False] * 3 + [True] * 3
