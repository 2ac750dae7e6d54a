"""Runs units as jobs of a SLURM cluster, through submitit: submitted with what they wait for.

A job is known by its name, which holds the outroot and the unit: so nothing that was submitted is
submitted twice, even where the submitter vanished. What is done is read from the result folders,
what waits or runs from `squeue`.
"""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core import results
from model_diffs.core.errors import BadInput
from model_diffs.core.step import planned_runs
from model_diffs.pipeline import graph
from model_diffs.pipeline.environment import forget_secrets, program, search_path
from model_diffs.pipeline.studies import Cluster
from model_diffs.pipeline.units import Unit, command

SECONDS_BETWEEN_LOOKS = 5.0
WAITS, RUNS, FAILED, ABSENT, DONE = "waits", "runs", "failed", "not submitted", "done"


class Job(NamedTuple):
    """A job that waits or runs."""

    number: str
    state: str
    """`waits` or `runs`."""
    reason: str
    """Why it waits, in SLURM's words."""


@dataclass(frozen=True)
class Command:
    """What a job does: it becomes the unit's own process."""

    words: tuple[str, ...]
    folder: str
    threads: int

    def __call__(self) -> None:
        os.chdir(self.folder)
        share = str(self.threads or os.environ.get("SLURM_CPUS_PER_TASK", ""))
        if share:
            os.environ.setdefault("OMP_NUM_THREADS", share)
        os.environ["PATH"] = search_path()
        sys.stdout.flush()
        os.execvp(self.words[0], self.words)


# ── what the cluster says ─────────────────────────────────────────────────────────────────────────


def _ask(*words: str) -> str:
    try:
        found = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        raise BadInput(f"{words[0]}: no such program here: --slurm needs a SLURM cluster") from None
    if found.returncode:
        said = " ".join(found.stderr.split())
        raise BadInput(f"{words[0]} failed: {said or f'status {found.returncode}'}")
    return found.stdout


def prefix(outroot: str) -> str:
    """The beginning of the names of all jobs that write under an outroot."""
    place = hashlib.sha256(os.path.realpath(outroot).encode()).hexdigest()[:10]
    return f"model-diffs:{place}:"


def active(outroot: str) -> dict[str, Job]:
    """This user's jobs under an outroot that wait or run, by the name of their unit."""
    start, found = prefix(outroot), {}
    said = _ask("squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%T|%r|%j")
    for line in said.splitlines():
        number, state, reason, name = line.split("|", 3)
        if name.startswith(start):
            waits = state in ("PENDING", "REQUEUED", "SUSPENDED")
            found[name.removeprefix(start)] = Job(number, WAITS if waits else RUNS, reason)
    return found


def cancel(outroot: str) -> int:
    """End all jobs under an outroot; gives how many there were."""
    numbers = [job.number for job in active(outroot).values()]
    if numbers:
        _ask("scancel", *numbers)
    return len(numbers)


# ── submitting ────────────────────────────────────────────────────────────────────────────────────


def log_folder(outroot: str) -> Path:
    """Where jobs write."""
    return Path(outroot) / "logs" / "jobs"


def log_of(unit: Unit, outroot: str) -> Path | None:
    """The log of the unit's last job; None where it wrote none."""
    folder = log_folder(outroot) / unit.name
    logs = sorted(folder.glob("*_log.out"), key=lambda path: path.stat().st_mtime)
    return logs[-1] if logs else None


def with_arguments(cluster: Cluster, words: str) -> Cluster:
    """The study's settings with those of --slurm-args instead: `partition=gpu,time=90`."""
    known = Cluster.__dataclass_fields__
    given: dict[str, Any] = {}
    more = dict(cluster.arguments)
    for word in filter(None, words.split(",")):
        name, equals, value = word.strip().partition("=")
        key = name.replace("-", "_")
        if not equals or not re.fullmatch(r"[a-z][a-z_]*", key) or key == "arguments":
            raise BadInput(f"--slurm-args {words}: write name=value, by commas")
        if key in known and known[key].type is int:
            if not value.isdecimal():
                raise BadInput(f"--slurm-args {name}={value}: not a whole number")
            given[key] = int(value)
        elif key in known:
            given[key] = value
        else:
            more[key] = value
    return replace(cluster, **given, arguments=more)


def processes_of(launcher: Sequence[str]) -> int:
    """How many processes a launcher starts, as its words say it; 1 where they do not."""
    text = " ".join(launcher)
    found = re.search(
        r"--(?:num_processes|num-processes|nproc_per_node|nproc-per-node)[ =](\d+)", text
    )
    return int(found[1]) if found else 1


def parameters(unit: Unit, cluster: Cluster, launcher: Sequence[str]) -> dict[str, Any]:
    """What a unit asks the cluster for, as parameters of submitit."""
    count = processes_of(launcher) if unit.script.step.processes else 1
    more = {"kill-on-invalid-dep": "yes", **cluster.arguments}
    asked: dict[str, Any] = {
        "time": cluster.time,
        "cpus_per_task": cluster.cpus * count,
        "gpus_per_node": cluster.gpus * count,
        "mem": f"{cluster.memory}GB" if cluster.memory else None,
        "partition": cluster.partition or None,
        "account": cluster.account or None,
        "stderr_to_stdout": True,
        "use_srun": False,  # whose own line would be the last of each log
        "additional_parameters": {name.replace("_", "-"): value for name, value in more.items()},
    }
    return {name: value for name, value in asked.items() if value or value is False}


