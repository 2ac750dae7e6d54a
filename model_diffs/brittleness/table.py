"""The study as one table: a row per model of each world, with predictors, targets and role."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from model_diffs.attacks.lock import FOLDER as PREDICTORS
from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.folders import read_json
from model_diffs.core.step import Measure, load_steps
from model_diffs.core.tables import Absent, Place, Tables
from model_diffs.pipeline.studies import Study
from model_diffs.pipeline.worlds import of_world
from model_diffs.report import reductions

TARGET = "recovered_area"
"""Area under the held-out curve of arm `facts` over log-steps, less the scrambled model's."""
GAIN = "recovered_gain"
"""The area itself less the model's own accuracy before the attack: what the attack adds."""
ELSEWHERE = ("recovered_retain", "elicited")
"""Measures of the attacks that are targets, too."""
SECONDARY = (GAIN, *ELSEWHERE)
REMOVAL, CONTROL, DEEP = "removal", "control", "deep"
ROLES = {"unlearned": REMOVAL, "control": CONTROL, "filtered": DEEP}
DEVELOPMENT, LOCKED = "development", "locked"
GIVEN = ("world", "part", "model", "role", "method", "status")
"""Columns that are no numbers of a model."""


class State(NamedTuple):
    """What became of one model of a world."""

    world: int
    model: str
    status: str
    """`attacked`, or why it is not in the analysis."""


def _target(folder: Path) -> dict[str, Any]:
    """The target, the gain and the state of an attack, from relearning.csv."""
    path = folder / "relearning" / "relearning.csv"
    if not path.is_file():
        return {TARGET: None, GAIN: None, "status": "not attacked"}
    rows = pd.read_csv(path)
    facts = rows[rows["arm"] == "facts"]
    picked = facts[facts["picked"] == 1]
    if picked.empty:
        took = facts["took"].eq(1).any()
        why = "general accuracy fell" if took else "the attack did not take"
        return {TARGET: None, GAIN: None, "status": f"not tested: {why}"}
    found = picked.iloc[0]
    start = facts.loc[(facts["lr"] == found["lr"]) & (facts["step"] == 0), "heldout_accuracy"]
    over = found["area_over_filtered"]  # empty for the one that the others are compared with
    return {
        TARGET: None if math.isnan(over) else float(over),
        GAIN: float(found["area"] - start.iloc[0]),
        "status": "attacked",
    }


def _secondary(outroot: Path, base: str, changed: str, measures: Iterable[Measure]) -> Any:
    tables = Tables(outroot)
    found: dict[str, float | None] = {}
    for measure in measures:
        step = "elicitation" if measure.key == "elicited" else "relearning"
        place = Place(tables, f"{changed}/{step}", base, changed, 42)
        try:
            found[measure.key] = reductions.read(measure, place).value
        except Absent:
            found[measure.key] = None
    return found


def _missed(study: Study) -> Iterator[State]:
    """Entries that are not in the analysis: made and not at their target, or not made."""
    for folder, (entry, seed) in study.made().items():
        made = read_json(Path(folder) / "unlearning.json")
        if made is None:
            yield State(seed, entry.name, "not made")
        elif (until := made.get("until")) and not until["reached"]:
            last = until["looks"][-1]
            at = f"tune {last['tune']:.2f}"
            if last["general"] is not None:
                at += f", general {last['general']:.2f}"
            yield State(seed, entry.name, f"left out: ended at {at}")


def of_one(study: Study, outroot: Path, world: int, part: str) -> tuple[pd.DataFrame, list[State]]:
    """Rows of one world, and what became of its models. BadInput without written predictors."""
    path = outroot / PREDICTORS / "predictors.csv"
    if not path.is_file():
        raise BadInput(f"{path}: no such table; run the study up to write_predictors.py")
    rows, base = pd.read_csv(path), naming.model_label(study.base)
    roles = {naming.short_label(m, base): ROLES[r] for m, r in study.roles.items()}
    for folder, (entry, _) in study.made().items():
        roles[naming.short_label(folder, base)] = ROLES[entry.role]
    labels = {naming.short_label(m, base): naming.model_label(m)
              for m in (*study.compare, *study.made())}  # fmt: skip
    measures = [one for script in load_steps() for one in script.step.measures
                if one.key in ELSEWHERE]  # fmt: skip
    more = []
    for model in rows["model"]:
        target = _target(outroot / labels[model])
        found = _secondary(outroot, base, labels[model], measures)
        more.append({"role": roles[model], **target, **found})
    rows = pd.concat([rows, pd.DataFrame(more)], axis=1)
    rows["world"], rows["part"] = world, part
    states = [
        State(world, str(m), str(s)) for m, s in zip(rows["model"], rows["status"], strict=True)
    ]
    states += [one._replace(world=world) for one in _missed(study)]
    return rows[[*GIVEN, *(c for c in rows if c not in GIVEN)]], states


def gather(template: Study, outroot: Path) -> tuple[pd.DataFrame, list[State]]:
    """Rows of all worlds whose predictors are written. BadInput where there is none."""
    assert template.worlds is not None
    frames, states = [], []
    parts = {DEVELOPMENT: template.worlds.development, LOCKED: template.worlds.locked}
    for part, worlds in parts.items():
        for world in worlds:
            study = of_world(template, world)
            place = outroot / study.results
            if (place / PREDICTORS / "predictors.csv").is_file():
                found, became = of_one(study, place, world, part)
                frames.append(found)
                states += became
            else:
                states.append(State(world, "", "not run"))
    if not frames:
        raise BadInput(f"{outroot}: no world of {template.path} has predictors: run the study")
    return pd.concat(frames, ignore_index=True), states


def predictors_of(rows: pd.DataFrame) -> list[str]:
    """Columns that may predict: numbers of some model that are not targets."""
    out = (*GIVEN, TARGET, *SECONDARY, "steps")
    kept = [c for c in rows if c not in out and rows[c].notna().any()]
    return [str(c) for c in kept if pd.api.types.is_numeric_dtype(rows[c])]
