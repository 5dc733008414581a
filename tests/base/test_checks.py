import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from stdenoise._base.checks import check_choice, check_number, lookup, near_match
from stdenoise._base.random import check_seed, torch_generator
from stdenoise._io.read import check_counts


@pytest.mark.parametrize(
    ("value", "hint"),
    [("n_epoch", " Did you mean 'n_epochs'?"), ("lr", " Did you mean 'lr'?"), ("zebra", ""), ("", "")],
)
def test_near_match(value, hint):
    assert near_match(value, ["n_epochs", "lr", "alpha"]) == hint


def test_near_match_with_nothing_to_match():
    assert near_match("x", []) == ""


@pytest.mark.parametrize("value", [5, None, "distanc"])
def test_choice(value):
    with pytest.raises(ValueError, match=rf"what={value!r} is not valid; choose from \['distance', 3\]"):
        check_choice("what", value, ["distance", 3])
    check_choice("what", "distance", ["distance", 3])


@given(some.one_of(some.integers(-(10**9), 10**9), some.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_pass_exactly_when_they_are_in_range(value):
    def accepted(**limits):
        try:
            check_number("x", value, **limits)
        except ValueError:
            return False
        return True

    assert accepted()
    assert accepted(minimum=2) == (value >= 2)
    assert accepted(above=2) == (value > 2)
    assert accepted(minimum=value)
    assert not accepted(above=value)


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3)])
def test_integers_of_any_kind(value):
    check_number("x", value, minimum=3, integer=True)
    with pytest.raises(ValueError, match="x must be an integer >= 4, not"):
        check_number("x", value, minimum=4, integer=True)


@pytest.mark.parametrize("value", [3.0, np.float32(3), "3", None, True, np.True_, [3], 3j, np.complex64(3)])
def test_what_is_no_integer(value):
    with pytest.raises(TypeError, match="x must be an integer, not"):
        check_number("x", value, integer=True)


@pytest.mark.parametrize("value", ["3", None, True, np.True_, [3], 3j, np.complex64(3), np.array(3.0)])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match="x must be a number > 0, not"):
        check_number("x", value, above=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32("nan")])
def test_numbers_are_finite(value):
    with pytest.raises(ValueError, match="x must be a number, not"):
        check_number("x", value)


@pytest.mark.parametrize("value", [2**64, 10**400, -(2**70)])
def test_integers_of_any_size_are_compared(value):
    with pytest.raises(ValueError, match="x must be an integer > 0|x must be an integer >= 0"):
        check_number("x", -abs(value), minimum=0, integer=True)


def test_lookup_lists_what_there_is():
    assert lookup({"a": 1}, "a", where="here") == 1
    with pytest.raises(KeyError) as caught:
        lookup({"mean": 1, "other": 2}, "maen", where="here", advice="Look there.")
    assert caught.value.args == ("'maen' is not in here, which has 'mean', 'other'. Did you mean 'mean'? Look there.",)


def test_lookup_in_nothing():
    with pytest.raises(KeyError, match="'a' is not in here, which has nothing"):
        lookup({}, "a", where="here")


@pytest.mark.parametrize("key", [5, None, ("a",)])
def test_lookup_of_a_key_that_is_no_text(key):
    with pytest.raises(TypeError, match="a key of here must be a string, not "):
        lookup({"a": 1}, key, where="here")


def test_lookup_beside_names_that_are_no_text():
    with pytest.raises(KeyError, match="'b' is not in here, which has 0, 'a'"):
        lookup({0: 1, "a": 2}, "b", where="here")


@given(some.lists(some.integers(0, 10**6)), some.sampled_from([np.int32, np.uint32, np.int64, np.float32, np.float64]))
def test_counts_of_any_type_pass(values, dtype):
    check_counts(np.array(values, dtype=dtype), where="X", allow_fractions=False)


@given(some.lists(some.integers(0, 1000), min_size=1), some.floats(0.01, 0.99), some.floats(0.01, 0.99))
def test_one_fraction_among_counts_is_enough(values, place, fraction):
    matrix = np.array(values, dtype=float)
    matrix[int(place * len(values))] += fraction
    with pytest.raises(ValueError, match="1 of .* non-zero values are fractional"):
        check_counts(matrix, where="X", allow_fractions=False)
    check_counts(matrix, where="X", allow_fractions=True)


@pytest.mark.parametrize(
    ("largest", "message"), [(15.9, "X looks log-transformed"), (16.5, "X does not hold raw counts")]
)
def test_fractions_below_16_look_logged(largest, message):
    with pytest.raises(ValueError, match=message):
        check_counts(np.array([0.5, largest]), where="X", allow_fractions=False)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1, np.int64(5)])
def test_seeds(seed):
    check_seed(seed)
    first, second = (torch_generator(seed).initial_seed() for _ in range(2))
    assert first == second == seed


def test_generators_of_one_seed_draw_alike_and_of_two_do_not():
    import torch

    draws = [torch.rand(3, generator=torch_generator(seed)).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
