"""What configurations are made of: types that check their values, and one error that names all that is wrong.

A configuration is a frozen dataclass of pydantic with the settings `STRICT`: `True` is no number, and text no list.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from stdenoise._base.checks import near_match

STRICT = ConfigDict(strict=True, allow_inf_nan=False)


_WORDS = {
    " after validation": "",
    "greater than or equal to": ">=",
    "less than or equal to": "<=",
    "greater than": ">",
    "less than": "<",
    "a valid integer": "an integer",
    "a valid ": "a ",
}
"""What pydantic says, as all other errors say it."""


def _plain(value: Any) -> Any:
    """Turn a number of numpy into one of Python."""
    return value.item() if isinstance(value, np.generic) else value


_PLAIN = BeforeValidator(_plain)

Switch = Annotated[bool, _PLAIN]
Count = Annotated[int, _PLAIN, Field(ge=1)]
AtLeastTwo = Annotated[int, _PLAIN, Field(ge=2)]
NonNegativeInt = Annotated[int, _PLAIN, Field(ge=0)]
Positive = Annotated[float, _PLAIN, Field(gt=0)]
NonNegative = Annotated[float, _PLAIN, Field(ge=0)]
Share = Annotated[float, _PLAIN, Field(ge=0, le=1)]
Widths = Annotated[
    tuple[Count, ...],
    # An array is what comes back from disk.
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list | np.ndarray) else value),
    Field(min_length=1),
]


def describe(error: ValidationError, *, known: Collection[str] = ()) -> list[str]:
    """Say of every value that is not valid what it must be.

    Parameters
    ----------
    error
        What pydantic has found.
    known
        Names to choose from, for one that is not known.
    """
    found: dict[str, list[str]] = {}
    for one in error.errors(include_url=False):
        name, value, kind = ".".join(part for part in one["loc"] if isinstance(part, str)), one["input"], one["type"]
        if kind == "value_error":
            # What a configuration says of several of its values.
            found.setdefault(str(one["ctx"]["error"]), [])
        elif kind == "extra_forbidden":
            found.setdefault(f"unknown key {name!r}; known are {list(known)}.{near_match(name, known)}", [])
        elif kind == "missing":
            found.setdefault(f"{name!r} is missing.", [])
        else:
            # "Input should be …", "List should have …"
            subject, _, wanted = one["msg"].rpartition(" should ")
            expected = f"must {wanted}" if subject else wanted
            for long, short in _WORDS.items():
                expected = expected.replace(long, short)
            choices = str(one.get("ctx", {}).get("expected", "")).split("'")
            hint = near_match(value, choices) if isinstance(value, str) else ""
            place = "".join(f"[{part}]" for part in one["loc"] if isinstance(part, int))
            # The kinds that a value may have are parts of its place, too.
            found.setdefault(f"{one['loc'][0]}{place}={value!r}", []).append(
                expected + hint.replace(" Did", " (did").replace("?", "?)")
            )
    return [f"{what} {', or '.join(why)}" if why else what for what, why in found.items()]