def _dependency(waits: Mapping[str, Sequence[str]]) -> str | None:
    return ",".join(":".join([kind, *jobs]) for kind, jobs in waits.items() if jobs) or None


class Submitter:
    """Submits units one by one, each with the jobs that it waits for."""

    def __init__(
        self, outroot: str, cluster: Cluster, launcher: Sequence[str], threads: int, force: bool
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise BadInput("--slurm needs submitit: uv sync --extra cluster") from None
        self.outroot, self.cluster, self.launcher = outroot, cluster, launcher
        self.threads, self.force, self.executor_of = threads, force, submitit.SlurmExecutor

    def _submit(self, unit: Unit, dependency: str | None) -> str:
        words = command(unit, self.launcher, self.force)
        work = Command((program(words[0]), *words[1:]), str(Path.cwd()), self.threads)
        # A folder of its own holds the logs of the unit's jobs, the last of which counts.
        executor = self.executor_of(folder=log_folder(self.outroot) / unit.name)
        asked = parameters(unit, self.cluster, self.launcher)
        executor.update_parameters(
            job_name=prefix(self.outroot) + unit.name, dependency=dependency, **asked
        )
        try:
            return str(executor.submit(work).job_id)
        except Exception as error:
            said = " ".join(str(error).split())
            raise BadInput(f"{unit.name} could not be submitted: {said[:400]}") from error

    def submit(self, units: Sequence[Unit], said: Callable[[str], None] = print) -> int:
        """Submit those that neither wait nor run already; gives how many."""
        forget_secrets()
        known = active(self.outroot)
        jobs: dict[int, str] = {}
        submitted = 0
        for number, (unit, own) in enumerate(zip(units, graph.edges(units), strict=True)):
            if unit.name in known:
                jobs[number] = known[unit.name].number
                continue
            kinds = {"afterok": own.needs, "afterany": own.after}
            waits = {kind: [jobs[i] for i in sorted(of) if i in jobs] for kind, of in kinds.items()}
            jobs[number] = self._submit(unit, _dependency(waits))
            submitted += 1
            said(f"step {unit.number:<2d} {unit.name}: job {jobs[number]}")
        return submitted


# ── looking ───────────────────────────────────────────────────────────────────────────────────────


class Look(NamedTuple):
    """How a unit stands."""

    unit: Unit
    state: str
    """`done`, `runs`, `waits`, `failed` or `not submitted`."""
    about: str
    """Its job, its log, the last line of it."""


def last_line(log: Path) -> str:
    """The last line of a log that says something; of at most its last 64 KiB."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - (1 << 16)))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _states(unit: Unit) -> list[results.State]:
    """Of its folders as they are now; what is made from all models, or from texts, is planned anew,
    since its plan names what was there."""
    todo = [one.planned for one in unit.todo]
    if any(graph.gathers(one, unit) or graph.makes_ground(unit) for one in unit.todo):
        now = {one.folder: one for one in planned_runs(unit.script.module, unit.chosen)}
        todo = [now[one.folder] for one in todo]
    return [results.state(one) for one in todo]


def _ended(unit: Unit, outroot: str) -> Look:
    """How a unit stands that neither waits nor runs."""
    states = _states(unit)
    if all(one.status == "complete" for one in states):
        return Look(unit, DONE, "")
    log, folder = log_of(unit, outroot), log_folder(outroot) / unit.name
    noted = any(results.read_failure(one.planned.folder) for one in unit.todo)
    if log and (noted or any(one.status == "missing" for one in states)):
        return Look(unit, FAILED, f"{log}: {last_line(log)}")
    if not log and folder.is_dir():
        return Look(unit, FAILED, "not run: what it waits for failed, or it was cancelled")
    return Look(unit, ABSENT, "; ".join(filter(None, {one.reason for one in states})))


def look(units: Sequence[Unit], outroot: str) -> list[Look]:
    """How units stand, by the cluster's queue and by their folders as they are now."""
    known, found = active(outroot), []
    for unit in units:
        job = known.get(unit.name)
        log = log_of(unit, outroot) if job and job.state == RUNS else None
        about = f"job {job.number} {log or job.reason}" if job else ""
        found.append(Look(unit, job.state, about) if job else _ended(unit, outroot))
    return found


def counts(looks: Sequence[Look]) -> str:
    """Such as `3 done, 1 runs`."""
    found: Mapping[str, int] = Counter(one.state for one in looks)
    order = (DONE, RUNS, WAITS, FAILED, ABSENT)
    return ", ".join(f"{found[state]} {state}" for state in order if found.get(state))


def print_status(looks: Sequence[Look]) -> None:
    """A line per unit that is not done, and the counts."""
    for one in looks:
        if one.state != DONE:
            print(f"step {one.unit.number:<2d} {one.unit.name:50s} {one.state:13s} {one.about}")
    print(counts(looks) or "nothing to do")


def follow(units: Sequence[Unit], outroot: str) -> list[Look]:
    """Say what ends until nothing waits or runs; gives how all units stand then."""
    left, found = [*units], dict[str, Look]()
    while left:
        for one in look(left, outroot):
            if one.state not in (WAITS, RUNS):
                found[one.unit.name] = one
                step = f"step {one.unit.number:<2d} {one.unit.name}"
                print(f"{step}: {one.state} {one.about}".rstrip(), flush=True)
        left = [unit for unit in left if unit.name not in found]
        if left:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return [found[unit.name] for unit in units]
