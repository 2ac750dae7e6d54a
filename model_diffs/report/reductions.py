"""A measure's number, read from the tables of its step: a few reductions serve all measures.

Four choices hold for every measure: a mean over hidden states 1 to N weights each the same; what
describes ΔW weights a matrix by its ‖ΔW‖²; what describes the model weights all matrices alike;
relative sizes are ratios of root-sum-squares.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from model_diffs.core import tables
from model_diffs.core.step import Measure
from model_diffs.core.tables import Absent, Place, Source
from model_diffs.stats.estimates import Estimate, Floats, resampled, resampled_sums

if TYPE_CHECKING:
    import pandas as pd

# Column with the units that are resampled, and what they are called.
UNITS = {
    "": ("", ""),
    "text": ("text", "texts"),
    "question": ("id", "questions"),
    "entity": ("entity", "entities"),
    "resample": ("resample", "texts"),
}


def words(measure: Measure, which: str, base: str = "base", changed: str = "changed") -> str:
    """How the rows `which` are reduced, and which cells they have."""
    own = measure.weights or ()
    weight = " · ".join(f"{c}²" if own.count(c) == 2 else c for c in dict.fromkeys(own))
    column, below = measure.column, measure.relative_to
    if measure.norm:
        how = f"√(Σ {column}² / Σ {below}²) over {which}"
    elif below:
        how = f"Σ {column} · {weight} / Σ {below} · {weight} over {which}"
    elif measure.layers == "last":
        how = which
    else:
        how = f"mean over {which}" + (f", weighted by {weight}" if weight else "")
        how += f" of {measure.weights_from}.csv" if measure.weights_from else ""
    given = [f"{k}={v}" for k, v in measure.where.items() if k not in measure.over]
    sides = [f"{k}={measure.where[k]} over {cell}" for k, cell in measure.over.items()]
    text = ", ".join([how, *given, *sides])
    return text.replace("{base}", base).replace("{changed}", changed)


class _Reading:
    """One measure in one result folder."""

    def __init__(self, measure: Measure, place: Place) -> None:
        self.measure, self.place, self.tables = measure, place, place.tables
        self.path = place.path(measure.table)
        header = self.tables.columns(self.path)
        self.unit, self.units = UNITS[measure.paired_by]
        own_unit = "" if measure.kept else self.unit
        self.key = next((c for c in (own_unit, "name", "layer") if c and c in header), "")
        by_tokens = ("tokens",) if own_unit == "text" and "tokens" in header else ()
        self.weights = by_tokens if measure.weights is None else measure.weights
        self.columns = [measure.column, *filter(None, [measure.relative_to])]
        self.rows = self._rows({**measure.where})
        self.other = self._rows({**measure.where, **measure.over}) if measure.over else None
        if self.other is not None and sorted(self.rows[self.key]) != sorted(self.other[self.key]):
            raise Absent(f"failed, {self.path} has other {self.key}s on its two sides", defect=True)

    @cached_property
    def _table(self) -> "pd.DataFrame":
        measure = self.measure
        names = [*measure.where, *measure.over, *({"id", "name"} & {self.key})]
        numbers = [*self.columns, *(() if measure.weights_from else self.weights)]
        numbers += [self.key] if self.key not in ("", *names) else []
        numbers += ["layer"] if measure.layers else []
        empty = self.columns if measure.may_be_empty else ()
        # A model against itself has both sides' rows under one name.
        alone = self.key and not (measure.over and self.place.base == self.place.changed)
        key = dict.fromkeys([*names, self.key]) if alone else ()
        return self.tables.table(self.path, numbers, names, [*key], empty)

    def _rows(self, cells: dict[str, str]) -> "pd.DataFrame":
        """The rows with these cells and the measure's layers, each unit once."""
        measure, place, found = self.measure, self.place, self._table
        of_changed = cells == {**measure.where}
        cells = {k: v.format(base=place.base, changed=place.changed) for k, v in cells.items()}
        for column, cell in cells.items():
            found = found[found[column].astype(str) == cell]
        if measure.over and place.base == place.changed:  # the base's rows come first
            again = found.duplicated([self.key])
            found = found[again if of_changed else ~again]
        if found.empty and not measure.undefined:
            named = ", ".join(f"{k}={v}" for k, v in cells.items())
            raise Absent(f"failed, {self.path} has no row with {named}", defect=True)
        if self.key in ("layer", "text"):
            found = found.sort_values(self.key)
        if measure.layers == "blocks":
            found = found[found["layer"] >= 0]
        elif measure.layers and not found.empty:
            chosen = tables.choose_states(self.path, found["layer"], measure.layers)
            found = found[found["layer"].isin(chosen)]
        return self._defined(self._weighted(found) if measure.weights_from else found)

    def _weighted(self, rows: "pd.DataFrame") -> "pd.DataFrame":
        """The rows with the weights of another table, joined by name."""
        other = f"{self.place.folder.rpartition('/')[0]}/{self.measure.weights_from}.csv"
        own = [*self.weights]
        found = self.tables.table(other, own, ["name"], ["name"])
        joined = rows.merge(found, on="name", how="left")
        if joined[own].isna().any(axis=None):
            raise Absent(f"failed, {self.path} and {other} name other matrices", defect=True)
        return joined

    def _defined(self, rows: "pd.DataFrame") -> "pd.DataFrame":
        """The rows that count: Absent where there is none, or a cell is empty."""
        if self.weights:
            rows = rows[rows[[*self.weights]].prod(axis=1) > 0]
        undefined = self.measure.undefined
        if rows.empty:
            raise Absent(undefined or f"failed, {self.path} has no row", defect=not undefined)
        if rows[self.columns].isna().any(axis=None):
            empty = f"failed, {self.path} has an empty cell in {self.measure.column}"
            raise Absent(empty if self.weights else undefined, defect=bool(self.weights))
        return rows

    # ── the number ────────────────────────────────────────────────────────────────────────────────

    def _number(self, rows: "pd.DataFrame") -> float:
        measure, values = self.measure, rows[self.measure.column]
        weight = rows[[*self.weights]].prod(axis=1) if self.weights else None
        if not measure.relative_to:
            return float(values.mean() if weight is None else np.average(values, weights=weight))
        below = rows[measure.relative_to]
        if measure.norm:
            values, below = values**2, below**2
        if weight is not None:
            values, below = values * weight, below * weight
        if below.sum() == 0:
            raise Absent(measure.undefined or f"{measure.relative_to} is zero")
        found = float(values.sum() / below.sum())
        return float(np.sqrt(found)) if measure.norm else found

    def value(self) -> float:
        """The number."""
        found, *below = (self._number(side) for side in (self.rows, self.other) if side is not None)
        if below and min(found, *below) <= 0:
            zero = f"{self.measure.column} is zero: there is no ratio"
            raise Absent(self.measure.undefined or zero)
        return found / below[0] if below else found

    def source(self) -> Source:
        """Where the number is."""
        which = f"{len(self.rows)} row{'s' * (len(self.rows) > 1)}"
        if self.measure.layers == "blocks":
            which += " of blocks"
        elif self.measure.layers:
            first, last = (int(end(self.rows["layer"])) for end in (min, max))
            which = f"layer {first}-{last}" if first < last else f"layer={first}"
        text = words(self.measure, which, self.place.base, self.place.changed)
        return Source(self.path, self.measure.column, text)

    def cell_interval(self) -> tuple[float, float] | None:
        """The interval that the table has of a single cell: it was made with the step's seed."""
        header, column = self.tables.columns(self.path), self.measure.column
        for ends in ([f"{column}_low", f"{column}_high"], ["low", "high"]):
            if {*ends} <= {*header} and len(self.rows) == 1:
                low, high = self.tables.table(self.path, ends).loc[self.rows.index[0], ends]
                return float(low), float(high)
        return None

    # ── its resamples ─────────────────────────────────────────────────────────────────────────────

    def design(self) -> list[Any]:
        """What must be equal for two numbers to be compared, beside the units themselves."""
        measure, record = self.measure, self.tables.record(self.place.folder)
        given = self.tables.arguments(self.place.folder)
        names = (*measure.options, *(["seed"] if self.unit == "resample" else []))
        sampled = (
            tables.questions_read(record) if self.unit in ("id", "entity")
            else tables.texts_read(record, measure.where.values())
        )  # fmt: skip
        return [sampled, [given.get(name) for name in names]]

    def _kept(self, column: str) -> "pd.DataFrame":
        """Values and weights per unit, in the order in which the units are drawn."""
        measure, path = self.measure, self.place.path(self.measure.kept)
        row = "id" if self.unit == "entity" else self.unit
        header = self.tables.columns(path)
        cells = {name: cell for name, cell in measure.where.items() if name in header}
        names = [*cells, *({"id"} & {row}), *({"entity"} & {self.unit})]
        numbers = [c for c in ("layer", "tokens", row) if c in header and c not in names]
        found = self.tables.table(path, [column, *numbers], names)
        for name, cell in cells.items():
            found = found[found[name] == cell]
        states = [0]
        if "layer" in header and measure.layers:
            states = self.rows["layer"].unique().tolist()
            found = found[found["layer"].isin(states)].drop_duplicates([row, "layer"])
        if found.empty or (found.groupby(row).size() != len(states)).any():
            raise Absent(f"failed, {path} has not one row of every layer and {measure.paired_by}")
        if self.unit == "entity":
            groups = found.groupby("entity")
            means = groups.mean(numeric_only=True)
            return means.assign(questions=groups.size() / len(states)).reset_index()
        return found.groupby(row, sort=row != "id", as_index=False).mean(numeric_only=True)

    def resamples(self, value: float) -> tuple[float, Floats, str]:
        """The number from the values per unit, on each resample, and the sample's identity."""
        measure, rows, own = self.measure, self.rows, [*self.weights]
        column = measure.kept_column or measure.column
        if measure.kept:
            rows = self._kept(column)
            weight = {"text": "tokens", "entity": "questions"}.get(self.unit)
            own = [weight] if weight and weight in rows else []
        design, units, seed = self.design(), rows[self.unit].tolist(), self.place.seed
        if self.unit == "resample":
            return value, rows[column].to_numpy(), tables.identity(design, units)
        same = tables.identity(design, units, rows[own].to_numpy().tolist(), seed)
        (sums, counts), *others = (
            resampled_sums(
                side[column].to_numpy(), side[own].prod(axis=1).to_numpy() if own else None, seed
            )
            for side in ([rows] if self.other is None else [rows, self.other])
        )
        found = sums / counts
        for below, other in others:  # without weights there are as many units on both sides
            found = found / (below / other) if own else sums / below
        return float(found[0]), found[1:], same

    def estimate(self) -> Estimate:
        """The number with its interval and resamples."""
        value, source = self.value(), self.source()
        if not self.measure.paired_by:
            return Estimate(value, source)
        found = resampled(value, source, self.units, lambda: self.resamples(value))
        low, high = self.cell_interval() or (found.low, found.high)
        return Estimate(value, source, low, high, found.sample, found.unpaired)


