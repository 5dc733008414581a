"""Reading a config: every problem is collected, and all are reported at once."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from stdenoise._base.checks import check_choice, near_match
from stdenoise._base.random import check_seed
from stdenoise.benchmark._metrics import METRICS, check_args
from stdenoise.benchmark._problems import Problems
from stdenoise.benchmark._schema import Config, DatasetTable, MethodTable, MetricTable
from stdenoise.benchmark._sources import expand
from stdenoise.benchmark._units import Dataset, Method, Metric, Plan, matches
from stdenoise.methods._registry import make_method


def read_config(config: str | Path | Mapping[str, Any]) -> Plan:
    """Read and check a config.

    Parameters
    ----------
    config
        A TOML file, or the equal mapping. Paths in a file are relative to its folder, in a mapping to the working folder.

    Raises
    ------
    ValueError
        Lists everything that is wrong.
    FileNotFoundError
        There is no such file.
    """
    content, folder, title = _load(config)
    problems = Problems()
    # What is no plain value could neither be hashed nor handed to another process.
    with problems.at("config"):
        json.dumps(content)
    whole = problems.read("config", Config, content)
    if whole is not None:
        title = whole.name or title
    datasets: list[Dataset] = []
    for where, table in _tables(content, "datasets", problems):
        described = problems.read(where, DatasetTable, table)
        if described is not None:
            with problems.at(where):
                datasets += expand(described, folder=folder)
    methods = [_read_method(where, table, problems) for where, table in _tables(content, "methods", problems)]
    metrics = [_read_metric(where, table, problems) for where, table in _tables(content, "metrics", problems)]
    plan = Plan(
        title,
        _read_seeds(content.get("seeds", [0]), problems),
        tuple(datasets),
        tuple(method for method in methods if method is not None),
        tuple(metric for metric in metrics if metric is not None),
    )
    _check_labels(plan, problems)
    # A pattern that misses what could not be read is no problem of its own.
    if not problems.messages:
        _check_patterns(plan, problems)
    if problems.messages:
        what = "1 problem" if len(problems.messages) == 1 else f"{len(problems.messages)} problems"
        raise ValueError(f"the config {title!r} has {what}:\n" + "\n".join(f"- {m}" for m in problems.messages))
    return plan


def _load(config: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], Path, str]:
    if isinstance(config, Mapping):
        return config, Path(), "benchmark"
    if not isinstance(config, str | Path):
        raise TypeError(f"config must be the path of a TOML file or a mapping, not {type(config).__name__}.")
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(f"there is no config {str(path)!r}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), path.parent, path.stem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not TOML: {error}") from error


def _tables(content: Mapping[str, Any], key: str, problems: Problems) -> list[tuple[str, Mapping[str, Any]]]:
    """Tables of a list, each with how messages call it; what is no list of tables has been reported."""
    value = content.get(key)
    out = []
    for i, table in enumerate(value if isinstance(value, list | tuple) else []):
        if isinstance(table, Mapping):
            title = table.get("label", table.get("name"))
            out.append((f"{key}[{i}]" + (f" {title!r}" if title else ""), table))
    return out


def _read_seeds(seeds: Any, problems: Problems) -> tuple[int, ...]:
    if not isinstance(seeds, list | tuple):
        # Reported as part of the whole.
        return (0,)
    for seed in seeds:
        with problems.at("seeds"):
            check_seed(seed)
    if len(set(map(str, seeds))) < len(seeds):
        problems.add("seeds", f"occur more than once: {list(seeds)}.")
    return tuple(seeds)


def _read_method(where: str, table: Mapping[str, Any], problems: Problems) -> Method | None:
    read = problems.read(where, MethodTable, table)
    if read is None:
        return None
    method = None
    default = read.name + (f"({', '.join(f'{k}={v}' for k, v in read.params.items())})" if read.params else "")
    with problems.at(where):
        settings = asdict(make_method(read.name, dict(read.params)).config)
        method = Method(read.label or default, read.name, read.params, settings, read.datasets)
    return method


def _read_metric(where: str, table: Mapping[str, Any], problems: Problems) -> Metric | None:
    read = problems.read(where, MetricTable, table)
    if read is None:
        return None
    metric = None
    with problems.at(where):
        check_choice("name", read.name, list(METRICS))
        check_args(read.name, read.args)
        label = read.label or read.name
        if label == "fit":
            raise ValueError("label='fit' is taken; choose another one.")
        metric = Metric(label, read.name, read.args, read.datasets, read.methods, read.scores)
    return metric


def _check_labels(plan: Plan, problems: Problems) -> None:
    """Names in the table of results must tell rows apart."""
    for what, names in (("datasets", [d.name for d in plan.datasets]), ("methods", [m.label for m in plan.methods])):
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            problems.add(what, f"{name!r} occurs {names.count(name)} times; give each a {what[:-1]} name of its own.")


def _check_patterns(plan: Plan, problems: Problems) -> None:
    """Every pattern matches, every method and data set is measured, and metrics have what they need."""
    names, labels = [d.name for d in plan.datasets], [m.label for m in plan.methods]
    for entry, kind in ((e, k) for k in ("methods", "metrics") for e in getattr(plan, k)):
        for attribute, choices in (("datasets", names), ("methods", labels)):
            for pattern in getattr(entry, attribute, ()):
                if not any(matches(choice, (pattern,)) for choice in choices):
                    hint = near_match(pattern, choices)
                    problems.add(
                        f"{kind} {entry.label!r}", f"{pattern!r} matches none of the {attribute} {choices}.{hint}"
                    )
    if problems.messages:
        return
    used: set[str] = set()
    for dataset, method in product(plan.datasets, plan.methods):
        chosen = [metric.label for metric in plan.metrics_of(dataset, method)]
        used |= {f"datasets {dataset.name!r}", f"methods {method.label!r}"} if chosen else set()
        used |= {f"metrics {label!r}" for label in chosen}
        for label in dict.fromkeys(label for label in chosen if chosen.count(label) > 1):
            problems.add(
                f"metrics {label!r}",
                f"applies twice to {method.label!r} on {dataset.name!r}; give one of the two entries another label.",
            )
    everything = [f"datasets {name!r}" for name in names] + [f"methods {label!r}" for label in labels]
    for entry in dict.fromkeys(everything + [f"metrics {metric.label!r}" for metric in plan.metrics]):
        if entry not in used:
            problems.add(entry, "takes part in nothing; check the patterns in datasets and methods.")
    for metric in plan.metrics:
        for need in METRICS[metric.name].needs:
            lacking = [d.name for d in plan.datasets if matches(d.name, metric.datasets) and getattr(d, need) is None]
            if lacking:
                problems.add(
                    f"metrics {metric.label!r}",
                    f"needs {need}, which {', '.join(map(repr, lacking))} lack; name them with {need} =, or restrict the "
                    "metric with datasets =.",
                )
