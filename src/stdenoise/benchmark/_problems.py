"""Collecting what is wrong with a config, so that all of it is reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from stdenoise._base.config import describe

Table = TypeVar("Table", bound=BaseModel)


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

    def read(self, where: str, kind: type[Table], table: Mapping[str, Any]) -> Table | None:
        """Read a table, or add all that is wrong with it."""
        try:
            return kind.model_validate(table)
        except ValidationError as error:
            for message in describe(error, known=kind.model_fields):
                self.add(where, message)
            unknown = {one["loc"][0] for one in error.errors() if one["type"] == "extra_forbidden"}
            # What is known may be wrong in other ways, too.
            known = {key: value for key, value in table.items() if key not in unknown}
            return kind.model_validate(known) if len(unknown) == error.error_count() else None
