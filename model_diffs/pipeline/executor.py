"""Runs units one after another, as processes of their own: their logs, signals and failures.

`run_units` is a function of units and of what they share (`Shared`); an executor that runs several
at once, or on a cluster, stands beside it and gives the same statuses.
"""

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from model_diffs.core import results
from model_diffs.core.errors import BadInput
from model_diffs.core.parent import PIPELINE, here
from model_diffs.core.progress import PROGRESS_FD
from model_diffs.pipeline.environment import program, search_path
from model_diffs.pipeline.units import Unit, command

LAST_LINES = 15
PATIENCE = 5.0
"""Seconds that a process has to end after SIGTERM; then it is killed."""
INTERRUPTED = 2.0
"""Seconds that it has after Ctrl-C, which it received as well."""
LINGERING = 10.0
"""Seconds to wait for what a process started and left behind."""


@dataclass(frozen=True)
class Shared:
    """What all units of a run share."""

    outroot: str
    launcher: Sequence[str]
    lock: int
    """File descriptor of the held lock, which children inherit."""
    force: bool = False
    keep_going: bool = False


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    """As a shell has it: 128 + n for signal n."""
    last: list[str]
    """Last lines that it said."""
    warnings: list[str]


# ── one process ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Log:
    """Keeps what a process says: in a file as it comes, its last lines and warnings in memory."""

    path: Path
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    warnings: list[str] = field(default_factory=list)
    file: IO[bytes] | None = None

    def _write(self, line: bytes) -> None:
        try:
            if self.file is not None:
                self.file.write(line)
        except OSError as error:
            self._do_without(error)

    def _do_without(self, error: OSError) -> None:
        self.file = None
        with suppress(OSError):  # that disk may hold stderr, too
            print(
                f"warning: {self.path}: {error.strerror}: going on without a log", file=sys.stderr
            )

    def read(self, stream: IO[bytes]) -> None:
        """Read until the process, and whatever it started, has closed its output."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("wb", buffering=0)
        except OSError as error:
            self._do_without(error)
        while line := stream.readline(1 << 16):
            self._write(line)
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self.last.append(text)
            if text.startswith("warning"):
                self.warnings.append(text)
        if self.file is not None:
            self.file.close()


def _end(child: "subprocess.Popen[bytes]", first: float) -> None:
    """Wait `first` seconds for a process to end, then ask it to (SIGTERM), then kill it."""
    try:
        for patience, then in ((first, child.terminate), (PATIENCE, child.kill)):
            with suppress(subprocess.TimeoutExpired):
                child.wait(patience)
                return
            then()
        child.wait()
    except BaseException:  # Ctrl-C once more
        child.kill()
        raise


def run_process(
    words: Sequence[str], log: Path, environment: Mapping[str, str], lock: int
) -> Ended:
    """Run a process to its end; its output goes to `log`, its progress bars to the terminal.

    A signal that ends this process ends the child first.
    """
    terminal = _terminal()
    descriptors = [one for one in (lock, terminal) if one is not None]
    bars = {} if terminal is None else {PROGRESS_FD: str(terminal)}
    kept = _Log(log)
    try:
        child = subprocess.Popen(
            [program(words[0]), *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            env={**environment, **bars},
        )
    except OSError as error:  # no program for this machine, or a command too long for it
        raise BadInput(f"{words[0]} cannot be started: {error.strerror}") from None
    finally:
        if terminal is not None:
            os.close(terminal)
    reader = threading.Thread(target=kept.read, args=(child.stdout,), daemon=True)
    reader.start()
    try:
        status = child.wait()
    except BaseException as error:
        _end(child, INTERRUPTED if isinstance(error, KeyboardInterrupt) else 0)
        raise
    finally:
        reader.join(LINGERING)
    return Ended(128 - status if status < 0 else status, list(kept.last), kept.warnings)


def _terminal() -> int | None:
    with suppress(OSError):
        return os.dup(2)
    return None


# ── all of them ───────────────────────────────────────────────────────────────────────────────────


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


def run_units(units: Iterable[Unit], shared: Shared, statuses: list[tuple[Unit, int]]) -> None:
    """Run units in their order; each that ended is added to `statuses` with its exit status.

    A failure ends the run unless `keep_going`.
    """
    environment = {**os.environ, "PATH": search_path(), PIPELINE: here(os.getpid())}
    for unit in units:
        print(f"step {unit.number:<2d} {unit.script.name} ({_what(unit)})", flush=True)
        log = log_of(unit, shared.outroot)
        words = command(unit, shared.launcher, shared.force)
        ended = run_process(words, log, environment, shared.lock)
        for warning in ended.warnings:
            print(warning, flush=True)
        statuses.append((unit, ended.status))
        if ended.status:
            _note_failure(unit, ended, log)
            if not shared.keep_going:
                return
