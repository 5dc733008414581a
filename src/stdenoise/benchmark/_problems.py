"""Collecting what is wrong with a config, so that all of it is reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stdenoise._base.checks import near_match


@dataclass
class Problems:
    """What is wrong with a config, so far."""

    messages: list[str] = field(default_factory=list)

    def add(self, where: str, message: str) -> None:
        """Add a problem."""
        self.messages.append(f"{where}: {message}")

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Add the error of a check, and go on behind the block."""
        try:
            yield
        except (ValueError, TypeError, KeyError, OSError) as error:
            # str() of a KeyError would quote its message.
            self.add(where, str(error.args[0] if isinstance(error, KeyError) and error.args else error))

    def keys(self, where: str, table: Mapping[str, Any], known: Sequence[str], required: Sequence[str] = ()) -> None:
        """Check the keys of a table."""
        for key in table:
            if key not in known:
                self.add(where, f"unknown key {key!r}; known are {list(known)}.{near_match(str(key), known)}")
        for key in required:
            if key not in table:
                self.add(where, f"{key!r} is missing.")

    def value(self, where: str, table: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
        """Read a value of a type, or add a problem and return the default."""
        value = table.get(key, default)
        if value is default or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        names = {str: "a text", dict: "a table", int: "an integer", list: "a list"}
        self.add(where, f"{key} must be {names.get(kind, kind.__name__)}, not {value!r}.")
        return default

    def patterns(self, where: str, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """Read a list of patterns; a single one may stand without its list."""
        value = table.get(key, ["*"])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not values or not all(isinstance(part, str) for part in values):
            self.add(where, f"{key} must be a list of names or patterns, not {value!r}.")
            return ("*",)
        return tuple(values)

    def tables(self, config: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
        """Read a list of tables, each with how messages call it."""
        value = config.get(key, [])
        if not isinstance(value, list | tuple) or not value:
            self.add(key, "at least one is needed." if not value else f"must be a list of tables, not {value!r}.")
            return []
        out = []
        for i, table in enumerate(value):
            where = f"{key}[{i}]"
            if isinstance(table, Mapping):
                title = table.get("label", table.get("name"))
                out.append((f"{where} {title!r}" if title else where, table))
            else:
                self.add(where, f"must be a table, not {table!r}.")
        return out
