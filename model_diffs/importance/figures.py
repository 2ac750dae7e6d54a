"""How importance spreads over the dimensions: of one layer, of all, and both modes side by side.

Drawn alike for some hundred neurons and for 65,536 features: counts on a log scale, dots that get
smaller as they get more, the largest ones named.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from model_diffs.core.figures import MLP, plt

NAMED = 5  # of the largest dimensions of a layer
_BINS = 80
_MANY = 4000  # dots above which they are drawn small
_HIGHLIGHT = "#c2185b"


class Shown(NamedTuple):
    """One array of one layer, or of each layer, and what its axis says."""

    label: str
    """Of the values: for example `mean_abs of values, Σ|v| = 896`."""
    heading: str
    layers: Mapping[int, np.ndarray]


def _largest(values: np.ndarray, count: int = NAMED) -> np.ndarray:
    """Places of the largest |v|, largest first; zeros are not among them."""
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    return order[values[order] != 0]


def _zeros(values: np.ndarray) -> str:
    zeros = int((values == 0).sum())
    return (
        f"{zeros:,} of {len(values):,} are exactly zero" if zeros else f"{len(values):,} dimensions"
    )


def _edges(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (
        np.linspace(min(low, 0.0), high, _BINS + 1)
        if high > low
        else np.array([low - 0.5, low + 0.5])
    )


def draw_histogram(axes: Axes, values: np.ndarray, label: str) -> None:
    """Counts on a log scale; where the largest lie is said."""
    counts, edges = np.histogram(values, _edges(values))
    axes.stairs(np.maximum(counts, 0.1), edges, baseline=0.1, fill=True, color=MLP, alpha=0.85)
    axes.set_yscale("log")
    axes.set_ylim(0.7, 2.0 * max(counts.max(), 1))
    axes.axvline(0.0, color="#999999", lw=0.8)
    axes.set_xlabel(label)
    axes.set_ylabel("dimensions (log scale)")
    top = ", ".join(str(i) for i in _largest(values))
    note = _zeros(values) + (f"\nlargest: {top}" if top else "")
    axes.text(0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=9)


def draw_scatter(axes: Axes, values: np.ndarray, label: str) -> None:
    """Each dimension a dot at its number; the largest named."""
    _dots(axes, np.arange(len(values)), values, 9.0)
    _name_largest(axes, values)
    axes.axhline(0.0, color="#999999", lw=0.8, zorder=0.5)
    axes.set_xlim(-0.01 * len(values), 1.06 * len(values))
    axes.set_xlabel("dimension")
    axes.set_ylabel(label)


def _dots(axes: Axes, x: np.ndarray, values: np.ndarray, size: float) -> None:
    """Dots; where there are many, small and pale ones but for the thousandth that is largest."""
    style: dict[str, Any] = {"color": MLP, "lw": 0, "rasterized": True}
    if len(values) <= _MANY:
        axes.scatter(x, values, s=size, alpha=0.55, **style)
        return
    top = _largest(values, len(values) // 1000)
    axes.scatter(x, values, s=1.2, alpha=0.3, **style)
    axes.scatter(x[top], values[top], s=size, alpha=0.8, **style)


def _name_largest(axes: Axes, values: np.ndarray) -> None:
    """Rings around the largest with their numbers, those that would cover another left out."""
    span = float(np.ptp(values)) or 1.0
    placed: list[tuple[float, float]] = []
    for place in _largest(values):
        x, y = place / len(values), float(values[place]) / span
        axes.scatter([place], [values[place]], s=26, facecolor="none", edgecolor=_HIGHLIGHT, lw=1.2)
        if all(abs(x - a) > 0.09 or abs(y - b) > 0.05 for a, b in placed):
            axes.annotate(
                *(str(place), (float(place), float(values[place]))),
                xytext=(5, 3),
                textcoords="offset points",
                fontsize=9,
                color=_HIGHLIGHT,
            )
            placed.append((x, y))


def draw_layers_histogram(axes: Axes, shown: Shown) -> Any:
    """A row per layer: how many dimensions have which value. Returns what a colour bar needs."""
    layers = list(shown.layers)
    everything = np.concatenate(list(shown.layers.values()))
    low, high = np.quantile(everything, [0.0005, 0.9995])
    low = min(float(low), 0.0)
    high = float(high) if high > low else low + 1.0
    edges = np.linspace(low, high, _BINS + 1)
    # What lies beyond the ends is counted in the last bins.
    counts = [np.histogram(v.clip(low, high), edges)[0] for v in shown.layers.values()]
    table = np.ma.masked_equal(np.array(counts), 0)
    rows = np.arange(len(layers) + 1) - 0.5
    mesh = axes.pcolormesh(edges, rows, table, norm=LogNorm(1, max(table.max(), 2)), cmap="viridis")
    axes.set_yticks(*_layer_ticks(layers))
    axes.set_ylabel("layer")
    axes.set_xlabel(f"{shown.label}; end bins hold all beyond")
    axes.grid(False)
    return mesh


def _layer_ticks(layers: Sequence[int]) -> tuple[list[int], list[str]]:
    step = -(-len(layers) // 16)
    places = list(range(0, len(layers), step))
    return places, [str(layers[i]) for i in places]


def draw_layers_scatter(axes: Axes, shown: Shown) -> None:
    """A column of dots per layer; its largest named where there is room."""
    jitter = np.random.default_rng(0)
    layers = list(shown.layers)
    for place, values in enumerate(shown.layers.values()):
        x = place + jitter.uniform(-0.32, 0.32, len(values))
        _dots(axes, x, values, 5.0)
        top = _largest(values, 1)
        if len(top) and len(layers) <= 32:
            at = (float(x[top[0]]), float(values[top[0]]))
            axes.annotate(
                *(str(top[0]), at), xytext=(0, 4 if at[1] > 0 else -11),
                textcoords="offset points", ha="center", fontsize=8, color=_HIGHLIGHT,
            )  # fmt: skip
    axes.axhline(0.0, color="#999999", lw=0.8, zorder=0.5)
    axes.set_xticks(*_layer_ticks(layers))
    axes.margins(y=0.08)
    axes.set_xlabel("layer (number: its largest dimension)")
    axes.set_ylabel(shown.label)


def _new(columns: int, rows: int, title: str, height: float) -> tuple[Figure, np.ndarray]:
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width := 9.0 if columns == 1 else 12.0, tall := height * rows + 0.5),
        squeeze=False,
    )
    # Fixed margins: finding them anew takes longer than drawing, and there are many figures.
    figure.subplots_adjust(
        *(1.0 / width, 0.62 / tall, 1 - 0.25 / width, 1 - 0.85 / tall),
        wspace=0.22,
        hspace=1.3 / height,
    )
    figure.suptitle(title, fontsize=12, y=1 - 0.2 / tall, va="top")
    return figure, axes


def layer_figure(title: str, kinds: Sequence[str], shown: Sequence[Shown], layer: int) -> Figure:
    """One layer: a row per kind (`histogram`, `scatter`), a column per array (modes)."""
    figure, grid = _new(len(shown), len(kinds), title, 3.9)
    for row, kind in zip(grid, kinds, strict=True):
        for axes, one in zip(row, shown, strict=True):
            draw = draw_histogram if kind == "histogram" else draw_scatter
            draw(axes, one.layers[layer], one.label)
            axes.set_title(one.heading)
    return figure


def layers_figure(title: str, kinds: Sequence[str], shown: Sequence[Shown]) -> Figure:
    """All layers: a row per kind, a column per array (modes)."""
    height = 3.2 + 0.1 * min(len(shown[0].layers), 40)
    figure, grid = _new(len(shown), len(kinds), title, height)
    for row, kind in zip(grid, kinds, strict=True):
        for axes, one in zip(row, shown, strict=True):
            if kind == "histogram":
                mesh = draw_layers_histogram(axes, one)
                figure.colorbar(mesh, ax=axes, label="dimensions")
            else:
                draw_layers_scatter(axes, one)
            axes.set_title(one.heading)
    return figure