def _minus_base(measure: Measure, place: Place) -> Estimate:
    folder = place.folder.replace(place.changed, place.base, 1)
    readings = [_Reading(measure, place), _Reading(measure, place._replace(folder=folder))]
    changed, base = (one.estimate() for one in readings)
    if readings[0].design() != readings[1].design() or changed.source.rows != base.source.rows:
        raise Absent("measured on other texts, or with other options, than the base", defect=True)
    value = changed.value - base.value
    source = changed.source._replace(rows=f"{base.source.rows}, minus that of {base.source.path}")

    def draw() -> tuple[float, Floats, str]:
        a, b = base.sample, changed.sample
        if a is None or b is None:
            raise Absent(changed.unpaired or base.unpaired)
        if a.identity != b.identity:
            raise Absent("base and changed model have not the same resamples")
        return value, b.resampled - a.resampled, a.identity

    return resampled(value, source, "texts", draw)


def read(measure: Measure, place: Place) -> Estimate:
    """The number of a measure with its interval and resamples. Raises Absent."""
    place.tables.record(place.folder)
    if measure.compute:
        found: Estimate = measure.compute(place, measure)
        return found
    asked = place.tables.arguments(place.folder).get("questions", True)
    if measure.paired_by in ("question", "entity") and not asked:
        raise Absent("its step was run without --questions")
    if measure.less_base:
        return _minus_base(measure, place)
    return _Reading(measure, place).estimate()
