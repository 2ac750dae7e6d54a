"""How importance spreads over the dimensions: of one layer, of all, and both modes side by side.

The same figures serve some hundred neurons and 65,536 features: counts on a log scale, smaller dots
where there are many, the largest named.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from model_diffs.core.figures import MLP, plt

_NAMED = 5  # of the largest dimensions of a layer
_BINS = 80
_MANY = 4000  # dots above which they are drawn small
_HIGHLIGHT = "#c2185b"
_ZERO_LINE: dict[str, Any] = {"color": "#999999", "lw": 0.8, "zorder": 0.5}


class Shown(NamedTuple):
    """One array of each layer, and what its axis says."""

    label: str
    """Of the values: for example `mean_abs, normalised by sum_abs`."""
    heading: str
    layers: Mapping[int, np.ndarray]


def _largest(values: np.ndarray, count: int = _NAMED) -> np.ndarray:
    """Places of the largest |v|, largest first; zeros are not among them."""
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    return order[values[order] != 0]


def _edges(low: float, high: float) -> np.ndarray:
    """Of the bins: from zero or below, of some width."""
    low = min(float(low), 0.0)
    return np.linspace(low, float(high) if high > low else low + 1.0, _BINS + 1)


def _dots(axes: Axes, x: np.ndarray, values: np.ndarray, size: float) -> None:
    """Dots; where there are many, small and pale ones except for the largest thousandth."""
    style: dict[str, Any] = {"color": MLP, "lw": 0, "rasterized": True}
    many = len(values) > _MANY
    axes.scatter(x, values, s=1.2 if many else size, alpha=0.3 if many else 0.55, **style)
    if many:
        top = _largest(values, len(values) // 1000)
        axes.scatter(x[top], values[top], s=size, alpha=0.8, **style)


# ── one layer ─────────────────────────────────────────────────────────────────────────────────────


def _layer_histogram(axes: Axes, values: np.ndarray, label: str) -> None:
    counts, edges = np.histogram(values, _edges(values.min(), values.max()))
    axes.stairs(np.maximum(counts, 0.1), edges, baseline=0.1, fill=True, color=MLP, alpha=0.85)
    axes.set_yscale("log")
    axes.set_ylim(0.7, 2.0 * max(counts.max(), 1))
    axes.axvline(0.0, color="#999999", lw=0.8)
    axes.set_xlabel(label)
    axes.set_ylabel("dimensions (log scale)")
    zeros, note = int((values == 0).sum()), f"{len(values):,} dimensions"
    if zeros:
        note = f"{zeros:,} of {len(values):,} are exactly zero"
    if top := _largest(values).tolist():
        note += f"\nlargest: {', '.join(map(str, top))}"
    axes.text(0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=9)


def _layer_scatter(axes: Axes, values: np.ndarray, label: str) -> None:
    """Each dimension a dot at its number; the largest ringed, and named where there is room."""
    _dots(axes, np.arange(len(values)), values, 9.0)
    top = _largest(values)
    axes.scatter(top, values[top], s=26, facecolor="none", edgecolor=_HIGHLIGHT, lw=1.2)
    at = np.stack([top / len(values), values[top] / (float(np.ptp(values)) or 1.0)], axis=1)
    named: list[int] = []
    for i, place in enumerate(top):
        if all((np.abs(at[i] - at[named]) > (0.09, 0.05)).any(axis=1)):
            _name(axes, place, (float(place), float(values[place])), (5, 3), fontsize=9)
            named.append(i)
    axes.axhline(0.0, **_ZERO_LINE)
    axes.set_xlim(-0.01 * len(values), 1.06 * len(values))
    axes.set_xlabel("dimension")
    axes.set_ylabel(label)


def _name(
    axes: Axes, place: int, at: tuple[float, float], shift: tuple[int, int], **text: Any
) -> None:
    axes.annotate(
        str(place), at, xytext=shift, textcoords="offset points", color=_HIGHLIGHT, **text
    )


# ── all layers ────────────────────────────────────────────────────────────────────────────────────


def _layers_histogram(axes: Axes, shown: Shown) -> None:
    """A row per layer: how many dimensions have which value, as a colour."""
    layers = list(shown.layers)
    low, high = np.quantile(np.concatenate(list(shown.layers.values())), [0.0005, 0.9995])
    edges = _edges(low, high)
    counts = [np.histogram(v.clip(edges[0], edges[-1]), edges)[0] for v in shown.layers.values()]
    table = np.ma.masked_equal(np.array(counts), 0)
    rows = np.arange(len(layers) + 1) - 0.5
    mesh = axes.pcolormesh(edges, rows, table, norm=LogNorm(1, max(table.max(), 2)), cmap="viridis")
    axes.figure.colorbar(mesh, ax=axes, label="dimensions")
    axes.set_yticks(*_ticks(layers))
    axes.set_ylabel("layer")
    axes.set_xlabel(f"{shown.label}; end bins hold all beyond")
    axes.grid(False)


def _ticks(layers: Sequence[int]) -> tuple[list[int], list[str]]:
    places = list(range(0, len(layers), -(-len(layers) // 16)))
    return places, [str(layers[i]) for i in places]


def _layers_scatter(axes: Axes, shown: Shown) -> None:
    """A column of dots per layer; its largest named where there is room."""
    jitter, layers = np.random.default_rng(0), list(shown.layers)
    for place, values in enumerate(shown.layers.values()):
        x = place + jitter.uniform(-0.32, 0.32, len(values))
        _dots(axes, x, values, 5.0)
        for top in _largest(values, 1) if len(layers) <= 32 else ():
            at = (float(x[top]), float(values[top]))
            _name(axes, top, at, (0, 4 if at[1] > 0 else -11), ha="center", fontsize=8)
    axes.axhline(0.0, **_ZERO_LINE)
    axes.set_xticks(*_ticks(layers))
    axes.margins(y=0.08)
    axes.set_xlabel("layer (number: its largest dimension)")
    axes.set_ylabel(shown.label)


_OF_LAYER = {"histogram": _layer_histogram, "scatter": _layer_scatter}
_OF_ALL = {"histogram": _layers_histogram, "scatter": _layers_scatter}
KINDS = tuple(_OF_LAYER)


def draw(
    title: str, kinds: Sequence[str], shown: Sequence[Shown], layer: int | None = None
) -> Figure:
    """A row per kind (of KINDS), a column per array (modes): of one layer, or of all (None)."""
    columns, rows = len(shown), len(kinds)
    height = 3.9 if layer is not None else 3.2 + 0.1 * min(len(shown[0].layers), 40)
    width, tall = 9.0 if columns == 1 else 12.0, height * rows + 0.5
    figure, grid = plt.subplots(rows, columns, figsize=(width, tall), squeeze=False)
    # Fixed margins: computing them takes longer than drawing, and there are many figures.
    figure.subplots_adjust(left=1.0 / width, right=1 - 0.25 / width, wspace=0.22)
    figure.subplots_adjust(bottom=0.62 / tall, top=1 - 0.85 / tall, hspace=1.3 / height)
    figure.suptitle(title, fontsize=12, y=1 - 0.2 / tall, va="top")
    for row, kind in zip(grid, kinds, strict=True):
        for axes, one in zip(row, shown, strict=True):
            if layer is None:
                _OF_ALL[kind](axes, one)
            else:
                _OF_LAYER[kind](axes, one.layers[layer], one.label)
            axes.set_title(one.heading)
    return figure
