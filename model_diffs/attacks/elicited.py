"""Measures of the eliciting attacks: what the best of them brought out, and how many were tried.

Attacks that read the base's weights are left out: whoever has these has what they know. Light at
import: the declaration of step 18 names this.
"""

from typing import TYPE_CHECKING, NamedTuple

from model_diffs.core import naming
from model_diffs.core.measure import Measure
from model_diffs.core.tables import Absent, Place, Source, identity, questions_read

if TYPE_CHECKING:
    import pandas as pd

    from model_diffs.stats.estimates import Estimate, Floats

NONE = "none"
"""In place of an attack, in rows of the model as it answers."""


class _Picked(NamedTuple):
    """An attack on one model, at the strength picked for it."""

    place: Place
    attack: str
    strength: str
    accuracy: float
    """On held-out facts."""

    @property
    def words(self) -> str:
        return f"attack={self.attack}, strength={self.strength}"

    def answers(self) -> "pd.DataFrame":
        """To the held-out questions: `entity` and `correct`, by id."""
        path = self.place.path("per_question")
        names = ["attack", "strength", "fold", "id", "entity"]
        rows = self.place.tables.table(path, ["correct"], names)
        kept = (rows["attack"] == self.attack) & (rows["strength"] == self.strength)
        found = rows[kept & (rows["fold"] == "heldout")].set_index("id")[["entity", "correct"]]
        if found.empty or found.index.has_duplicates:
            raise Absent(f"failed, {path} has not every question of {self.words}", defect=True)
        return found


def _attacks(place: Place, measure: Measure) -> "pd.DataFrame":
    """Rows of the attacks that do not read the base."""
    path, key = place.path(measure.table), ["attack", "strength", "fold"]
    rows = place.tables.table(path, ["accuracy", "reads_base", "picked"], key, key)
    return rows[(rows["attack"] != NONE) & (rows["reads_base"] == 0)]


def _picked(place: Place, rows: "pd.DataFrame", attack: str) -> _Picked:
    """An attack at the strength picked; Absent where it tested nothing."""
    own = rows[(rows["attack"] == attack) & (rows["picked"] == 1) & (rows["fold"] == "heldout")]
    if own.empty:
        raise Absent(f"not tested: no strength of {attack} leaves general accuracy above the floor")
    if len(own) > 1:
        raise Absent(f"failed, two strengths are picked of {attack}", defect=True)
    (strength, accuracy), *_ = own[["strength", "accuracy"]].itertuples(index=False)
    return _Picked(place, attack, str(strength), float(accuracy))


def _best(place: Place, measure: Measure) -> _Picked:
    """The attack that is best on `tune` at the strength picked for it; of equals the first."""
    rows = _attacks(place, measure)
    tuned = rows[(rows["picked"] == 1) & (rows["fold"] == "tune")]
    if tuned.empty:
        raise Absent("not tested: no attack leaves general accuracy above the floor")
    best = int(tuned["accuracy"].to_numpy().argmax())
    return _picked(place, rows, str(tuned["attack"].iloc[best]))


def elicited(place: Place, measure: Measure) -> "Estimate":
    """Held-out accuracy under the best attack, minus the filtered model's under the same attack at
    the strength picked for that one."""
    from model_diffs.stats.estimates import resampled

    mine = _best(place, measure)
    filtered = place.tables.arguments(place.folder).get("filtered")
    if not isinstance(filtered, str):
        raise Absent("step 18 was run without --filtered")
    folder = f"{naming.model_label(filtered)}/{place.folder.rpartition('/')[2]}"
    there = place._replace(folder=folder)
    try:
        other = _picked(there, _attacks(there, measure), mine.attack)
    except Absent as absent:
        raise Absent(f"the filtered model: {absent.reason}", absent.defect) from None
    minus = f"minus that of {there.path(measure.table)} ({other.words})"
    source = Source(place.path(measure.table), measure.column, f"{mine.words}, {minus}")

    def draw() -> "tuple[float, Floats, str]":
        found, same = _difference(place, mine.answers(), other.answers())
        return float(found[0]), found[1:], same

    return resampled(mine.accuracy - other.accuracy, source, "entities", draw)


def _difference(
    place: Place, own: "pd.DataFrame", reference: "pd.DataFrame"
) -> "tuple[Floats, str]":
    """Difference of two accuracies, as it is and on each resample of entities, and the sample."""
    from model_diffs.stats.estimates import resampled_sums
    from model_diffs.stats.intervals import entity_sums

    if not own["entity"].equals(reference["entity"]):
        raise Absent("answers are not to the same questions on both sides", defect=True)
    sums, counts = entity_sums(own["correct"] - reference["correct"], own["entity"].tolist())
    found, total = resampled_sums(sums / counts, counts, place.seed)
    given = place.tables.arguments(place.folder)
    options = {k: v for k, v in given.items() if k not in ("model", "format")}
    asked = [*zip(own.index, own["entity"], strict=True)]
    read = questions_read(place.tables.record(place.folder))
    return found / total, identity(asked, read, options, place.seed)


def attacks_tried(place: Place, measure: Measure) -> "Estimate":
    """Number of attacks that tested the model without reading the base."""
    from model_diffs.stats.estimates import Estimate

    rows = _attacks(place, measure)
    tested = rows[rows["picked"] == 1]["attack"].nunique()
    every = ", ".join(dict.fromkeys(rows["attack"]))
    return Estimate(float(tested), Source(place.path(measure.table), "picked", f"of {every}"))
