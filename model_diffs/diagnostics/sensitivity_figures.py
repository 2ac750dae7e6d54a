"""Step 12's figure: sensitivity of two models on both splits, and how it changed."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_diffs.core.figures import BASE, WIDTH_INCHES, plt

TITLES = {
    "lipschitz": ("Largest response found", "max ‖f(x+δ) − f(x)‖ / ‖δ‖"),
    "jacobian_norm": ("Largest response possible", "‖∂f/∂x‖₂"),
    "gradient_norm": ("Pull of the loss", "‖∂loss/∂x‖"),
    "output_variance": ("Spread of the logits", "variance over δ"),
}


def sensitivity_figure(
    table: pd.DataFrame, change: dict[str, Any], models: tuple[str, str], colour: str, title: str
) -> Figure:
    """Means of both models on both splits above, the relative change of each metric below.

    `table` holds the rows of lipschitzness_summary.csv, `models` the short names of base and
    changed model.
    """
    names = dict(zip(table["model"].unique(), models, strict=False))
    colours = dict(zip(names, (BASE, colour), strict=False))
    figure, axes = plt.subplot_mosaic(
        [list(TITLES), ["change"] * len(TITLES)],
        figsize=(WIDTH_INCHES, 7.6),
        layout="constrained",
        height_ratios=(1.0, 0.9),
    )
    for metric in TITLES:
        _draw_levels(axes[metric], table, metric, names, colours)
    axes["lipschitz"].legend(loc="lower left", fontsize=9)
    _draw_changes(axes["change"], change, colour)
    figure.suptitle(f"Sensitivity to the input: {title}", fontsize=13)
    return figure


def _draw_levels(
    axes: Axes,
    table: pd.DataFrame,
    metric: str,
    names: dict[str, str],
    colours: dict[str, str],
) -> None:
    """One metric: mean over texts and interval, a place per split and a colour per model."""
    title, ylabel = TITLES[metric]
    splits = list(table["data"].unique())
    for position, (model, name) in enumerate(names.items()):
        rows = table[table["model"] == model].set_index("data").loc[splits]
        mean = rows[f"avg_{metric}"].astype(float)
        low, high = (rows[f"avg_{metric}_{end}"].astype(float) for end in ("low", "high"))
        x = [split + 0.24 * (position - 0.5) for split in range(len(splits))]
        axes.errorbar(
            x,
            mean,
            [mean - low, high - mean],
            fmt="o",
            color=colours[model],
            label=name,
            capsize=3,
            ms=6,
        )
    axes.set_xticks(range(len(splits)), [f"{split}\ntexts" for split in splits])
    axes.set_xlim(-0.6, len(splits) - 0.4)
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.set_title(title)
    axes.set_ylabel(ylabel)


def _draw_changes(axes: Axes, change: dict[str, Any], colour: str) -> None:
    """Each metric of B over that of A with its paired interval; forget filled, retain open."""
    for position, (split, face) in enumerate({"forget": colour, "retain": "white"}.items()):
        found = [
            (place, change[split][metric]["relative"])
            for place, metric in enumerate(TITLES)
            if "relative" in change[split].get(metric, {})
        ]
        mean = [1 + f["mean"] for _, f in found]
        ends = [[f["mean"] - f["low"] for _, f in found], [f["high"] - f["mean"] for _, f in found]]
        x = [place + 0.2 * (position - 0.5) for place, _ in found]
        axes.errorbar(
            x, mean, ends, fmt="o", label=f"{split} texts", color=colour, mfc=face, capsize=3, ms=7
        )
    axes.axhline(1, color="#999999", lw=0.9, zorder=0)
    axes.text(len(TITLES) - 0.42, 1, "unchanged", ha="right", va="bottom", fontsize=9, color="#777")
    low, high = axes.get_ylim()
    # Over more than a decade small changes would all lie on the line.
    if high > 10 or low < 0.1:
        axes.set_yscale("log")
    axes.set_xticks(range(len(TITLES)), [title for title, _ in TITLES.values()])
    axes.set_xlim(-0.6, len(TITLES) - 0.4)
    axes.grid(axis="x", visible=False)
    axes.set_title("Changed model over base, paired over texts")
    axes.set_ylabel("mean of B / mean of A")
    axes.legend(loc="best")
