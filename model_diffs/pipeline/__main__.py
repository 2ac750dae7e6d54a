"""What `pipeline.sh` asks: the plan of a study, what a failed unit left, the closing table.

    python -m model_diffs.pipeline plan FOLDER [words of pipeline.sh …]
    python -m model_diffs.pipeline failed FOLDER UNIT STATUS
    python -m model_diffs.pipeline close FOLDER

`plan` prints what there is to do and writes FOLDER/units (one line per process: unit, number, name,
what, log, then the words of the command, by tabs), FOLDER/settings (one per line) and
FOLDER/plan.json. The shell runs the lines and notes `unit status` in FOLDER/ran.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_diffs.core import options, results
from model_diffs.core.errors import BadInput
from model_diffs.core.options import option
from model_diffs.core.results import RECORD, PlannedRun
from model_diffs.core.script import load_environment
from model_diffs.core.step import load_steps
from model_diffs.pipeline import studies, units
from model_diffs.pipeline.environment import Settings, with_all_methods, with_environment
from model_diffs.pipeline.plan import Planner
from model_diffs.pipeline.studies import Study
from model_diffs.pipeline.units import Unit

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options."""

    force: bool = option(False, "run again what is complete")
    steps: str = option("", "only these: numbers, ranges, names, such as 1,4-6,report")
    dry_run: bool = option(False, "say what would run, and run nothing")
    keep_going: bool = option(False, "go on with the next step after a failure")
    all_methods: bool = option(False, "one unlearned model per method; compare nothing")


HELP = """\
./pipeline.sh [STUDY] [options]: makes a study's models, measures every comparison, writes the page.

STUDY is a file in studies/ by name, or a path (default: miniature, which needs no network, token or
GPU). What is complete is skipped; what is stale is run again.

Environment variables, and .env, override the study: BASE, COMPARE (models, or role=model; roles are
filtered, control, unlearned), FORGET_TEXT, RETAIN_TEXT, QUESTIONS, ATTACK_TEXT, DICTIONARY,
UNLEARN (entries or methods), UNLEARN_SEEDS, MAX_SAMPLES, OUTROOT, PARAM_DEVICE, PARAM_DTYPE,
ACTIVATION_DEVICE, ACTIVATION_DTYPE, LAUNCHER (such as "accelerate launch --num_processes 2").
Results are written under OUTROOT (outputs), one folder per comparison; logs to OUTROOT/logs.

Steps:
"""


def _help() -> str:
    lines = [f"{one.step.number:4d}  {one.name:36s} {one.step.question}" for one in load_steps()]
    return HELP + "\n".join(lines)


def _device(settings: Settings) -> str:
    if settings.activation_device != "auto":
        return settings.activation_device
    if platform.system() == "Darwin":
        return "auto (mps)"
    if shutil.which("nvidia-smi"):
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
        if found.returncode == 0 and found.stdout.strip():
            return "auto (cuda)"
    return "auto (cpu)"


def _record_time(folder: str) -> int | None:
    record = Path(folder) / RECORD
    return record.stat().st_mtime_ns if record.is_file() else None


def _rows(planned: list[Unit]) -> list[Row]:
    return [
        {
            "unit": position,
            "number": unit.number,
            "label": target.planned.label,
            "folder": str(target.planned.folder),
            "status": target.status,
            "before": _record_time(str(target.planned.folder)),
        }
        for position, unit in enumerate(planned)
        for target in unit.targets
    ]


def _print_table(rows: list[tuple[int, str, str, str]]) -> None:
    print(f"\n{'step':5s} {'comparison':62s} {'result':8s} {'seconds':>8s}")
    for number, label, result, seconds in rows:
        print(f"{number:<5d} {label:62s} {result:8s} {seconds:>8s}".rstrip())


def _what(unit: Unit) -> str:
    todo = unit.todo
    return todo[0].planned.label if unit.name.startswith("unlearn") else f"{len(todo)} to do"


def _parse(words: list[str]) -> tuple[str, Options]:
    """Name or path of the study, and the options."""
    named = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before != "--steps"
    ]
    if len(named) > 1:
        raise BadInput(f"one study at a time: {named[0]} or {named[1]}")
    rest = [word for word in words if word not in named]
    if {"-h", "--help"} & set(words):
        print(_help())
        rest = ["--help"]
    return (named or ["miniature"])[0], options.parse(Options, rest, None)


def _units(study: Study, settings: Settings, chosen: Options) -> tuple[Planner, list[Unit]]:
    if chosen.all_methods:
        study = with_all_methods(study, os.environ)
        planner = Planner(study, settings, load_steps())
        found = [*planner.make(), *planner.unlearn(every=True)]
    else:
        planner = Planner(study, settings, load_steps())
        if not planner.changed:
            raise BadInput(f"{study.path}: the base is compared with nothing: name models")
        found = [*planner.make(), *planner.unlearn(), *planner.steps()]
    return planner, units.with_states(units.select(found, chosen.steps), chosen.force)


