"""All numbers of a model that were measured without attacking it: a row per changed model."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core import naming
from model_diffs.core.errors import BadInput
from model_diffs.core.folders import read_json
from model_diffs.core.step import Measure, Script
from model_diffs.core.tables import Absent, Place, Tables
from model_diffs.report import reductions
from model_diffs.report.axes import declared_by

if TYPE_CHECKING:
    import pandas as pd

ATTACKS = ("relearning", "elicitation")
"""Folders of the steps that attack."""
RATES = "rate_sum"
"""Σ of the learning rates over all steps."""


class Column(NamedTuple):
    """A predictor."""

    script: Script
    measure: Measure


def columns(scripts: Sequence[Script], base: str) -> list[Column]:
    """Every measure that a step declares, without those of attacks."""
    _, declared = declared_by(scripts, base)
    return [
        Column(one.script, one.measure) for one in declared if one.script.step.folder not in ATTACKS
    ]


def trained(model: str) -> dict[str, Any]:
    """What `unlearning.json` says of how a model was made; empty for others."""
    found = read_json(Path(model) / "unlearning.json") or {}
    if not found:
        return {}
    rates = [step["lr"] for step in found.get("losses", [])]
    return {"method": found["method"], "steps": len(rates), RATES: math.fsum(rates)}


def rows(
    outroot: Path, base: str, models: Iterable[str], scripts: Sequence[Script], seed: int
) -> Iterator[dict[str, Any]]:
    """A row per model: how it was made, then every measure; None where there is none."""
    tables, label = Tables(outroot), naming.model_label(base)
    known = columns(scripts, label)
    for model in models:
        changed = naming.model_label(model)
        pair = naming.comparison_label(base, model)
        row: dict[str, Any] = {"model": naming.short_label(model, label)}
        row |= {"method": None, "steps": None, RATES: None, **trained(model)}
        for script, measure in known:
            owner = pair if script.step.scope == "comparison" else changed
            place = Place(tables, f"{owner}/{script.step.folder}", label, changed, seed)
            try:
                row[measure.key] = reductions.read(measure, place).value
            except Absent:
                row[measure.key] = None
        yield row


def tables_read(
    outroot: Path, base: str, models: Iterable[str], scripts: Sequence[Script]
) -> list[Path]:
    """The tables that rows are made from."""
    folders = {one.script.step.folder for one in columns(scripts, naming.model_label(base))}
    found = []
    for model in models:
        for owner in (naming.comparison_label(base, model), naming.model_label(model)):
            for folder in sorted(folders):
                found += sorted((outroot / owner / folder).glob("*.csv"))
        found += [path for path in [Path(model) / "unlearning.json"] if path.is_file()]
    return found


def frame(
    outroot: Path,
    base: str,
    model: str,
    scripts: Sequence[Script],
    seed: int,
    needed: Sequence[str],
) -> "pd.DataFrame":
    """One row of one model. Raises BadInput, naming the steps to run, where a needed one lacks."""
    import pandas as pd

    (row,) = rows(outroot, base, [model], scripts, seed)
    known = {one.measure.key: one.script for one in columns(scripts, naming.model_label(base))}
    lacking = [key for key in needed if row.get(key) is None]
    if lacking:
        steps = sorted({known[key].name for key in lacking if key in known})
        raise BadInput(f"{model} has no {', '.join(lacking)}: run {', '.join(steps)} on it first")
    return pd.DataFrame([row])
