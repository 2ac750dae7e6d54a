"""What waits for what: which units read what others will make.

Edges are of two kinds. A unit that reads a model, text or table that another one makes *needs* it:
without it, it is not run. A unit that only comes *after* another runs whatever became of that one:
the report, and steps that would otherwise pass the same model over the same texts at once.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from model_diffs.core import naming
from model_diffs.pipeline.units import DATASETS, REPORT, Target, Unit

WORTH_A_PART = 4


@dataclass
class Edges:
    """What a unit waits for: places in the list of units."""

    needs: set[int] = field(default_factory=set)
    after: set[int] = field(default_factory=set)


def makes_ground(unit: Unit) -> bool:
    """Whether it makes texts outside of its folder, which are read by everything."""
    return unit.script.name == DATASETS


def gathers(target: Target, unit: Unit) -> bool:
    """Whether this result is made from those of all models, of whatever there is."""
    scope = unit.script.step.scope
    return scope == "study" or (scope != "other" and not target.planned.model_a)


def inputs(target: Target, unit: Unit) -> set[str]:
    """Absolute paths of what this result is made from: models, folders, results of other steps."""
    planned, step, chosen = target.planned, unit.script.step, vars(unit.chosen)
    named: list[object] = [planned.model_a, planned.model_b]
    for name, value in chosen.items():
        if name not in ("model", "model_b", "outdir", "outroot"):
            named += value if isinstance(value, tuple) else [value]
    found = {os.path.abspath(word) for word in named if isinstance(word, str) and word}
    found |= {os.path.abspath(planned.folder.parent / folder) for folder in step.reads}
    if step.scope == "model" and chosen.get("filtered"):  # compared with the same of that model
        label = naming.model_label(chosen["filtered"])
        found.add(os.path.abspath(Path(chosen["outroot"]) / label / step.folder))
    return found - {os.path.abspath(planned.folder)}


def _around(paths: Iterable[str]) -> set[str]:
    """These paths with all folders that they lie in: a text is made by what makes its folder."""
    return {place for path in paths for place in (path, *map(str, Path(path).parents))}


def _models(unit: Unit) -> set[str]:
    """The models of a unit whose states it passes over texts."""
    if not unit.script.accepts("side_by_side"):
        return set()
    names = (name for one in unit.todo for name in (one.planned.model_a, one.planned.model_b))
    return {os.path.abspath(name) for name in names if name}


def edges(units: Sequence[Unit]) -> list[Edges]:
    """Of each unit, which earlier ones it waits for. Complete results are waited for by nobody."""
    maker: dict[str, int] = {}
    """Folder → the unit that makes it."""
    makers: dict[str, set[int]] = {}
    """Name of a folder, such as param_stats → the units that make one of that name."""
    passes: dict[str, int] = {}
    """Model → the first unit that passes it over texts, and keeps the sums for the others."""
    ground: set[int] = set()
    found = []
    for number, unit in enumerate(units):
        own = Edges(needs=set(ground))
        for target in unit.todo:
            if unit.script.name == REPORT:
                own.after |= set(range(number))
            elif gathers(target, unit):
                wanted = {unit.script.step.folder, *unit.script.step.reads}
                found_here = {i for name in wanted for i in makers.get(name, ())}
                (own.after if unit.script.step.scope == "study" else own.needs).update(found_here)
            else:
                own.needs |= {maker[p] for p in _around(inputs(target, unit)) if p in maker}
        own.after |= {passes[model] for model in _models(unit) if model in passes}
        own.after -= own.needs
        found.append(own)
        for target in unit.todo:
            folder = os.path.abspath(target.planned.folder)
            maker[folder] = number
            makers.setdefault(Path(folder).name, set()).add(number)
        for model in _models(unit):
            passes.setdefault(model, number)
        if makes_ground(unit) and unit.todo:
            ground.add(number)
    return found


def lost(unit: Unit, unmade: set[str]) -> list[Target]:
    """The results that cannot be made, since one of the folders `unmade` is read for them."""
    return [
        target
        for target in unit.todo
        if not gathers(target, unit) and _around(inputs(target, unit)) & unmade
    ]


# ── division ──────────────────────────────────────────────────────────────────────────────────────


def divided(units: Sequence[Unit], size: int) -> list[Unit]:
    """Units of at most `size` models each, so that several can run at once.

    Where a script also makes a result over all models, each model is a unit, and a last one makes
    that result. Names of parts are the same whatever of them is complete.
    """
    found = []
    for unit in units:
        single = [one for one in unit.targets if not gathers(one, unit)]
        if unit.script.step.scope not in ("comparison", "model") or len(single) <= 1:
            found.append(unit)
            continue
        # That which the others are compared with comes first.
        first = {path for one in single for path in inputs(one, unit)}
        single.sort(key=lambda one: os.path.abspath(one.planned.folder) not in first)
        summary = len(single) < len(unit.targets)
        own = 1 if summary else size
        parts = [single[i : i + own] for i in range(0, len(single), own)]
        if len(parts) == 1:
            found.append(unit)
            continue
        for number, part in enumerate(parts, 1):
            name = part[0].planned.label if own == 1 else str(number)
            made = replace(unit, targets=part, name=f"{unit.name}.{name}", alone=summary)
            if made.todo:
                found.append(made)
        if summary and unit.todo:
            found.append(unit)
    return found


def for_jobs(units: Sequence[Unit], jobs: int) -> list[Unit]:
    """Units for `jobs` at a time: a step is divided among them where it has models enough.

    Each part reads the base anew, so that fewer models than `WORTH_A_PART` are left together.
    """
    if jobs == 1:
        return [*units]
    most = max((len(unit.todo) for unit in units), default=0)
    return divided(units, max(WORTH_A_PART, -(-most // jobs)))


def unmade(units: Iterable[Unit]) -> set[str]:
    """Folders that units which failed left unmade."""
    left = (one for unit in units for one in unit.todo if not one.made())
    return {os.path.abspath(one.planned.folder) for one in left}
