"""One look for all figures: panels of lines over layers, and grouped bars.

Base grey, filtered blue, each unlearning method a colour of its own; forget solid, retain dashed;
an interval is a band, zero or chance a thin line.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen is needed, and none is touched
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model_diffs.core.methods import METHODS, method_of

if TYPE_CHECKING:
    import pandas as pd

BASE = "#6f6f6f"
FILTERED = "#1f6fb4"
ATTENTION = "#b4591f"
MLP = "#2f7d5b"
COMPONENT_COLOURS = {
    "qkv": "#b4591f",
    "attn_out": "#e0a03c",
    "mlp_in": "#2f7d5b",
    "mlp_gate": "#7ab648",
    "mlp_out": "#2b6fa8",
    "router": "#8e5ba6",
    "embed": "#555555",
    "head": "#a5a5a5",
}
CONTROLS = {
    "benign_agents": "#7a7a7a",
    "benign_kept": "#cbcbcb",
    "benign": "#2e2e2e",
    "noise": "#9b9b9b",
    "reseeded": "#565656",
    "scrambled": "#b8b8b8",
}
"""Greys of models that are trained, or changed, without unlearning, by words of their name."""
DASHED = (0, (2.5, 1.2))
"""Lines of controls, where lines stand for models."""
OTHERS = ["#9c4f96", "#5b8c2a", "#b8860b", "#a0522d", "#008080", "#cd5c5c"]
STYLES = {"forget": "-", "retain": "--"}
STATES = "hidden state (0 = embedding output)"
"""Label of the axis of hidden states."""
WIDTH_INCHES = 12.0
DPI = 100  # 12 inches make the 1200 pixels that figures are read at

plt.rcParams.update(
    {
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titley": 1.0,  # nothing stands above axes; to look costs a fifth of a figure
        "axes.labelsize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 10,
        "svg.hashsalt": "model-diffs",  # the same figure gives the same bytes
    }
)


class Line(NamedTuple):
    """One line of a panel, with its interval where there is one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    style: str = "-"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


class Panel(NamedTuple):
    """One set of axes over layers."""

    title: str
    ylabel: str
    lines: Sequence[Line]
    reference: float | None = None
    """Zero or chance: drawn as a thin line and named."""
    reference_label: str = ""
    log: bool = False
    from_zero: bool = False
    """Magnitudes start at zero, so that heights can be compared."""
    xlabel: str = "block"
    log_steps: bool = False
    """The axis is log(1 + x), for steps of training."""


def model_colour(label: str, others: Sequence[str] = ()) -> str:
    """Colour of a changed model; `others` are the labels of one figure, to keep unknown ones apart.

    Filtered models are known by `filter` in their name, controls by words of CONTROLS, unlearned
    ones by their method.
    """
    for words, grey in CONTROLS.items():
        if f"_{words}_" in f"_{label.replace('-', '_')}_":
            return grey
    method = method_of(label)
    if method:
        return METHODS[method].colour
    if "filter" in label and "unfilter" not in label:
        return FILTERED
    position = sorted(others).index(label) if label in others else 0
    return OTHERS[position % len(OTHERS)]


def column_line(
    table: "pd.DataFrame", column: str, label: str, colour: str, style: str = "-", x: str = "layer"
) -> Line:
    """The line of a table's column over its layers, with `_low` and `_high` where they stand.

    Empty cells are gaps; where all are empty the line has no point.
    """
    rows = table if table[column].notna().any() else table.iloc[:0]
    ends = (f"{column}_low", f"{column}_high")
    band = [rows[end].tolist() if end in rows else None for end in ends]
    return Line(label, rows[x].tolist(), rows[column].tolist(), colour, style, *band)


def _draw_panel(axes: Axes, panel: Panel, legend: bool) -> None:
    if panel.reference is not None:
        axes.axhline(panel.reference, color="#999999", lw=0.9, zorder=0)
        if panel.reference_label:
            place, units = (0.995, panel.reference), ("axes fraction", "data")
            text = axes.annotate(panel.reference_label, place, xycoords=units)
            text.set(ha="right", va="bottom", fontsize=9, color="#777777")
    for line in panel.lines:
        (drawn,) = axes.plot(line.x, line.y, line.style, color=line.colour, label=line.label)
        drawn.set(marker="o" if len(line.x) <= 40 else "", markersize=4, linewidth=1.8)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.18, lw=0)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.log_steps:
        axes.set_xscale("function", functions=(np.log1p, np.expm1))
        axes.set_xticks(_steps_apart({x for line in panel.lines for x in line.x}))
    if panel.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 30:  # within a decade or so, 0.7 reads better than 7 × 10⁻¹
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    if legend:
        axes.legend(loc="best")


def _steps_apart(steps: Iterable[float]) -> list[float]:
    """Of steps on an axis of log(1 + x), those whose labels do not touch; the last one always."""
    kept: list[float] = []
    for step in sorted(steps, reverse=True):
        if not kept or np.log1p(kept[-1]) - np.log1p(step) >= 0.1 * np.log1p(kept[0]):
            kept.append(step)
    return kept[::-1]


def layer_figure(
    title: str, panels: Sequence[Panel], columns: int = 2, legend: str = "each"
) -> Figure:
    """Panels of lines over layers under one title; lines without a point are left out, and panels
    without a line.

    `legend`: `each` panel its own, or one `below` all where they show the same lines. Raises
    ValueError where no panel has a line.
    """
    panels = [one._replace(lines=[line for line in one.lines if len(line.x)]) for one in panels]
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        raise ValueError(f"nothing to draw in {title!r}")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (WIDTH_INCHES if columns > 1 else 9.0, 4.2 * rows + 0.6)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for cell, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(cell, panel, legend == "each")
    if legend != "each":
        shown: dict[str, Artist] = {}
        for cell in grid.flat:
            handles, labels = cell.get_legend_handles_labels()
            shown |= dict(zip(labels, handles, strict=True))
        # As many columns as the width has room for.
        ncols = min(6, len(shown), max(1, 150 // (6 + max(map(len, shown)))))
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=ncols)
    for cell in grid.flat[len(panels) :]:
        cell.remove()
    figure.suptitle(title, fontsize=13)
    return figure
