"""Runs units on this machine, one at a time or several: their logs, signals and failures.

`run_units` is a function of units and of what they share (`Shared`); what submits them to a cluster
stands beside it (`cluster.py`).
"""

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_diffs.core import results
from model_diffs.core.parent import PIPELINE, here
from model_diffs.pipeline import graph, prepared, processes
from model_diffs.pipeline.environment import search_path
from model_diffs.pipeline.processes import Ended, Running
from model_diffs.pipeline.units import Unit, command


@dataclass(frozen=True)
class Shared:
    """What all units of a run share."""

    outroot: str
    launcher: Sequence[str]
    lock: int
    """File descriptor of the held lock, which children inherit."""
    force: bool = False
    keep_going: bool = False
    jobs: int = 1
    """Units that run at a time."""
    threads: int = 0
    """Threads of each; 0: what the libraries choose."""
    gpus: tuple[str, ...] = ()
    """What CUDA_VISIBLE_DEVICES may name; each unit sees one where several run at a time."""
    forks: bool = False
    """Scripts run in forks of this process, where no launcher stands before them."""


def log_of(unit: Unit, outroot: str) -> Path:
    """The file that a unit's output goes to."""
    return Path(outroot) / "logs" / f"{unit.number}_{unit.name}.log"


def _what(unit: Unit) -> str:
    todo = unit.todo
    return todo[0].planned.label if unit.name.startswith("unlearn") else f"{len(todo)} to do"


def _note_failure(unit: Unit, ended: Ended, log: Path) -> None:
    """Say how a unit failed, and note it beside each folder that it left unmade."""
    print(
        f"step {unit.number} failed with status {ended.status}; the end of {log}:", file=sys.stderr
    )
    for line in ended.last:
        print(f"  | {line}", file=sys.stderr)
    for target in unit.todo:
        place = target.planned.folder
        # A step that could has said so itself; one that was killed could not.
        said_so = results.read_failure(place).get("invocation") == os.environ[results.INVOCATION]
        if not said_so and not target.made():
            said = ended.last[-1] if ended.last else "no output"
            reason = f"{unit.script.name} ended with status {ended.status}: {said}"
            with suppress(OSError):  # a full disk
                results.note_failure([target.planned], reason)


class _Runner:
    """Units that wait, run and have ended."""

    def __init__(
        self, units: Iterable[Unit], shared: Shared, statuses: list[tuple[Unit, int]]
    ) -> None:
        self.units, self.shared, self.statuses = [*units], shared, statuses
        self.edges = graph.edges(self.units)
        self.waiting = [*range(len(self.units))]
        self.running: dict[int, Running] = {}
        self.slots: dict[int, int] = {}
        self.unmade: set[str] = set()
        self.environment = {**os.environ, "PATH": search_path(), PIPELINE: here(os.getpid())}

    def _ready(self) -> int | None:
        """The first waiting unit that waits for nothing; in turn, where one runs at a time."""
        unfinished = {*self.waiting, *self.running}
        for number in self.waiting:
            own = self.edges[number]
            if self.shared.jobs == 1 or not (own.needs | own.after) & unfinished:
                return number
        return None

    def _start(self, number: int) -> None:
        """Start a unit without those results that cannot be made any more, if any is left."""
        unit, shared = self.units[number], self.shared
        self.waiting.remove(number)
        for target in graph.lost(unit, self.unmade):
            target.status, target.reason = "blocked", "what it is made from was not made"
            self.unmade.add(os.path.abspath(target.planned.folder))
        if not unit.todo:
            print(f"step {unit.number:<2d} {unit.script.name}: not run, since what it needs failed")
            return
        print(f"step {unit.number:<2d} {unit.script.name} ({_what(unit)})", flush=True)
        slot = min({*range(shared.jobs)} - {*self.slots.values()})
        environment = dict(self.environment)
        if shared.jobs > 1 and shared.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = shared.gpus[slot % len(shared.gpus)]
        log, words = log_of(unit, shared.outroot), command(unit, shared.launcher, shared.force)
        given = (log, environment, shared.lock, slot)
        if shared.forks and words[:2] == ["python", unit.script.name]:
            work = lambda: prepared.run(unit, words[2:])  # noqa: E731
            self.running[number] = processes.start_fork(work, words[1:], *given)
        else:
            self.running[number] = processes.start_command(words, *given)
        self.slots[number] = slot

    def _finish(self, number: int, ended: Ended) -> None:
        unit = self.units[number]
        del self.running[number], self.slots[number]
        for warning in ended.warnings:
            print(warning, flush=True)
        self.statuses.append((unit, ended.status))
        if ended.status:
            _note_failure(unit, ended, log_of(unit, self.shared.outroot))
            self.unmade |= graph.unmade([unit])
            if not self.shared.keep_going:
                self.waiting.clear()

    def run(self) -> None:
        try:
            while self.waiting or self.running:
                while len(self.running) < self.shared.jobs and (n := self._ready()) is not None:
                    self._start(n)
                processes.attend([*self.running.values()])
                for number, one in [*self.running.items()]:
                    if (found := one.ended()) is not None:
                        self._finish(number, found)
        except BaseException as error:
            processes.end([*self.running.values()], processes.patience_after(error))
            raise


def run_units(units: Iterable[Unit], shared: Shared, statuses: list[tuple[Unit, int]]) -> None:
    """Run units, in their order or as soon as what they wait for is there.

    Each that ended is added to `statuses` with its exit status. After a failure nothing more is
    started, unless `keep_going`: then what does not depend on it goes on.
    """
    found = [*units]
    if shared.threads:  # also of this process, whose forks have the libraries that it imported
        os.environ.setdefault("OMP_NUM_THREADS", str(shared.threads))
    if shared.forks:
        prepared.prepare(found)
    _Runner(found, shared, statuses).run()
