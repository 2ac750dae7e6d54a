"""Units, one process each: which folders they would fill, what of that is complete, their commands.

What a unit would fill is asked of its script.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core import memory, results
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.results import RECORD, PlannedRun
from model_diffs.core.step import Script, planned_runs

DATASETS, REPORT = "create_datasets.py", "report.py"
TRAIN, UNLEARN = "train_itda.py", "unlearn.py"
PREDICTORS = "write_predictors.py"
"""Fixes what predicts the attacks of a world before it is attacked."""


@dataclass
class Target:
    """A folder that a unit would fill, and its state when the plan was made."""

    planned: PlannedRun
    status: str
    """`complete`, `stale` or `missing`; `follows`: complete, but what it reads will change;
    `blocked`: what it is made from could not be made."""
    reason: str
    forced: bool = False
    """Complete, and made again by --force."""
    before: int | None = None
    """When its record was written, as it was when the plan was made; None: there was none."""

    @property
    def pending(self) -> bool:
        """Whether it is made, or looked at again."""
        return self.status not in ("complete", "blocked")

    def made(self) -> bool:
        """Whether it was made since then."""
        return _record_time(self.planned.folder) != self.before


def _record_time(folder: Path) -> int | None:
    try:
        return (folder / RECORD).stat().st_mtime_ns
    except OSError:
        return None


@dataclass
class Unit:
    """One process: a script and its words, and the folders it would fill."""

    script: Script
    words: list[str]
    targets: list[Target] = field(default_factory=list)
    chosen: Any = None
    """The words as the script's Options, once they were parsed."""
    planned: list[PlannedRun] = field(default_factory=list)
    """The folders that these fill."""
    name: str = ""
    """Of its log; the script's with what tells it from others of that script."""
    alone: bool = False
    """Makes the result of one model, and not the one over all models that its script makes too."""

    @property
    def number(self) -> int:
        """The step's number."""
        return self.script.step.number

    @property
    def todo(self) -> list[Target]:
        """The folders that are not complete."""
        return [one for one in self.targets if one.pending]


# ── states ────────────────────────────────────────────────────────────────────────────────────────


def _dirties(target: Target, unit: Unit, dirty: set[str]) -> bool:
    """Whether something that this folder reads will be made anew."""
    planned, step = target.planned, unit.script.step
    if step.scope == "study" or not planned.model_a:  # reads the results of all models
        made = {Path(one).name for one in dirty}
        return bool(made & {step.folder, *step.reads}) or bool(dirty and unit.script.name == REPORT)
    reads = {str(planned.folder.parent / folder) for folder in step.reads}
    # Models, and folders that an option names, such as a dictionary.
    named = [planned.model_a, planned.model_b, *(v for v in vars(unit.chosen).values() if v)]
    return bool(dirty & (reads | {os.path.abspath(v) for v in named if isinstance(v, str)}))


def with_planned(units: Iterable[Unit]) -> list[Unit]:
    """Ask every script what it would fill. Raises BadInput, or leaves, for what it refuses."""
    found = list(units)
    for unit in found:
        module = unit.script.module
        unit.chosen = parse(module.Options, unit.words, module.__doc__)
        unit.planned = planned_runs(module, unit.chosen)
    return found


def with_states(units: Iterable[Unit], force: bool) -> list[Unit]:
    """Look which of the folders that units would fill are complete.

    A complete folder whose inputs will be made anew before it `follows`: its script looks again.
    """
    found, dirty, all_dirty = [], set[str](), False
    for unit in units:
        step = unit.script.step
        for planned in unit.planned:
            status, reason = results.state(planned)
            target = Target(planned, status, reason, before=_record_time(planned.folder))
            if force and status == "complete":
                target.status, target.reason, target.forced = "stale", "--force", True
            if not target.pending and (all_dirty or _dirties(target, unit, dirty)):
                target.status = "follows"
            if target.pending:
                dirty |= {str(planned.folder), os.path.abspath(planned.folder)}
                # What makes texts and models is read by everything.
                all_dirty |= step.scope == "other" and unit.script.name not in (UNLEARN, TRAIN)
            unit.targets.append(target)
        found.append(unit)
    return found


def narrowed(unit: Unit, force: bool) -> list[str]:
    """The unit's words with only those models whose folders are to be made."""
    step, words = unit.script.step, list(unit.words)
    flags = {"comparison": "--model-b", "model": "--model"}
    whole = step.scope == "model" and step.summary and not unit.alone
    if step.scope in flags and not whole:
        start = words.index(flags[step.scope]) + 1
        end = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
        chosen = [one.planned.model_b or one.planned.model_a for one in unit.todo]
        words[start:end] = list(dict.fromkeys(chosen))
    if unit.alone:
        words += ["--outdir", str(unit.todo[0].planned.folder)]
    return words + (["--force"] if force else [])


class Fit(NamedTuple):
    """What a unit needs before it loads anything, and what to do where that does not fit, in words;
    empty where nothing is said, or all is well."""

    needs: str
    problem: str


def fit(unit: Unit) -> Fit:
    """Whether the memory of this machine, or of --memory, holds the unit."""
    of = memory.footprint(unit.script.module)
    todo = [one.planned for one in unit.todo]
    need = memory.estimate(of, unit.chosen, todo) if of and todo else None
    if of is None or need is None:
        return Fit("", "")
    there = memory.room(unit.chosen, todo[0].folder)
    return Fit(memory.in_words(need, there), memory.problem(of, unit.chosen, todo, there))


def command(unit: Unit, launcher: Sequence[str], force: bool) -> list[str]:
    """The words of the process: launcher where the step may use one, script, options."""
    start = launcher if unit.script.step.processes else ("python",)
    return [*start, unit.script.name, *narrowed(unit, force)]


def select(units: Sequence[Unit], steps: str) -> list[Unit]:
    """The units of `--steps`: numbers, ranges and names of scripts or folders, by commas."""
    if not steps:
        return list(units)
    chosen: list[Unit] = []
    for part in steps.split(","):
        if numbers := re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip()):
            low, high = int(numbers[1]), int(numbers[2] or numbers[1])
            found = [one for one in units if low <= one.number <= high]
        elif part.strip() and not part.strip()[0].isdecimal():
            name = part.strip().removesuffix(".py")
            found = [
                one
                for one in units
                if name in (one.script.name.removesuffix(".py"), one.script.step.folder)
            ]
        else:
            raise BadInput(
                f"--steps {steps}: write numbers, ranges and names, such as 1,4-6,report"
            )
        if not found:
            raise BadInput(f"--steps {steps}: no such step: {part.strip()} (--help lists them)")
        chosen += found
    return [one for one in units if any(one is other for other in chosen)]
