"""What a config may say, table by table."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from stdenoise._base.config import STRICT, Count

Patterns = Annotated[
    tuple[str, ...],
    # A single one may stand without its list.
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    ),
    Field(min_length=1),
]
Tables = Annotated[
    list[dict[str, Any]],
    BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value),
    Field(min_length=1),
]


class _Table(BaseModel):
    model_config = ConfigDict(**STRICT, extra="forbid")


class Config(_Table):
    """The whole config; its tables are read one by one."""

    name: str | None = None
    seeds: Annotated[
        list[Any],
        BeforeValidator(lambda value: list(value) if isinstance(value, tuple) else value),
        Field(min_length=1),
    ] = [0]
    datasets: Tables
    methods: Tables
    metrics: Tables


class DatasetTable(_Table):
    """One data set, or several simulated ones: exactly one of `simulate`, `tissue`, `load` and `path` is given."""

    name: str | None = None
    group: str | None = None
    simulate: dict[str, Any] | None = None
    tissue: dict[str, Any] | None = None
    load: dict[str, Any] | None = None
    path: str | None = None
    n_top_genes: Count | None = None
    labels: str | None = None
    truth: str | None = None
    graph: dict[str, Any] | None = None


class MethodTable(_Table):
    """One configured method."""

    name: str
    label: str | None = None
    params: dict[str, Any] = {}
    datasets: Patterns = ("*",)


class MetricTable(_Table):
    """One metric, and what it is for."""

    name: str
    label: str | None = None
    args: dict[str, Any] = {}
    datasets: Patterns = ("*",)
    methods: Patterns = ("*",)
    scores: Patterns = ("*",)
