"""Measures of the relearning attack: what each arm brought out, where it was picked on `tune`.

A model on which an arm did not take has no number, and the reason. Light at import: the declaration
of step 14 names them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from model_diffs.core import naming
from model_diffs.core.step import Measure
from model_diffs.core.tables import Absent, Place, Source, identity, questions_read

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.stats.estimates import Estimate, Floats

HALF = 0.5
BEFORE = "before"
"""In place of the arm, in rows of per_question.csv of the base before any attack."""


class _Arm(NamedTuple):
    """One arm in the results of one model, at the rate picked for it."""

    place: Place
    rows: "pd.DataFrame"
    """Of relearning.csv, by step."""
    lr: float
    step: int
    """The one picked."""

    @property
    def words(self) -> str:
        return f"lr={self.lr:g}, step={self.step}"

    def cell(self, column: str) -> float:
        """A number at the step picked."""
        return float(self.rows.loc[self.rows["step"] == self.step, column].iloc[0])

    def answers(self, step: int) -> "pd.DataFrame":
        """Held-out questions after `step`: `entity` and `correct`, by id."""
        return _answers(self.place, str(self.rows["arm"].iloc[0]), self.lr, step)


def _number(place: Place, name: str) -> float:
    found = place.tables.arguments(place.folder).get(name)
    if not isinstance(found, int | float):
        raise Absent(f"failed, run.json of {place.folder} has no {name}", defect=True)
    return found


def _attacks(place: Place, measure: Measure, arm: str) -> "pd.DataFrame":
    """The rows of one arm, at all rates."""
    path = place.path(measure.table)
    empty = ["took", "attack_accuracy", "heldout_accuracy", "recovered_share"]
    numbers = ["lr", "step", "picked", *empty]
    rows = place.tables.table(path, numbers, ["arm"], ["arm", "lr", "step"], empty)
    rows = rows[rows["arm"] == arm]
    if rows.empty:
        raise Absent(f"step 14 was run without --arm {arm}")
    if rows["heldout_accuracy"].isna().any():
        raise Absent("step 14 was run without --questions")
    return rows


def _picked(place: Place, measure: Measure, arm: str) -> _Arm:
    """An arm at the rate and step picked; Absent where it tested nothing."""
    rows = _attacks(place, measure, arm)
    own = rows[rows["picked"] == 1]
    if own.empty and (rows["took"] == 0).all():
        reached, until = rows["attack_accuracy"].max(), _number(place, "until")
        raise Absent(f"not tested: attacked facts reached {reached:.2f}, not {until:g}")
    if own.empty:
        floor = _number(place, "general_floor")
        raise Absent(f"not tested: general accuracy does not stay above {floor:g} at any rate")
    if len(own) > 1:
        where = place.path(measure.table)
        raise Absent(f"failed, {where} has {len(own)} rows picked for arm {arm}", defect=True)
    lr, step = float(own["lr"].iloc[0]), int(own["step"].iloc[0])
    return _Arm(place, rows[rows["lr"] == lr].sort_values("step"), lr, step)


# ── answers, with entities resampled ──────────────────────────────────────────────────────────────


def _answers(place: Place, arm: str, lr: float | None, step: int) -> "pd.DataFrame":
    """Held-out rows of per_question.csv at one step, `entity` and `correct`, by id; no rate for
    the base's, which are of arm `before`."""
    path = place.path("per_question")
    names = ["arm", "group", "id", "entity"]
    rows = place.tables.table(path, ["lr", "step", "correct"], names, (), ["lr"])
    kept = (rows["group"] == "heldout") & (rows["arm"] == arm) & (rows["step"] == step)
    kept &= rows["lr"].isna() if lr is None else rows["lr"] == lr
    found = rows[kept].set_index("id")[["entity", "correct"]]
    if found.empty or found.index.has_duplicates:
        raise Absent(f"failed, {path} has not every question at every step", defect=True)
    return found


def _means(place: Place, sides: "list[pd.DataFrame]") -> "tuple[list[Floats], str]":
    """Accuracy of each side, as it is and then on each resample of entities, and the sample.

    Each `[1 + resamples]`; the sides answer the same questions.
    """
    import numpy as np

    from model_diffs.stats.estimates import weights
    from model_diffs.stats.intervals import entity_sums

    first = sides[0]
    if any(not one["entity"].equals(first["entity"]) for one in sides):
        raise Absent("answers are not to the same questions on all sides", defect=True)
    entities = first["entity"].tolist()
    sums, (counts, *_) = zip(*(entity_sums(one["correct"], entities) for one in sides), strict=True)
    drawn = np.vstack([np.ones(len(counts)), weights(len(counts), place.seed)])
    total = drawn @ counts
    means = [drawn @ one / total for one in sums]
    given = place.tables.arguments(place.folder)
    options = {k: v for k, v in given.items() if k not in ("model", "format")}
    asked = [*zip(first.index, first["entity"], strict=True)]
    read = questions_read(place.tables.record(place.folder))
    return means, identity(asked, read, options, place.seed)


