"""Predicted against true: a colour per family, controls marked."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from model_diffs.brittleness.table import CONTROL, DEEP, REMOVAL, TARGET

MARKS = {REMOVAL: "o", CONTROL: "s", DEEP: "^"}


def draw(rows: pd.DataFrame, title: str) -> Figure:
    """`rows`: `model`, `role`, `predicted`, the target."""
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    axis = figure.subplots()
    families = sorted(rows.loc[rows["role"] == REMOVAL, "model"].unique())
    shades = [f"C{i}" for i in range(10)] + ["#1b9e77", "#66a61e", "#a6761d", "#000000"]
    colours = dict(zip(families, shades, strict=False))
    groups = (
        rows["model"]
        .str.removeprefix("miniature-")
        .where(rows["role"] == REMOVAL, rows["role"].map({CONTROL: "controls", DEEP: "never knew"}))
    )
    for (role, name), own in rows.groupby(["role", groups], sort=False):
        removal = role == REMOVAL
        axis.scatter(
            own["predicted"],
            own[TARGET],
            marker=MARKS[str(role)],
            s=34,
            color=colours.get(str(own["model"].iloc[0]), "#888888"),
            facecolor=None if removal else "none",
            label=str(name),
        )
    ends = rows[["predicted", TARGET]].to_numpy(float)
    low, high = np.nanmin(ends), np.nanmax(ends)
    axis.plot([low, high], [low, high], color="#bbbbbb", linewidth=0.8, zorder=0)
    axis.set_xlabel("predicted before the attack")
    axis.set_ylabel("recovered area over the scrambled model's")
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure
