import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from stdenoise._base.checks import check_choice, check_number, lookup, near_match
from stdenoise._base.random import check_seed, torch_generator
from stdenoise._io.read import check_counts


def test_a_near_name_is_suggested():
    assert near_match("n_epoch", ["lr", "n_epochs", 3]) == " Did you mean 'n_epochs'?"
    assert near_match("zebra", ["lr", "n_epochs"]) == near_match("", ["lr"]) == near_match("x", []) == ""


def test_a_choice_is_one_of_those_named():
    for value in ("distance", 3):
        check_choice("what", value, ["distance", 3])
    for value, hint in ((5, ""), (None, ""), ("distanc", ".*Did you mean 'distance'")):
        with pytest.raises(ValueError, match=rf"what={value!r} .*\['distance', 3\]{hint}"):
            check_choice("what", value, ["distance", 3])


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


def test_what_is_no_number_or_no_integer_or_not_finite():
    for value in (3, np.int32(3), np.uint8(3), 2**64, 10**400):
        check_number("x", value, minimum=3, integer=True)
        with pytest.raises(ValueError, match="x must be an integer >= 4, not"):
            check_number("x", value if value == 3 else -value, minimum=4, integer=True)
    for value in ("3", None, True, np.True_, [3], 3j, np.complex64(3), np.array(3.0)):
        for integer in (False, True):
            with pytest.raises(TypeError, match="x must be an? (number|integer) > 0, not"):
                check_number("x", value, above=0, integer=integer)
    for value in (3.0, np.float32(3)):
        with pytest.raises(TypeError, match="an integer"):
            check_number("x", value, integer=True)
    for value in (np.nan, np.inf, -np.inf, np.float32("nan")):
        with pytest.raises(ValueError, match="x must be a number, not"):
            check_number("x", value)


def test_lookup_lists_what_there_is():
    assert lookup({"a": 1}, "a", where="here") == 1
    with pytest.raises(KeyError) as caught:
        lookup({"mean": 1, 0: 2}, "maen", where="here", advice="Look there.")
    assert caught.value.args == ("'maen' is not in here, which has 'mean', 0. Did you mean 'mean'? Look there.",)
    with pytest.raises(KeyError, match="has nothing"):
        lookup({}, "a", where="here")
    for key in (5, None, ("a",)):
        with pytest.raises(TypeError, match="here must be a string"):
            lookup({"a": 1}, key, where="here")


@given(
    some.lists(some.integers(0, 1000), min_size=1),
    some.sampled_from([np.int32, np.uint32, np.int64, np.float32, np.float64]),
    some.floats(0, 0.99),
    some.floats(0.01, 0.99),
)
def test_counts_are_whole_whatever_their_type(values, dtype, place, fraction):
    counts = np.array(values, dtype=dtype)
    check_counts(counts, where="X", allow_fractions=False)
    check_counts(counts[:0], where="X", allow_fractions=False)
    broken = counts.astype(float)
    broken[int(place * len(values))] += fraction
    with pytest.raises(ValueError, match="1 of .* fractional"):
        check_counts(broken, where="X", allow_fractions=False)
    check_counts(broken, where="X", allow_fractions=True)


def test_fractions_below_16_look_logged():
    for largest, message in ((15.9, "X looks log-transformed"), (16.5, "X does not hold raw counts")):
        with pytest.raises(ValueError, match=message):
            check_counts(np.array([0.5, largest]), where="X", allow_fractions=False)


def test_seeds_up_to_63_bits_give_draws_of_their_own():
    for seed in (0, 2**32, 2**63 - 1, np.int64(5)):
        check_seed(seed)
        assert torch_generator(seed).initial_seed() == seed
    with pytest.raises(ValueError, match=str(2**63)):
        check_seed(2**63)
    draws = [torch.rand(3, generator=torch_generator(seed)).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