def make_plan(folder: Path, words: list[str]) -> None:
    """Plan the study that the words name; with --dry-run only say what would run."""
    name, chosen = _parse(words)
    load_environment()
    study = with_environment(studies.read_study(name))
    settings = Settings.of(os.environ)
    planner, planned = _units(study, settings, chosen)
    rows = _rows(planned)
    print(f"study:   {study.name} ({study.path})\nbase:    {study.base}")
    for model, role in planner.changed.items():
        print(f"changed: {model} ({role})")
    targets = [one for unit in planned for one in unit.targets]
    complete = sum(one.status in ("complete", "follows") or one.forced for one in targets)
    print(f"device:  {_device(settings)}")
    print(f"done:    {complete} of {len(rows)} results are complete\n")
    for unit in planned:
        for one in unit.targets:
            if one.status == "stale" and not one.forced:
                print(f"step {unit.number}  {one.planned.label}: stale, {one.reason}")
    todo = [(position, unit) for position, unit in enumerate(planned) if unit.todo]
    if todo and not chosen.dry_run:
        _write_plan(folder, study, settings, chosen, todo, rows)
        return
    for _, unit in todo:
        words = units.narrowed(unit, chosen.force)
        print(f"step {unit.number}  would run: {unit.script.name} {shlex.join(words)}")
    shown = {"complete": "skipped", "follows": "follows"}
    _print_table([(r["number"], r["label"], shown.get(r["status"], "pending"), "") for r in rows])
    _print_places(settings.outroot, rows, chosen.dry_run)


def _write_plan(
    folder: Path,
    study: Study,
    settings: Settings,
    chosen: Options,
    todo: list[tuple[int, Unit]],
    rows: list[Row],
) -> None:
    logs = Path(settings.outroot) / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{settings.outroot} cannot be written: set OUTROOT") from error
    lines = []
    for position, unit in todo:
        log = logs / f"{unit.number}_{unit.name}.log"
        words = units.command(unit, settings.launcher, chosen.force)
        start = [position, unit.number, unit.script.name, _what(unit), log]
        lines.append("\t".join(map(str, [*start, *words])))
    (folder / "units").write_text("\n".join(lines) + "\n", encoding="utf-8")
    invocation = f"{study.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    keep = int(chosen.keep_going or chosen.all_methods)
    (folder / "settings").write_text(f"{settings.outroot}\n{invocation}\n{keep}\n")
    content = {"rows": rows, "outroot": settings.outroot, "all_methods": chosen.all_methods}
    (folder / "plan.json").write_text(json.dumps(content), encoding="utf-8")


def _print_places(outroot: str, rows: list[Row], dry_run: bool) -> None:
    print(f"\nResults: {outroot}")
    page = Path(outroot) / "report" / "report.html"
    planned = any(Path(row["folder"]) == page.parent for row in rows)
    if planned and page.is_file() and not dry_run:
        print(f"Page:    {page}")


def note_failed(folder: Path, unit: int, status: int) -> None:
    """Say how a unit failed, and note it beside each folder that it left unmade."""
    line = (folder / "units").read_text(encoding="utf-8").splitlines()
    _, number, script, _, log = next(x for x in line if x.startswith(f"{unit}\t")).split("\t")[:5]
    said = [x for x in Path(log).read_text(encoding="utf-8", errors="replace").splitlines() if x]
    print(f"step {number} failed with status {status}; the end of {log}:", file=sys.stderr)
    for one in said[-15:]:
        print(f"  | {one}", file=sys.stderr)
    for row in json.loads((folder / "plan.json").read_text(encoding="utf-8"))["rows"]:
        place = Path(row["folder"])
        unmade = row["unit"] == unit and row["status"] != "complete"
        # A step that could has said so itself; one that was killed could not.
        said_so = results.read_failure(place).get("invocation") == os.environ[results.INVOCATION]
        if unmade and not said_so and _record_time(row["folder"]) == row["before"]:
            reason = f"{script} ended with status {status}: {said[-1] if said else 'no output'}"
            results.note_failure([PlannedRun(place, row["label"], {})], reason)


def close(folder: Path) -> None:
    """The closing table: every result up to the last unit that ran."""
    content = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    notes = (folder / "ran").read_text().splitlines() if (folder / "ran").exists() else []
    ran = {int(unit): int(status) for unit, _, status in (note.partition(" ") for note in notes)}
    table, outcome = [], {}
    for row in content["rows"]:
        if row["status"] == "complete":
            table.append((row["number"], row["label"], "skipped", ""))
            outcome[row["folder"]] = "skipped"
            continue
        if row["unit"] not in ran:
            break
        record = results.read_record(Path(row["folder"])) or {}
        made = _record_time(row["folder"]) != row["before"]
        result = "done" if made else "failed" if ran[row["unit"]] else "skipped"
        seconds = str(record.get("seconds", "")) if made else ""
        table.append((row["number"], row["label"], result, seconds))
        outcome[row["folder"]] = result
    _print_table(table)
    if content["all_methods"]:
        from model_diffs.unlearning.summary import table as summary

        made = {Path(f): result for f, result in outcome.items() if "unlearned_models" in f}
        print("\n" + summary([*made], made))
    elif not any(ran.values()):
        _print_places(content["outroot"], content["rows"], False)


def main(words: list[str]) -> None:
    """Answer `pipeline.sh`."""
    sys.argv[0] = "pipeline.sh"
    question, folder, *rest = words
    try:
        if question == "plan":
            make_plan(Path(folder), rest)
        elif question == "failed":
            note_failed(Path(folder), int(rest[0]), int(rest[1]))
        else:
            close(Path(folder))
    except BadInput as error:
        print(f"pipeline.sh: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
