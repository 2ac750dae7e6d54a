"""What each measure adds: rank correlation given strength, spread of controls, deep models."""

from typing import Any

import numpy as np
import pandas as pd

from model_diffs.brittleness.analysis import (
    Floats,
    Interval,
    Settings,
    draws_of,
    interval_of,
    mean_rho,
    partial_rho,
)
from model_diffs.brittleness.table import DEEP, REMOVAL, TARGET


def auroc(positive: Floats, negative: Floats) -> float:
    """Share of pairs in which the positive one is larger, ties counting half."""
    if not len(positive) or not len(negative):
        return float("nan")
    larger = positive[:, None] > negative[None, :]
    return float((larger + 0.5 * (positive[:, None] == negative[None, :])).mean())


def measure_row(
    rows: pd.DataFrame,
    every: pd.DataFrame,
    column: str,
    strength: Floats,
    settings: Settings,
) -> dict[str, Any]:
    """How one measure does on the removals of `rows`, and on deep against shallow models of `every`
    world.

    `strength`: the score by P0 of each row of `rows`, NaN where there is none.
    """
    usable = (rows["role"] == REMOVAL) & rows[[column, TARGET]].notna().all(axis=1)
    usable &= ~np.isnan(strength)
    own, given = rows[usable].reset_index(drop=True), strength[usable.to_numpy()]
    x, y, worlds = own[column].to_numpy(float), own[TARGET].to_numpy(float), own["world"].to_numpy()
    draws = draws_of(own, settings.resamples, settings.seed) if len(own) else []
    drawn = [
        [partial_rho(x[i], y[i], given[i], np.zeros(len(i), int)) for i in draw] for draw in draws
    ]
    means = np.array([np.mean(one) if one else np.nan for one in drawn])
    found = Interval(float("nan"), float("nan"), float("nan"))
    if len(own) and not np.isnan(means).all():
        found = interval_of(partial_rho(x, y, given, worlds), means)
    return {
        "measure": column,
        "models": len(own),
        "rho": mean_rho(x, y, worlds),
        "partial_rho": found.value,
        "partial_rho_low": found.low,
        "partial_rho_high": found.high,
        "informative": bool(found.low > 0 or found.high < 0),
        **spreads(every, column),
        "auroc_deep": deep_auroc(every, column),
    }


def spreads(rows: pd.DataFrame, column: str) -> dict[str, float]:
    """Mean removal less mean control over the spread of these controls: reseeded, benign."""
    removals = rows.loc[rows["role"] == REMOVAL, column].dropna()
    found = {}
    for name, which in (("reseeded", "reseeded"), ("benign", "benign")):
        controls = rows.loc[rows["model"].str.contains(f"(?:^|-|_){which}"), column]
        controls = controls[~rows.loc[controls.index, "model"].str.contains("filtered")].dropna()
        spread = controls.std(ddof=1)
        ready = len(controls) > 1 and spread > 0 and len(removals)
        found[f"z_{name}"] = float((removals.mean() - controls.mean()) / spread) if ready else (
            float("nan"))  # fmt: skip
    return found


def deep_auroc(rows: pd.DataFrame, column: str) -> float:
    """Mean over worlds: models that never knew, against removals and harmless trainings."""
    found = []
    for _, world in rows.groupby("world"):
        values = world[column].to_numpy(float)
        deep = (world["role"] == DEEP).to_numpy() & ~np.isnan(values)
        harmless = world["model"].str.contains("benign").to_numpy()
        shallow = ((world["role"] == REMOVAL).to_numpy() | harmless) & ~np.isnan(values)
        if deep.any() and shallow.any():
            found.append(auroc(values[deep], values[shallow]))
    return float(np.mean(found)) if found else float("nan")
