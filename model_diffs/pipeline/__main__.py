"""`pipeline.sh`, once its environment is there: plans a study, runs what is needed, says what came.

python -m model_diffs.pipeline [STUDY] [options]
"""

import os
import platform
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from model_diffs.core import options, results
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.options import option, positive
from model_diffs.core.script import run_script
from model_diffs.core.step import load_steps
from model_diffs.pipeline import closing, cluster, executor, lock, prepared, studies, units, worlds
from model_diffs.pipeline.environment import (
    Settings,
    cpu_cores,
    visible_gpus,
    with_all_methods,
    with_environment,
)
from model_diffs.pipeline.graph import divided, for_jobs
from model_diffs.pipeline.plan import Planner
from model_diffs.pipeline.studies import Study
from model_diffs.pipeline.units import Unit


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options."""

    force: bool = option(False, "run again what is complete")
    steps: str = option("", "only these: numbers, ranges, names, such as 1,4-6,report")
    worlds: str = option("", "only these worlds of a study of several: numbers, such as 1,2")
    dry_run: bool = option(False, "say what would run, and run nothing")
    keep_going: bool = option(False, "go on with what does not depend on a step that failed")
    jobs: int | None = option(
        None,
        "units to run at a time on this machine; none: the study's number, or 1",
        check=positive,
    )
    slurm: bool = option(False, "submit each unit as a job of a SLURM cluster, and follow them")
    slurm_args: str = option("", "in place of the study's [cluster]: partition=gpu,gpus=1,time=90")
    status: bool = option(False, "how the units of a study stand on the cluster")
    cancel: bool = option(False, "end the study's jobs on the cluster")
    all_methods: bool = option(False, "one unlearned model per method; compare nothing")
    device: str | None = option(None, "of all scripts: cuda, mps, cpu; none: the study's, or auto")
    memory: str | None = option(
        None,
        "GB that each script counts with, such as 24,32 (device, main memory); none: what is free",
        convert=options.gigabytes,
    )
    verify: bool = option(False, "check the hash of every file, even where its time is unchanged")


INTERRUPTED = 130
VALUED = ("--steps", "--jobs", "--slurm-args", "--device", "--memory", "--worlds")
"""Options that a value follows."""

HELP = """\
./pipeline.sh [STUDY] [options]: makes a study's models, measures every comparison, writes the page.

STUDY is a file in studies/ by name, or a path (default: miniature, which needs no network, token or
GPU). What is complete is skipped; what is stale is run again.

Environment variables, and .env, override the study: BASE, COMPARE (models, or role=model; roles are
filtered, control, unlearned), FORGET_TEXT, RETAIN_TEXT, QUESTIONS, ATTACK_TEXT, DICTIONARY,
UNLEARN (entries or methods), UNLEARN_SEEDS, MAX_SAMPLES, OUTROOT, PARAM_DEVICE, PARAM_DTYPE,
ACTIVATION_DEVICE, ACTIVATION_DTYPE, MEMORY (GB to count with: 24,32 for a device and main memory),
LAUNCHER (such as "accelerate launch --num_processes 2").
Results are written under OUTROOT (outputs), one folder per comparison; logs to OUTROOT/logs.

