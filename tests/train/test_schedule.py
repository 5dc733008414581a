"""How long a training lasts, and how fast it learns, by hand."""

import pytest

from stdenoise.train.schedule import Anneal, Course, State


def course_of(state, *, n_epochs=30, n_steps=4, warmup=6, least=1, patience=2, share=0.5, **arguments):
    anneal = Anneal(n_steps=n_steps, warmup=warmup, least=least, patience=patience, share=share, begin=dict)
    return Course(state, 0.1, n_epochs, **{"reduce_lr": None, "early_stop": None, "anneal": anneal, **arguments})


def pass_through(course, state, losses, *, n_steps=4):
    """Learning rates of all steps of a training with these losses."""
    rates = []
    while state.epoch < course.last_epoch and not state.is_over:
        if course.turns_here:
            state.annealing = state.epoch
        for state.step in range(n_steps):
            rates.append(course.lr)
        loss = losses(state.epoch + 1)
        state.history.setdefault("loss", []).append(loss)
        course.heed(loss)
        state.epoch, state.step = state.epoch + 1, 0
    return rates


def test_the_rate_rises_stays_and_falls_to_zero():
    state = State()
    rates = pass_through(course_of(state), state, lambda epoch: 1 / epoch)
    # Two thirds of the epochs at most, and then half as many.
    assert (state.annealing, state.epoch) == (20, 30)
    assert rates[:6] == pytest.approx([0.1 * i / 6 for i in range(1, 7)])
    assert rates[6:80] == pytest.approx([0.1] * 74)
    assert rates[80:] == pytest.approx([0.1 * (1 - (i + 0.5) / 40) for i in range(40)])


@pytest.mark.parametrize(("patience", "turns_at"), [(1, 6), (2, 7), (3, 8)])
def test_it_falls_when_nothing_is_gained_any_more(patience, turns_at):
    state = State()
    # Less than a thousandth is nothing.
    rates = pass_through(course_of(state, patience=patience), state, lambda epoch: max(1 / epoch, 0.2 - 1e-5 * epoch))
    assert state.annealing == turns_at
    assert state.epoch == turns_at + round(turns_at / 2)
    assert len(rates) == 4 * state.epoch


@pytest.mark.parametrize(("least", "turns_at"), [(1, 4), (5, 20)])
def test_a_plateau_at_the_beginning_ends_nothing(least, turns_at):
    state = State()
    course = course_of(state, least=least, patience=2)
    # What a section of thousands of silent genes shows: it falls at once, rises again, and falls only later.
    pass_through(course, state, lambda epoch: {1: 0.13, 2: 0.1}.get(epoch, 0.12 - 1e-3 * epoch))
    assert state.annealing == turns_at
    assert course.outcome.ending["annealing_from"] == turns_at


def test_the_least_number_of_epochs_does_not_exceed_those_there_are():
    state = State()
    course = course_of(state, n_epochs=6, least=50)
    counted = []
    for state.epoch in range(6):
        counted.append(course.counts)
    assert counted == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("losses", "stopped"),
    [(lambda epoch: 1 / epoch, "all 30 epochs are over"), (lambda epoch: 1.0, "no better for 2 epochs, at epoch 3")],
)
def test_the_outcome_says_why_it_ended(losses, stopped):
    state = State(notes={"held_out_explained": 0.5}, best_epoch=2)
    course = course_of(state)
    pass_through(course, state, losses)
    ending = course.outcome.ending
    assert (ending["stopped"], ending["best_epoch"], ending["held_out_explained"]) == (stopped, 2, 0.5)
    assert course.outcome.history["loss"] == [losses(epoch) for epoch in range(1, state.epoch + 1)]


def test_a_plateau_divides_the_rate_by_ten_and_a_longer_one_ends_it():
    state = State()
    course = course_of(state, anneal=None, reduce_lr=2, early_stop=5)
    rates = pass_through(course, state, lambda epoch: 1.0, n_steps=1)
    assert state.is_over
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 2 + [0.001])


def test_a_constant_rate_lasts_for_all_epochs():
    state = State()
    rates = pass_through(course_of(state, anneal=None), state, lambda epoch: 1.0, n_steps=1)
    assert rates == [0.1] * 30
