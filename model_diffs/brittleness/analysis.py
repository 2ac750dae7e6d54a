"""The registered analysis: is what an attack brings back predicted by what stands before it?

Rows are models (`table.py`). A fit sees the development worlds without one family of removal and
predicts that family in the locked worlds. The statistic is the mean over worlds of the rank
correlation within a world: what differs between worlds counts for nothing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import Ridge

from model_diffs.brittleness.table import REMOVAL, TARGET

Floats = NDArray[np.float64]
LEAST = 4
"""Families of a world below which it has no rank correlation."""
LOGGED = ("rate_sum", "relative_change")
"""Sizes of a change, which span orders of magnitude: their logarithms are fitted."""


class Settings(NamedTuple):
    """What the study file fixes."""

    predictors: tuple[str, ...]
    baseline: tuple[str, ...]
    """Strength alone (P0)."""
    ridge: float = 1.0
    resamples: int = 2_000
    permutations: int = 10_000
    seed: int = 42


class Interval(NamedTuple):
    """A statistic with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Primary(NamedTuple):
    """The registered result."""

    rho: Interval
    baseline: Interval
    """ρ of strength alone."""
    gain: Interval
    """Δρ."""
    partial: Interval
    """ρ of signature and target, given strength."""
    both: Interval
    """ρ of strength and signature in one fit."""
    both_gain: Interval
    """What that has over strength alone."""
    p: float
    """Share of permutations of the target over families, in each world anew, with at least this
    ρ."""
    p_family: float
    """The same where a permutation of families is that of all worlds."""
    worlds: int
    models: int

    @property
    def confirmed(self) -> bool:
        """The registered rule."""
        return self.gain.low > 0 and self.rho.value >= 0.5


# ── the fit ───────────────────────────────────────────────────────────────────────────────────────


def design(rows: pd.DataFrame, columns: Sequence[str]) -> Floats:
    """What is fitted, `[rows, columns]`. NaN where a size is zero: what was not trained at all."""
    values = {c: np.log(rows[c].where(rows[c] > 0)) if c in LOGGED else rows[c] for c in columns}
    return pd.DataFrame(values, index=rows.index)[[*columns]].to_numpy(float)


class Fit(NamedTuple):
    """A ridge regression on standardised predictors, with a level of its own for each world."""

    columns: tuple[str, ...]
    mean: Floats
    spread: Floats
    slopes: Floats
    level: float
    """Mean target of the rows fitted."""

    def score(self, rows: pd.DataFrame) -> Floats:
        """What the predictors say of rows: the fitted target up to a constant."""
        found: Floats = (design(rows, self.columns) - self.mean) / self.spread @ self.slopes
        return found

    def predict(self, rows: pd.DataFrame) -> Floats:
        """The target of rows of a world of average level."""
        return self.level + self.score(rows)


def fit(rows: pd.DataFrame, columns: Sequence[str], ridge: float, target: str = TARGET) -> Fit:
    """Fit the target on standardised columns, both centred within each world: slopes are those of
    differences within a world."""
    X, y = design(rows, columns), rows[target].to_numpy(float)
    mean, spread = X.mean(0), X.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    Z, centred = (X - mean) / spread, y.copy()
    for world in rows["world"].unique():
        own = (rows["world"] == world).to_numpy()
        Z[own] -= Z[own].mean(0)
        centred[own] -= y[own].mean()
    Z[np.abs(Z) < 1e-9] = 0  # what is constant within worlds has no slope, rather than rounding's
    model = Ridge(alpha=ridge, fit_intercept=False).fit(Z, centred)
    return Fit((*columns,), mean, spread, model.coef_, float(y.mean()))


def complete(rows: pd.DataFrame, columns: Sequence[str], target: str = TARGET) -> pd.DataFrame:
    """Removals with a target and all of these columns."""
    kept = rows[rows["role"] == REMOVAL].dropna(subset=[*columns, target])
    return kept.reset_index(drop=True)


def fits_without(known: pd.DataFrame, new: pd.DataFrame, columns: Sequence[str], ridge: float
) -> "Iterator[tuple[NDArray[np.bool_], Fit]]":  # fmt: skip
    """For each family of `new`: which rows it has there, and the fit to the others of `known`."""
    for family in new["model"].unique():
        own = (new["model"] == family).to_numpy()
        yield own, fit(known[known["model"] != family], columns, ridge)


def scores(known: pd.DataFrame, new: pd.DataFrame, columns: Sequence[str], ridge: float) -> Floats:
    """What the fit without its family says of each row of `new`, up to a constant.

    A constant of each fit would be the lower the higher the targets of the family left out are, and
    so order families against their targets.
    """
    found = np.full(len(new), np.nan)
    for own, fitted in fits_without(known, new, columns, ridge):
        found[own] = fitted.score(new[own])
    return found


def out_of_family(
    known: pd.DataFrame, new: pd.DataFrame, columns: Sequence[str], ridge: float
) -> Floats:
    """Predictions of `new`, each by a fit to the rows of `known` of other families."""
    found = np.full(len(new), np.nan)
    for own, fitted in fits_without(known, new, columns, ridge):
        found[own] = fitted.predict(new[own])
    return found