def _drawn(value: float, source: Source, draw: "Callable[[], tuple[Floats, str]]") -> "Estimate":
    """An estimate whose number and resamples `draw` gives in one, `[1 + resamples]`."""
    from model_diffs.stats.estimates import resampled

    def split() -> "tuple[float, Floats, str]":
        found, same = draw()
        return float(found[0]), found[1:], same

    return resampled(value, source, "entities", split)


# ── measures ──────────────────────────────────────────────────────────────────────────────────────


def recovered_share(place: Place, measure: Measure) -> "Estimate":
    """Share of the gap to the base that arm facts closes at the step picked."""
    arm = _picked(place, measure, "facts")
    if place.tables.arguments(place.folder).get("base", "") is None:
        raise Absent("step 14 was run without --base")
    value = arm.cell("recovered_share")
    if value != value:  # an empty cell
        raise Absent("held-out accuracy equals that of the base: there is no gap to close")
    source = Source(place.path(measure.table), measure.column, arm.words)

    def draw() -> "tuple[Floats, str]":
        base = _answers(place, BEFORE, None, 0)
        sides = [base, arm.answers(0), arm.answers(arm.step)]
        (known, start, after), same = _means(place, sides)
        if not (known > start).all():
            raise Absent("on some resamples there is no gap to close")
        return (after - start) / (known - start), same

    return _drawn(value, source, draw)


def _over_filtered(place: Place, measure: Measure, arm: str) -> "Estimate":
    """Held-out accuracy where an arm was picked, minus the filtered model's where its own was."""
    mine = _picked(place, measure, arm)
    filtered = place.tables.arguments(place.folder).get("filtered")
    if not isinstance(filtered, str):
        raise Absent("step 14 was run without --filtered")
    folder = f"{naming.model_label(filtered)}/{place.folder.rpartition('/')[2]}"
    try:
        other = _picked(place._replace(folder=folder), measure, arm)
    except Absent as absent:
        why = f"the filtered model: {absent.reason}"
        raise Absent(why, absent.defect) from None
    mean, reference = (one.cell("heldout_accuracy") for one in (mine, other))
    minus = f"minus that of {other.place.path(measure.table)} ({other.words})"
    words = f"mean over questions, arm={arm}, {mine.words}, {minus}"
    source = Source(place.path(measure.table), measure.column, words)

    def draw() -> "tuple[Floats, str]":
        sides = [one.answers(one.step) for one in (mine, other)]
        (own, filtered), same = _means(place, sides)
        return own - filtered, same

    return _drawn(mean - reference, source, draw)


def recovered_facts(place: Place, measure: Measure) -> "Estimate":
    """What arm facts brings out of a model over what it brings out of the filtered one."""
    return _over_filtered(place, measure, "facts")


def recovered_retain(place: Place, measure: Measure) -> "Estimate":
    """What arm retain brings out of a model over what it brings out of the filtered one."""
    return _over_filtered(place, measure, "retain")


def _tuned(place: Place, measure: Measure) -> "pd.DataFrame":
    """Of each arm that tested the model its picked row, with the accuracy on fold tune."""
    empty = ["took", "attack_accuracy", "heldout_accuracy", "tune_accuracy", "recovered_share"]
    names = ["picked", *empty]
    rows = place.tables.table(
        place.path(measure.table), ["lr", "step", *names], ["arm"], ["arm", "lr", "step"], empty
    )
    return rows[(rows["picked"] == 1) & rows["tune_accuracy"].notna()]


def recovered_best(place: Place, measure: Measure) -> "Estimate":
    """What the arm that is best on `tune` brings out of a model over what it brings out of the
    filtered one; of equals the first."""
    tuned = _tuned(place, measure)
    if tuned.empty:
        raise Absent("not tested: no training attack leaves general accuracy above the floor")
    best = int(tuned["tune_accuracy"].to_numpy().argmax())
    return _over_filtered(place, measure, str(tuned["arm"].iloc[best]))


def arms_tried(place: Place, measure: Measure) -> "Estimate":
    """Number of arms that tested the model: those on attacked facts only where they took."""
    from model_diffs.stats.estimates import Estimate

    arms = _tuned(place, measure)["arm"]
    source = Source(place.path(measure.table), "picked", f"arms {', '.join(arms) or 'none'}")
    return Estimate(float(len(arms)), source)


def attack_took(place: Place, measure: Measure) -> "Estimate":
    """Share of the rates at which arm facts took."""
    from model_diffs.stats.estimates import Estimate

    rows = _attacks(place, measure, "facts").drop_duplicates("lr")
    rule = f"mean over {len(rows)} rates, arm=facts"
    return Estimate(float(rows["took"].mean()), Source(place.path(measure.table), "took", rule))


def steps_to_half(place: Place, measure: Measure) -> "Estimate":
    """First measured step of arm facts with half of the gap closed."""
    from model_diffs.stats.estimates import Estimate

    arm = _picked(place, measure, "facts")
    reached = arm.rows[arm.rows["recovered_share"] >= HALF]
    if arm.rows["recovered_share"].isna().all():
        raise Absent("there is no gap to the base to close, or step 14 was run without --base")
    if reached.empty:
        raise Absent(f"half of the gap is not closed within {arm.rows['step'].max():g} steps")
    source = Source(place.path(measure.table), measure.column, f"lr={arm.lr:g}, arm=facts")
    return Estimate(float(reached["step"].min()), source)
