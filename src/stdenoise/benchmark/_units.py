"""What a benchmark consists of: data sets, methods and metrics, and the units of work that they make."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any

from stdenoise.benchmark._metrics import METRICS

FIT = "fit"
"""Name of the units that denoise all counts once and apply every metric that needs no other fit."""


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Parameters
    ----------
    name, group
        How tables call it, and the column of the report it is averaged in.
    kind, source
        Which function or file makes it (`"simulate"`, `"tissue"`, `"load"` or `"path"`), with which arguments.
    graph
        Arguments of `stdenoise.pp.spatial_graph`; `None` keeps a graph that is there, and makes the default one otherwise.
    n_top_genes
        Model so many highly variable genes; all where it is `None`.
    labels, truth
        Column of `obs`, and layer, for the metrics that need them.
    """

    name: str
    group: str
    kind: str
    source: Mapping[str, Any]
    graph: Mapping[str, Any] | None = None
    n_top_genes: int | None = None
    labels: str | None = None
    truth: str | None = None

    @property
    def hash(self) -> str:
        """Depends on everything that determines the prepared file."""
        source = {key: value for key, value in self.source.items() if self.kind != "path" or key == "content"}
        return digest([self.kind, source, self.graph, self.n_top_genes])

    @property
    def file(self) -> str:
        """Name of the prepared file."""
        return f"{self.hash}.h5ad"


@dataclass(frozen=True)
class Method:
    """One method with its parameters; `settings` are these with every default filled in."""

    label: str
    name: str
    params: Mapping[str, Any]
    settings: Mapping[str, Any]
    datasets: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Metric:
    """One metric with its arguments; `scores` are those that the report shows."""

    label: str
    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    datasets: tuple[str, ...] = ("*",)
    methods: tuple[str, ...] = ("*",)
    scores: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Unit:
    """What is done, and stored, as a whole: one fit with its metrics, or one metric that fits by itself."""

    dataset: Dataset
    method: Method
    seed: int
    group: str
    metrics: tuple[Metric, ...]

    @property
    def hash(self) -> str:
        """Depends on everything that determines the numbers, and on no name of a data set or method."""
        needed = {need: getattr(self.dataset, need) for need in ("labels", "truth")}
        return digest(
            [
                self.dataset.hash,
                self.method.name,
                self.method.settings,
                self.seed,
                self.group == FIT,
                [[metric.label, metric.name, metric.args] for metric in self.metrics],
                needed,
            ]
        )

    @property
    def file(self) -> str:
        """Name of the file with the results."""
        parts = (self.dataset.name, self.method.label, str(self.seed), self.group)
        return f"{'-'.join(map(slug, parts))}-{self.hash}.json"

    def __str__(self) -> str:
        """Name the unit for people."""
        return f"{self.dataset.name}, {self.method.label}, seed {self.seed}, {self.group}"


@dataclass(frozen=True)
class Plan:
    """A checked config."""

    name: str
    seeds: tuple[int, ...]
    datasets: tuple[Dataset, ...]
    methods: tuple[Method, ...]
    metrics: tuple[Metric, ...]

    def units(self) -> list[Unit]:
        """All units of work, in the order of the config."""
        out = []
        for dataset in self.datasets:
            for method in self.methods:
                chosen = self.metrics_of(dataset, method)
                groups: dict[str, tuple[Metric, ...]] = {}
                fit = tuple(metric for metric in chosen if not METRICS[metric.name].refits)
                if fit:
                    groups[FIT] = fit
                groups |= {metric.label: (metric,) for metric in chosen if METRICS[metric.name].refits}
                out += [Unit(dataset, method, seed, group, m) for seed in self.seeds for group, m in groups.items()]
        return out

    def metrics_of(self, dataset: Dataset, method: Method) -> list[Metric]:
        """Metrics that apply to a method on a data set."""
        if not matches(dataset.name, method.datasets):
            return []
        return [
            metric
            for metric in self.metrics
            if matches(dataset.name, metric.datasets) and matches(method.label, metric.methods)
        ]

    def record(self) -> dict[str, Any]:
        """Return what a report needs to know, for `plan.json`: names and groups by the hash of each unit."""
        return {
            "name": self.name,
            "version": version("stdenoise"),
            "scores": {metric.label: list(metric.scores) for metric in self.metrics},
            "units": [
                {
                    "hash": unit.hash,
                    "dataset": unit.dataset.name,
                    "columns": unit.dataset.group,
                    "method": unit.method.label,
                    "method_name": unit.method.name,
                    "seed": unit.seed,
                    "group": unit.group,
                    "metrics": {metric.label: metric.name for metric in unit.metrics},
                }
                for unit in self.units()
            ],
        }


def job_of(unit: Unit, device: str) -> dict[str, Any]:
    """Describe a unit for the process that does it."""
    return {
        "hash": unit.hash,
        "file": unit.file,
        "title": str(unit),
        "group": unit.group,
        "data": unit.dataset.file,
        "subset": unit.dataset.n_top_genes is not None,
        "library_key": (unit.dataset.graph or {}).get("library_key"),
        "labels": unit.dataset.labels,
        "truth": unit.dataset.truth,
        "method": unit.method.name,
        "params": dict(unit.method.params),
        "seed": unit.seed,
        "metrics": [asdict(metric) for metric in unit.metrics],
        "device": device,
    }


def preparation_of(dataset: Dataset) -> dict[str, Any]:
    """Describe the making of a data set for the process that does it."""
    return {"prepare": asdict(dataset), "file": dataset.file, "title": dataset.name, "hash": dataset.hash}


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name equals one of the patterns, or fits it."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def slug(name: str) -> str:
    """Turn a label into part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name).strip("_.")[:60]


def digest(value: Any) -> str:
    """Hash a value of plain types, together with the version of the package."""
    text = json.dumps([version("stdenoise"), value], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