Steps:
"""


def _help() -> str:
    lines = [f"{one.step.number:4d}  {one.name:36s} {one.step.question}" for one in load_steps()]
    return HELP + "\n".join(lines)


def _parse(words: list[str]) -> tuple[str, Options]:
    """Name or path of the study, and the options."""
    named = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in VALUED
    ]
    if len(named) > 1:
        raise BadInput(f"one study at a time: {named[0]} or {named[1]}")
    rest = [word for word in words if word not in named]
    if {"-h", "--help"} & set(words):
        print(_help())
        rest = ["--help"]
    return (named or ["miniature"])[0], parse(Options, rest, None)


# ── the plan ──────────────────────────────────────────────────────────────────────────────────────


def _device(settings: Settings) -> str:
    if settings.activation_device != "auto":
        return settings.activation_device
    if platform.system() == "Darwin":
        return "auto (mps)"
    return "auto (cuda)" if visible_gpus() else "auto (cpu)"


def _units(study: Study, settings: Settings, chosen: Options) -> tuple[Planner, list[Unit]]:
    """The units that are asked for. Everything that is refused is refused here."""
    if chosen.all_methods:
        study = with_all_methods(study, os.environ)
        planner = Planner(study, settings, load_steps())
        found = [*planner.make(), *planner.unlearn(every=True)]
    else:
        planner = Planner(study, settings, load_steps())
        if not planner.changed:
            raise BadInput(f"{study.path}: the base is compared with nothing: name models")
        found = [*planner.make(), *planner.unlearn(), *planner.steps()]
    return planner, units.with_planned(units.select(found, chosen.steps))


def _print_plan(planner: Planner, planned: list[Unit]) -> None:
    study = planner.study
    print(f"study:   {study.name} ({study.path})\nbase:    {study.base}")
    for model, role in planner.changed.items():
        print(f"changed: {model} ({role})")
    targets = [one for unit in planned for one in unit.targets]
    complete = sum(one.status in ("complete", "follows") or one.forced for one in targets)
    print(f"device:  {_device(planner.settings)}")
    print(f"done:    {complete} of {len(targets)} results are complete\n")
    for unit in planned:
        for one in unit.targets:
            if one.status == "stale" and not one.forced:
                print(f"step {unit.number}  {one.planned.label}: stale, {one.reason}")


# ── the run ───────────────────────────────────────────────────────────────────────────────────────


def _name_invocation(study: Study) -> None:
    now = time.strftime("%Y%m%d-%H%M%S")
    os.environ.setdefault(results.INVOCATION, f"{study.name}-{now}")


def _end_by_signal(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _shared(study: Study, settings: Settings, chosen: Options, held: int) -> executor.Shared:
    cores = cpu_cores()
    jobs = chosen.jobs or min(study.jobs, cores)
    share = max(1, cores // jobs) if jobs > 1 else 0
    return executor.Shared(
        outroot=settings.outroot,
        launcher=settings.launcher,
        lock=held,
        force=chosen.force,
        keep_going=chosen.keep_going or chosen.all_methods or jobs > 1,
        jobs=jobs,
        threads=study.threads or share,
        gpus=visible_gpus() if jobs > 1 else (),
        forks=prepared.FORKS,
    )


def _refuse_beside_jobs(outroot: str) -> None:
    """Jobs of a cluster hold no lock."""
    there = cluster.log_folder(outroot).is_dir() and shutil.which("squeue")
    if there and (count := len(cluster.active(outroot))):
        raise BadInput(
            f"{count} jobs of a cluster write under {outroot}: wait for them (--status), or end "
            "them (--cancel)"
        )


def _run(planner: Planner, found: list[Unit], chosen: Options) -> int:
    """Run what is not complete, print the closing table, and return the exit status."""
    settings = planner.settings
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _end_by_signal)
    _name_invocation(planner.study)
    _refuse_beside_jobs(settings.outroot)
    with lock.hold(settings.outroot) as held:
        lock.remove_leftovers([settings.outroot, *lock.PRODUCED])
        planned = units.with_states(found, chosen.force)
        _print_plan(planner, planned)
        shared = _shared(planner.study, settings, chosen, held)
        ran: list[tuple[Unit, int]] = []
        todo = [one for one in planned if one.todo]
        try:
            executor.run_units(for_jobs(todo, shared.jobs), shared, ran)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            closing.print_closing(planned, ran, settings.outroot, chosen.all_methods)
            return INTERRUPTED
        closing.print_closing(planned, ran, settings.outroot, chosen.all_methods)
    failed = [status for _, status in ran if status]
    return (1 if shared.keep_going else failed[-1]) if failed else 0


# ── on a cluster ──────────────────────────────────────────────────────────────────────────────────


def _submit(planner: Planner, found: list[Unit], chosen: Options) -> int:
    """Submit what is not complete and follow it to its end; Ctrl-C leaves the jobs running."""
    settings, study = planner.settings, planner.study
    outroot = settings.outroot
    asked = cluster.with_arguments(study.cluster, chosen.slurm_args)
    submitter = cluster.Submitter(outroot, asked, settings.launcher, study.threads, chosen.force)
    _name_invocation(study)
    try:
        with lock.hold(outroot):
            planned = units.with_states(found, chosen.force)
            _print_plan(planner, planned)
            todo = divided([one for one in planned if one.todo], asked.models_per_unit)
            count = submitter.submit(todo)
        print(f"{count} jobs submitted, {len(todo) - count} were there already", flush=True)
        looks = cluster.follow(todo, outroot)
    except KeyboardInterrupt:
        print(
            f"\n{len(cluster.active(outroot))} jobs go on: --status shows them, --cancel ends them"
        )
        return INTERRUPTED
    ran = [(one.unit, int(one.state != cluster.DONE)) for one in looks]
    closing.print_closing(planned, ran, outroot, chosen.all_methods)
    return int(any(status for _, status in ran))


def _status(planner: Planner, found: list[Unit], chosen: Options) -> None:
    planned = units.with_states(found, chosen.force)
    asked = cluster.with_arguments(planner.study.cluster, chosen.slurm_args)
    todo = divided([one for one in planned if one.todo], asked.models_per_unit)
    cluster.print_status(cluster.look(todo, planner.settings.outroot))


def _dry_run(planner: Planner, found: list[Unit], chosen: Options) -> None:
    planned = units.with_states(found, chosen.force)
    _print_plan(planner, planned)
    closing.print_commands(planned, chosen.force)
    closing.print_pending(planned, planner.settings.outroot)


def _act(study: Study, chosen: Options) -> int:
    """What the options ask for, on one study; returns the exit status."""
    study = with_environment(study)
    settings = Settings.of(os.environ)
    settings.memory = chosen.memory or settings.memory
    settings = settings.on(chosen.device or study.device)
    if study.results:
        settings.outroot = str(Path(settings.outroot) / study.results)
    planner, found = _units(study, settings, chosen)
    if chosen.cancel:
        print(f"{cluster.cancel(planner.settings.outroot)} jobs ended")
    elif chosen.status:
        _status(planner, found, chosen)
    elif chosen.dry_run:
        _dry_run(planner, found, chosen)
    else:
        return (_submit if chosen.slurm else _run)(planner, found, chosen)
    return 0


def main() -> None:
    """Run the study that the words name; with --dry-run only say what would run."""
    name, chosen = _parse(sys.argv[1:])
    if chosen.verify:
        os.environ[results.VERIFY] = "1"
    if chosen.slurm and chosen.jobs:
        raise BadInput("--jobs is of this machine: the cluster decides how many jobs run at a time")
    study = studies.read_study(name)
    if study.worlds is None and not chosen.worlds:
        sys.exit(_act(study, chosen))
    statuses = [0]
    for stage in worlds.stages(study, chosen.worlds, chosen.steps):
        print(f"\n── world {stage.world}, {stage.steps} ──", flush=True)
        statuses.append(_act(stage.study, replace(chosen, steps=stage.steps)))
        if statuses[-1] == INTERRUPTED:
            sys.exit(INTERRUPTED)
    partly = chosen.steps or chosen.all_methods
    if not (partly or chosen.dry_run or chosen.status or chosen.cancel):
        statuses.append(worlds.analyse(study, Settings.of(os.environ).outroot))
    sys.exit(max(statuses))


if __name__ == "__main__":
    sys.argv[0] = "pipeline.sh"
    run_script(main)
