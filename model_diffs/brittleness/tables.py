"""The analysis as tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from model_diffs.brittleness import analysis, measures, power
from model_diffs.brittleness.analysis import Settings, complete
from model_diffs.brittleness.table import (
    DEVELOPMENT,
    LOCKED,
    REMOVAL,
    SECONDARY,
    TARGET,
    predictors_of,
)

RHOS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
BASELINES = (0.0, 0.3, 0.6, 0.9)


def primary_table(
    known: pd.DataFrame, new: pd.DataFrame, settings: Settings, final: bool
) -> pd.DataFrame:
    """Rows per target, the registered one first: value, ends of its interval, p, verdict.

    The verdict is there only where it is `final`: all locked worlds are attacked. The secondary
    targets are analysed on models that have the registered one.
    """
    part = "locked" if (new["part"] == LOCKED).any() else "development"
    rows = []
    for target in (TARGET, *(one for one in SECONDARY if one in new)):
        fitted, scored = (
            one.assign(**{TARGET: one[target].where(one[TARGET].notna())}) for one in (known, new)
        )
        if any(complete(one, settings.predictors).empty for one in (fitted, scored)):
            continue
        found = analysis.primary(fitted, scored, settings)
        same = {"target": target, "worlds": found.worlds, "models": found.models, "part": part}
        values = {"rho": found.rho, "rho_baseline": found.baseline, "gain": found.gain,
                  "partial": found.partial, "rho_both": found.both,
                  "gain_both": found.both_gain}  # fmt: skip
        ps = {"rho": {"p": found.p, "p_family": found.p_family}}
        rows += [{"statistic": name, **one._asdict(), **ps.get(name, {}), **same}
                 for name, one in values.items()]  # fmt: skip
        if target == TARGET and final:
            rows.append({"statistic": "confirmed", "value": float(found.confirmed), **same})
    return pd.DataFrame(rows)


def _out_of_family(known: pd.DataFrame, new: pd.DataFrame, columns: Sequence[str], ridge: float
) -> Any:  # fmt: skip
    """For each row of `new` with all columns: a prediction without its family; else NaN."""
    found = np.full(len(new), np.nan)
    ready = new[[*columns]].notna().all(axis=1).to_numpy()
    fitted = complete(known, columns)
    found[ready] = analysis.out_of_family(fitted, new[ready], columns, ridge)
    return found


def predictions(known: pd.DataFrame, new: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """Every attacked model of `new`, controls too: predicted by the signature and by strength."""
    own = new.dropna(subset=[TARGET])
    return own[["world", "model", "role", TARGET]].assign(
        predicted=_out_of_family(known, own, settings.predictors, settings.ridge),
        predicted_by_strength=_out_of_family(known, own, settings.baseline, settings.ridge),
    )


def measures_table(known: pd.DataFrame, new: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """A row per measure, the largest |partial ρ| first: on the removals of `new`, given the score
    of strength; spreads and deep models over both."""
    strength = np.full(len(new), np.nan)
    ready = new[[*settings.baseline]].notna().all(axis=1).to_numpy()
    strength[ready] = analysis.scores(
        complete(known, settings.baseline), new[ready], settings.baseline, settings.ridge
    )
    every = pd.concat([known, new]).drop_duplicates(["world", "model"], ignore_index=True)
    rows = [
        measures.measure_row(new.reset_index(drop=True), every, column, strength, settings)
        for column in predictors_of(new)
        if new.loc[new["role"] == REMOVAL, column].notna().any()
    ]
    found = pd.DataFrame(rows)
    return found.sort_values("partial_rho", key=abs, ascending=False, ignore_index=True)


def power_table(rows: pd.DataFrame, studies: int, settings: Settings) -> pd.DataFrame:
    """The registered rule under assumed truths: five worlds, as many families as a development
    world has at the median."""
    own = complete(rows, [*settings.predictors, *settings.baseline])
    families = int(own[own["part"] == DEVELOPMENT].groupby("world").size().median())
    found = [
        power.simulate(power.Assumed(rho, baseline), 5, families, studies, 200, settings.seed)
        for baseline in BASELINES
        for rho in RHOS
    ]
    return pd.DataFrame(found).assign(worlds=5, families=families, studies=studies)
