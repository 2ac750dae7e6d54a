"""Studies of several worlds: each is a study of its own, in four stages.

Models are made; those that missed their target are left out; steps measure the others; what
predicts the attacks is written; only then are models attacked.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from model_diffs.attacks import lock
from model_diffs.core.errors import BadInput
from model_diffs.core.folders import read_json
from model_diffs.core.step import SCRIPTS
from model_diffs.pipeline.studies import Study, read_study
from model_diffs.pipeline.units import PREDICTORS, UNLEARN

ANALYSIS = ("predict_brittleness.py", "report_brittleness.py")
"""What follows when the last world is over."""


PREDICTION = "brittleness/prediction"
"""Where the first of them writes, under the outroot."""


class Stage(NamedTuple):
    """Part of the run of one world."""

    world: int
    study: Study
    """Without the entries that are left out."""
    steps: str
    """As for --steps."""


def chosen_worlds(study: Study, words: str) -> tuple[int, ...]:
    """The worlds of --worlds, such as `1,2`; all where it is empty. Raises BadInput."""
    if study.worlds is None:
        raise BadInput(f"{study.path}: --worlds is of studies with [worlds]")
    every = (*study.worlds.development, *study.worlds.locked)
    found = tuple(int(one) if one.isdecimal() else -1 for one in words.split(",") if one.strip())
    if unknown := [one for one in found if one not in every]:
        raise BadInput(f"--worlds {words}: no world {unknown[0]}; there are: {every}")
    return found or every


def _left_out(study: Study) -> list[str]:
    """Entries that ended without reaching their --until."""
    missed = []
    for folder, (entry, _) in study.made().items():
        until = (read_json(Path(folder) / "unlearning.json") or {}).get("until")
        if until and not until["reached"]:
            missed.append(entry.name)
    return missed


def _without_missed(study: Study) -> Study:
    """The study without models that are not as strongly unlearned as the others."""
    missed = _left_out(study)
    for name in missed:
        print(f"{name} did not reach its target: left out", flush=True)
    kept = (replace(one, compare=one.compare and one.name not in missed) for one in study.unlearn)
    return replace(study, unlearn=tuple(kept))


def of_world(template: Study, world: int) -> Study:
    """The study of one world. A locked one says so in its texts."""
    study, worlds = read_study(str(template.path), world=world), template.worlds
    if worlds and world in worlds.locked:
        make = tuple(f"{one} --registration {worlds.registration}" for one in study.make)
        study = replace(study, make=make)
    return study


def stages(template: Study, words: str, steps: str) -> Iterator[Stage]:
    """The stages of the chosen worlds, each read when the one before it is over.

    `steps` restricts each world to these. Locked worlds are not begun before the study is
    registered.
    """
    numbers, worlds = chosen_worlds(template, words), template.worlds
    assert worlds is not None
    for world in numbers:
        if world in worlds.locked and (why := lock.unregistered(worlds.registration)):
            print(f"world {world} is locked: {why}", flush=True)
            continue
        study = of_world(template, world)
        if steps:
            yield Stage(world, _without_missed(study), steps)
            continue
        makers = [command.split()[0] for command in study.make]
        yield Stage(world, study, ",".join([*makers, UNLEARN]))
        study = _without_missed(study)
        for part in (worlds.measure, PREDICTORS, worlds.attack):
            yield Stage(world, study, part)


def _newer(template: Study, places: Iterable[Path], made: Path) -> bool:
    """Whether a result of the worlds, or the study itself, is younger than the analysis."""
    if not made.is_file():
        return True
    read = (record for place in places for record in place.rglob("run.json"))
    then = made.stat().st_mtime_ns
    return any(one.stat().st_mtime_ns > then for one in (template.path, *read))


def analyse(template: Study, outroot: str) -> int:
    """Analyse what the worlds gave and write the page; the exit status. Nothing before a world has
    predictors."""
    worlds = template.worlds
    assert worlds is not None
    every = (of_world(template, world) for world in (*worlds.development, *worlds.locked))
    places = [Path(outroot) / one.results for one in every]
    if not any((place / lock.FOLDER / "predictors.csv").is_file() for place in places):
        return 0
    # The registered script does not note what it reads: another world would be passed over.
    again = _newer(template, places, Path(outroot) / PREDICTION / "run.json")
    for script in ANALYSIS:
        print(f"\n── {script} ──", flush=True)
        words = ["--study", str(template.path), "--outroot", outroot]
        words += ["--force"] if again and script == ANALYSIS[0] else []
        status = subprocess.run([sys.executable, str(SCRIPTS / script), *words]).returncode
        if status:
            return status
    return 0