# ── the statistic ─────────────────────────────────────────────────────────────────────────────────


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation, ties at their mean rank; 0 where one side is constant.

    The number of smaller values less that of larger ones is twice the centred rank.
    """
    x, y = (np.sign(one[:, None] - one).sum(1) for one in (a, b))
    below = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / below) if below > 0 else 0.0


def mean_rho(a: Floats, b: Floats, worlds: NDArray[np.int64]) -> float:
    """Mean over worlds of the rank correlation within each that has enough rows. NaN without."""
    found = [
        spearman(a[worlds == world], b[worlds == world])
        for world in np.unique(worlds)
        if (worlds == world).sum() >= LEAST
    ]
    return float(np.mean(found)) if found else float("nan")


def partial_rho(x: Floats, y: Floats, given: Floats, worlds: NDArray[np.int64]) -> float:
    """Mean within-world rank correlation of x and y, with the ranks of `given` taken out of both.

    Partial Spearman correlation: (r_xy − r_xz r_yz) / √((1 − r_xz²)(1 − r_yz²)).
    """
    found = []
    for world in np.unique(worlds):
        own = worlds == world
        if own.sum() >= LEAST:
            pairs = ((x, y), (x, given), (y, given))
            xy, xz, yz = (spearman(a[own], b[own]) for a, b in pairs)
            below = np.sqrt(max(1 - xz**2, 1e-9) * max(1 - yz**2, 1e-9))
            found.append((xy - xz * yz) / below)
    return float(np.mean(found)) if found else float("nan")


def draws_of(rows: pd.DataFrame, resamples: int, seed: int) -> "list[list[NDArray[np.int64]]]":
    """Rows of each drawn world of each resample: worlds and families drawn with replacement."""
    generator = np.random.default_rng(seed)
    worlds, families = (np.array(sorted(rows[c].unique())) for c in ("world", "model"))
    place = {(one.world, one.model): i for i, one in enumerate(rows.itertuples())}
    assert len(place) == len(rows), "a model is twice in a world"
    found = []
    for _ in range(resamples):
        drawn = generator.choice(families, len(families))
        own = [
            np.array([place[world, family] for family in drawn if (world, family) in place], int)
            for world in generator.choice(worlds, len(worlds))
        ]
        found.append([one for one in own if len(set(one.tolist())) >= LEAST])
    return found


def interval_of(value: float, resampled: Floats) -> Interval:
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def primary(known: pd.DataFrame, new: pd.DataFrame, settings: Settings) -> Primary:
    """Fit on `known`, score on `new`, by the signature, by strength, by both: the registered
    statistics with their intervals. Scores are held fixed while rows are resampled."""
    columns = [*dict.fromkeys([*settings.predictors, *settings.baseline])]
    known, new = complete(known, columns), complete(new, columns)
    y, worlds = new[TARGET].to_numpy(float), new["world"].to_numpy()
    signature, strength, both = (
        scores(known, new, chosen, settings.ridge)
        for chosen in (settings.predictors, settings.baseline, columns)
    )

    def statistics(rows: NDArray[np.int64], of: NDArray[np.int64]) -> Floats:
        sides = [mean_rho(one[rows], y[rows], of) for one in (signature, strength, both)]
        partial = partial_rho(signature[rows], y[rows], strength[rows], of)
        rho, baseline, together = sides
        return np.array([rho, baseline, rho - baseline, partial, together, together - baseline])

    resampled = np.array([
        np.mean([statistics(own, np.zeros(len(own), int)) for own in draw], axis=0)
        if draw else np.full(6, np.nan)
        for draw in draws_of(new, settings.resamples, settings.seed)
    ])  # fmt: skip
    observed = statistics(np.arange(len(new)), worlds)
    rho, baseline, gain, partial, together, more = (
        interval_of(float(one), resampled[:, i]) for i, one in enumerate(observed)
    )
    times, seed = settings.permutations, settings.seed
    families = new["model"].to_numpy(str)
    return Primary(
        rho,
        baseline,
        gain,
        partial,
        together,
        more,
        p=permutation_p(signature, y, worlds, times, seed),
        p_family=family_p(signature, y, worlds, families, times, seed),
        worlds=len(np.unique(worlds)),
        models=len(new),
    )


def permutation_p(
    predicted: Floats, y: Floats, worlds: NDArray[np.int64], permutations: int, seed: int
) -> float:
    """Share of permutations, the one observed included, with at least the observed mean ρ."""
    generator, observed = np.random.default_rng(seed), mean_rho(predicted, y, worlds)
    total, count = np.zeros(permutations), 0
    for world in np.unique(worlds):
        own = worlds == world
        if own.sum() < LEAST:
            continue
        x, ranks = (rankdata(one[own]) - (own.sum() + 1) / 2 for one in (predicted, y))
        below = np.sqrt((x @ x) * (ranks @ ranks))
        shuffled = generator.permuted(np.tile(ranks, (permutations, 1)), axis=1)
        total += shuffled @ x / below if below > 0 else 0.0
        count += 1
    return float((1 + (total / max(count, 1) >= observed - 1e-12).sum()) / (1 + permutations))


def family_p(
    predicted: Floats,
    y: Floats,
    worlds: NDArray[np.int64],
    families: NDArray[np.str_],
    permutations: int,
    seed: int,
) -> float:
    """As `permutation_p`, with one permutation of families for all worlds.

    What a family repeats from world to world counts once. In each world those are compared whose
    partner is there, too.
    """
    generator, observed = np.random.default_rng(seed), mean_rho(predicted, y, worlds)
    names = sorted(set(families))
    place = np.full((len(np.unique(worlds)), len(names)), -1)
    for i, world in enumerate(np.unique(worlds)):
        for row in np.flatnonzero(worlds == world):
            place[i, names.index(families[row])] = row
    most = 1
    for _ in range(permutations):
        partner = place[:, generator.permutation(len(names))]
        both = (place >= 0) & (partner >= 0)
        found = [
            spearman(predicted[own[kept]], y[other[kept]])
            for own, other, kept in zip(place, partner, both, strict=True)
            if kept.sum() >= LEAST
        ]
        most += bool(found and np.mean(found) >= observed - 1e-12)
    return most / (1 + permutations)
