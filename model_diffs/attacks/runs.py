"""The result folders of an attack: one per model, the filtered one's first, and one over all.

Light at import: scripts plan with it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from model_diffs.attacks import lock
from model_diffs.core import naming, results, step
from model_diffs.core.errors import BadInput
from model_diffs.core.options import recorded
from model_diffs.core.processes import wait_for_processes
from model_diffs.core.results import PlannedRun
from model_diffs.core.step import model_runs

ATTACKED = "attacked"
"""Argument of the folder over all models: their labels."""


def planned_runs(options: Any, folder: str) -> list[PlannedRun]:
    """A folder per model, and one over all of them unless --outdir places a single one.

    The one over all covers the models of this call and those attacked with the same options before.
    """
    planned = model_runs(options, folder)
    if options.outdir:
        return planned
    shared = json.loads(json.dumps(recorded(options)))
    labels = [one.label for one in planned]
    for record in sorted(Path(options.outroot).glob(f"*/{folder}/{results.RECORD}")):
        old = (results.read_record(record.parent) or {}).get("arguments", {})
        if {name: value for name, value in old.items() if name != "model"} == shared:
            labels.append(record.parent.parent.name)
    # Base and filtered models before the unlearned ones, whose names are longer.
    base = naming.model_label(options.base) if options.base else ""
    order = sorted(dict.fromkeys(labels), key=lambda label: (label != base, "__" in label, label))
    overview = Path(options.outroot) / folder
    return [*planned, PlannedRun(overview, "all models", {**shared, ATTACKED: order})]


def filtered_run(script: ModuleType, options: Any) -> PlannedRun | None:
    """The result folder of the filtered model, whatever --model and --outdir name.

    Asked for by all processes: where it is made in this run, the first of them has written it.
    """
    wait_for_processes()
    if options.filtered is None:
        return None
    alone = replace(options, model=(options.filtered,), outdir=None)
    return step.planned_runs(script, alone)[0]


def filtered_first(script: ModuleType, options: Any, todo: list[PlannedRun]) -> list[PlannedRun]:
    """The runs of models in the order to make them: all others are compared with the filtered one.

    Raises BadInput where that is neither among them nor attacked with these options before.
    """
    filtered = filtered_run(script, options)
    first = filtered.label if filtered else ""
    known = not filtered or first in [one.label for one in todo]
    if filtered and not known and results.state(filtered).status != "complete":
        why = "is not attacked with these options; add it to --model"
        raise BadInput(f"--filtered: {options.filtered} {why}")
    return sorted(todo, key=lambda one: one.label != first)


def make_all(
    script: ModuleType,
    options: Any,
    todo: Iterable[PlannedRun],
    attack: Callable[[list[PlannedRun]], None],
    draw: Callable[[PlannedRun], None],
) -> None:
    """Attack the models that are not complete, then draw all of them together.

    Raises BadInput where the questions are of a locked world.
    """
    base = naming.model_label(options.base) if options.base else ""
    others = [one for one in options.model if naming.model_label(one) != base]
    labels = [naming.short_label(one, base) for one in others]
    lock.check(options.questions, options.outroot, labels)
    models = [planned for planned in todo if planned.model_a]
    if models:
        attack(models)
    wait_for_processes()  # until the first one has written the results
    # What was compared with an older result of the filtered model is stale now, and attacked models
    # make the overview stale, also where it was complete.
    every = step.planned_runs(script, options)
    stale = [p for p in every if p.model_a and results.state(p).status != "complete"]
    if stale:
        attack(stale)
    wait_for_processes()
    for planned in every:
        if not planned.model_a:
            draw(planned)
