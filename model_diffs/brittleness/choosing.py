"""Which three measures predict best in the development worlds, before anything is registered.

Each candidate is scored as the locked worlds will be, with one development world after the other in
their place: fitted on the others, without the family that is predicted. Of measures that say how
far a model went, at most one is in a triple: three of them would be strength against strength.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from model_diffs.brittleness.analysis import complete, fit, mean_rho
from model_diffs.brittleness.table import TARGET

KEPT = 14
"""Single measures that triples are made of."""
STRENGTH = frozenset({
    "start_accuracy", "start_margin", "statement_accuracy", "statement_margin", "hazard_accuracy",
    "known_accuracy", "general_accuracy", "adjacent_accuracy", "forget_nll", "rate_sum",
    "relative_change",
})  # fmt: skip
"""What a model still answers, and how far its weights were moved."""


def held_out_rho(rows: pd.DataFrame, columns: Sequence[str], ridge: float) -> float:
    """Mean ρ over development worlds, each and each family left out of the fit in turn."""
    found = np.full(len(rows), np.nan)
    world, family = rows["world"].to_numpy(), rows["model"].to_numpy()
    for i in range(len(rows)):
        known = rows[(world != world[i]) & (family != family[i])]
        found[i] = fit(known, columns, ridge).score(rows.iloc[[i]])[0]
    return mean_rho(found, rows[TARGET].to_numpy(float), world)


def usable(rows: pd.DataFrame, candidates: Sequence[str]) -> list[str]:
    """Candidates that every attacked removal has, and that are not constant."""
    own = complete(rows, [])
    return [c for c in candidates if own[c].notna().all() and own[c].nunique() > 2]


def singles(rows: pd.DataFrame, candidates: Sequence[str], ridge: float) -> pd.DataFrame:
    """Each candidate alone, the best first: rank correlation within worlds, and held out."""
    own = complete(rows, candidates)
    y, worlds = own[TARGET].to_numpy(float), own["world"].to_numpy()
    found = [
        {
            "predictors": column,
            "rho": mean_rho(own[column].to_numpy(float), y, worlds),
            "held_out_rho": held_out_rho(own, [column], ridge),
        }
        for column in candidates
    ]
    return pd.DataFrame(found).sort_values("held_out_rho", ascending=False, ignore_index=True)


def triples(rows: pd.DataFrame, candidates: Sequence[str], ridge: float) -> pd.DataFrame:
    """All triples of the candidates with at most one of strength, the best first."""
    own = complete(rows, candidates)
    found = [
        {"predictors": " ".join(three), "held_out_rho": held_out_rho(own, three, ridge)}
        for three in itertools.combinations(candidates, 3)
        if len(STRENGTH.intersection(three)) <= 1
    ]
    return pd.DataFrame(found).sort_values("held_out_rho", ascending=False, ignore_index=True)


def choose(rows: pd.DataFrame, candidates: Sequence[str], ridge: float) -> pd.DataFrame:
    """Singles, then triples: of the best measure of strength and the `KEPT` best others."""
    alone = singles(rows, usable(rows, candidates), ridge)
    strength = alone["predictors"].isin(STRENGTH)
    kept = [
        *alone.loc[strength, "predictors"].head(1),
        *alone.loc[~strength, "predictors"].head(KEPT),
    ]
    three = triples(rows, kept, ridge)
    return pd.concat([alone.assign(size=1), three.assign(size=3)], ignore_index=True)
