"""Checks of user input. Every error names the offending value and the valid ones."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

logger = logging.getLogger("stdenoise")

T = TypeVar("T")

_NAME_BYTES = 200
"""File systems take 255, and suffixes are added."""
_SEPARATORS = {"/", "\\", "\0"}
_RESERVED = (".", "..", ".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")
"""Where files have a meaning of their own, in folders or in zarr."""


def near_match(value: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" when a choice resembles the value, else nothing."""
    match = difflib.get_close_matches(value, [choice for choice in choices if isinstance(choice, str)], n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise unless the value is one of the choices."""
    if value not in choices:
        hint = near_match(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        raise ValueError(f"{name}={value!r} is not valid; choose from {list(choices)}.{hint}")


def check_bool(name: str, value: Any) -> None:
    """Raise unless the value is `True` or `False`; 1 is neither."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}.")


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    integer: bool = False,
) -> None:
    """Raise unless the value is a finite number in range."""
    kind = "an integer" if integer else "a number"
    wanted = kind + (f" >= {minimum}" if minimum is not None else "") + (f" > {above}" if above is not None else "")
    valid_type = isinstance(value, int | np.integer if integer else int | float | np.integer | np.floating)
    if not valid_type or isinstance(value, bool):
        raise TypeError(f"{name} must be {wanted}, not {value!r}.")
    if (
        not -math.inf < value < math.inf
        or (minimum is not None and value < minimum)
        or (above is not None and value <= above)
    ):
        raise ValueError(f"{name} must be {wanted}, not {value!r}.")


def check_folder(name: str, path: Path) -> None:
    """Raise unless the folder of a file is there."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}={str(path)!r}: there is no folder {str(folder)!r}.")


def check_name(argument: str, value: Any) -> None:
    """Raise unless the value can be a key of an AnnData in every format: it becomes the name of a file or folder there."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"{argument} must be a name, not {value!r}.")
    if set(value) & _SEPARATORS or value in _RESERVED:
        raise ValueError(
            f"{argument}={value!r} is no name: it must not contain '/', a backslash or NUL, or be one of {list(_RESERVED)}."
        )
    if len(value.encode(errors="surrogatepass")) > _NAME_BYTES:
        raise ValueError(f"{argument}={value!r} is too long for a name: more than {_NAME_BYTES} bytes.")


def lookup(mapping: Mapping[str, T], key: str, *, where: str, advice: str = "") -> T:
    """Return `mapping[key]`, or raise a `KeyError` that lists what is there."""
    if not isinstance(key, str):
        raise TypeError(f"a key of {where} must be a string, not {key!r}.")
    if key not in mapping:
        available = ", ".join(map(repr, mapping)) or "nothing"
        advice = f" {advice}" if advice else ""
        raise KeyError(f"{key!r} is not in {where}, which has {available}.{near_match(key, mapping)}{advice}")
    return mapping[key]


def refuse_key(name: str, key: str, mapping: Mapping[str, Any], place: str, *, where: str, why: str) -> NoReturn:
    """Raise for a key that nothing reads: a `KeyError` where it names nothing, else a `TypeError`."""
    lookup(mapping, place, where=where)
    raise TypeError(f"{name}={key!r} has no effect {why}.")
