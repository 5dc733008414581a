"""Figures of a benchmark: box plots of scores, ranks, time and memory."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from stdenoise.benchmark._tables import in_order

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_LINE = 0.32
_COLOURS = 10


def _figure(n_lines: int, n_panels: int = 1) -> tuple[Figure, Any]:
    """Make an empty figure with a line per method, without touching the user's plots or backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 5 * n_panels, 1.4 + _LINE * max(n_lines, 3)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, n_panels, sharey=True, squeeze=False)[0]


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _name_lines(axes: Any, methods: list[str]) -> None:
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def box_plot(rows: pd.DataFrame, *, title: str, note: str) -> bytes:
    """Draw one score by method over data sets and seeds, each a dot in the colour of its column."""
    from matplotlib import colormaps

    methods, columns = in_order(rows["method"]), in_order(rows["columns"])
    figure, (axes,) = _figure(max(len(methods), len(columns) // 2))
    finite = rows[np.isfinite(rows["value"])]
    values = [finite.loc[finite["method"] == method, "value"].to_numpy() for method in methods]
    axes.boxplot(
        values,
        positions=range(len(methods)),
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        manage_ticks=False,
    )
    offsets = np.linspace(-0.2, 0.2, len(columns)) if len(columns) > 1 else [0.0]
    for i, (column, offset) in enumerate(zip(columns, offsets, strict=True)):
        part = finite[finite["columns"] == column]
        lines = np.array([methods.index(method) for method in part["method"]])
        colour = colormaps["tab10"](i % _COLOURS)
        axes.plot(part["value"], lines + offset, "o", markersize=4, alpha=0.7, color=colour, label=column)
    _name_lines(axes, methods)
    axes.set_title(title)
    axes.set_xlabel(note)
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def rank_plot(ranks: pd.DataFrame) -> bytes:
    """Draw the mean rank of each method under each ranked score."""
    from matplotlib import colormaps

    methods = list(map(str, ranks.index))
    figure, (axes,) = _figure(max(len(methods), 1 + len(ranks.columns) // 2))
    for i, score in enumerate(ranks.columns):
        marker = "osDv^<>P*X"[i // _COLOURS % 10]
        colour = colormaps["tab10"](i % _COLOURS)
        axes.plot(ranks[score], range(len(methods)), marker, alpha=0.7, color=colour, label=score)
    axes.plot(ranks.mean(axis=1), range(len(methods)), "|", markersize=16, color="black", label="mean")
    _name_lines(axes, methods)
    axes.set_xlabel("mean rank over data sets (1 is best)")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _png(figure)


def cost_plot(cost: pd.DataFrame) -> bytes:
    """Draw seconds and peak memory of each fit."""
    methods = in_order(cost["method"])
    figure, panels = _figure(len(methods), 2)
    lines = np.array([methods.index(method) for method in cost["method"]])
    for axes, (name, text) in zip(
        panels, (("seconds", "seconds per fit"), ("peak_memory_gb", "peak memory, GB")), strict=True
    ):
        axes.plot(cost[name], lines, "o", alpha=0.6)
        if name == "seconds":
            axes.set_xscale("log")
        else:
            axes.set_xlim(left=0)
        axes.set_xlabel(text)
        _name_lines(axes, methods)
    return _png(figure)
