"""One process of the pipeline: how it starts, what it says, how it ends.

A process is a command, or a fork of the pipeline's own process that runs a script. A fork has
whatever the pipeline imported (`prepared.py`), which spares it the seconds of importing torch.
"""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, Protocol

from model_diffs.core.errors import BadInput
from model_diffs.core.progress import PROGRESS_FD, PROGRESS_LINE
from model_diffs.pipeline.environment import program

LAST_LINES = 15
PATIENCE = 5.0
"""Seconds that a process has to end after SIGTERM; then it is killed."""
INTERRUPTED = 2.0
"""Seconds that it has after Ctrl-C, which it received as well."""
LINGERING = 10.0
"""Seconds to wait for what a process started and left behind."""
LOOK = 0.2
"""Seconds between looks at processes that say nothing."""
ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_CHUNK = 1 << 16


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    """As a shell has it: 128 + n for signal n."""
    last: list[str]
    """Last lines that it said."""
    warnings: list[str]


@dataclass
class _Log:
    """Keeps what a process says: in a file as it comes, its last lines and warnings in memory."""

    path: Path
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    warnings: list[str] = field(default_factory=list)
    file: IO[bytes] | None = None
    rest: bytes = b""
    """The beginning of a line."""

    def open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("wb", buffering=0)
        except OSError as error:
            self._do_without(error)

    def _do_without(self, error: OSError) -> None:
        self.file = None
        with suppress(OSError):  # that disk may hold stderr, too
            print(
                f"warning: {self.path}: {error.strerror}: going on without a log", file=sys.stderr
            )

    def add(self, said: bytes) -> None:
        try:
            if self.file is not None:
                self.file.write(said)
        except OSError as error:
            self._do_without(error)
        *lines, self.rest = (self.rest + said).split(b"\n")
        if len(self.rest) > _CHUNK:
            lines, self.rest = [*lines, self.rest], b""
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self.last.append(text)
        if text.startswith("warning"):
            self.warnings.append(text)

    def close(self) -> None:
        self._line(self.rest)
        if self.file is not None:
            self.file.close()


class _Child(Protocol):
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


@dataclass
class Running:
    """A process that was started; `attend` reads what it says."""

    child: _Child
    look: Callable[[], int | None]
    """Its status once it has ended, negative for a signal."""
    output: int
    """File descriptor of what it says; -1 once it was closed."""
    log: _Log
    ended_at: float | None = None

    def read(self) -> None:
        """Take what it has said."""
        if said := os.read(self.output, _CHUNK):
            self.log.add(said)
        else:
            self.close()

    def close(self) -> None:
        """Read no more of it."""
        if self.output >= 0:
            os.close(self.output)
            self.output = -1
            self.log.close()

    def ended(self) -> Ended | None:
        """How it ended, once it did and, within `LINGERING`, all that it started said the last."""
        status = self.look()
        if status is None:
            return None
        self.ended_at = self.ended_at or time.monotonic()
        if self.output >= 0 and time.monotonic() - self.ended_at < LINGERING:
            return None
        self.close()
        return Ended(128 - status if status < 0 else status, [*self.log.last], self.log.warnings)


def _terminal() -> int | None:
    """Standard error once more, for progress bars; None where it is closed."""
    with suppress(OSError):
        return os.dup(2)
    return None


def _start(
    begin: Callable[[int, dict[str, str], list[int]], tuple[_Child, Callable[[], int | None]]],
    log: Path,
    environment: Mapping[str, str],
    lock: int | None,
    line: int,
) -> Running:
    terminal = _terminal()
    kept = [one for one in (lock, terminal) if one is not None]
    bars = {} if terminal is None else {PROGRESS_FD: str(terminal), PROGRESS_LINE: str(line)}
    output, its_end = os.pipe()
    try:
        child, look = begin(its_end, {**environment, **bars}, kept)
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(its_end)
        if terminal is not None:
            os.close(terminal)
    os.set_blocking(output, False)
    found = Running(child, look, output, _Log(log))
    found.log.open()
    return found


def start_command(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    lock: int | None = None,
    line: int = 0,
) -> Running:
    """Start a command; its output goes to `log`, its progress bars to `line` of the terminal."""

    def begin(output: int, given: dict[str, str], kept: list[int]) -> tuple[_Child, Callable]:
        try:
            child = subprocess.Popen(
                [program(words[0]), *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=kept,
                env=given,
            )
        except OSError as error:  # no program for this machine, or a command too long for it
            raise BadInput(f"{words[0]} cannot be started: {error.strerror}") from None
        return child, child.poll

    return _start(begin, log, environment, lock, line)


def start_fork(
    work: Callable[[], NoReturn],
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    lock: int | None = None,
    line: int = 0,
) -> Running:
    """Run `work` in a fork of this process, which should have no threads.

    `words`: the command that it does the work of.
    """

    def run(output: int, given: dict[str, str], mask: set[signal.Signals]) -> None:
        for standard in (1, 2):
            os.dup2(output, standard)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.clear()
        os.environ.update(given)
        sys.argv = [*words]
        for one in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(one) is not signal.SIG_IGN:
                signal.signal(one, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        work()

    def begin(output: int, given: dict[str, str], kept: list[int]) -> tuple[_Child, Callable]:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()  # else the fork says it once more
        # What Python calls after a fork would swallow the exception of a signal.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            fork = multiprocessing.get_context("fork")
            child = fork.Process(target=run, args=(output, given, mask))
            child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return child, lambda: child.exitcode

    return _start(begin, log, environment, lock, line)


def attend(running: Iterable[Running], seconds: float = LOOK) -> None:
    """Wait at most `seconds` for one of them to say something, and read what all have said."""
    by_output = {one.output: one for one in running if one.output >= 0}
    if not by_output:
        time.sleep(seconds / 4)
        return
    poll = select.poll()
    for output in by_output:
        poll.register(output, select.POLLIN)
    for output, _ in poll.poll(seconds * 1000):
        by_output[output].read()


def end(running: Sequence[Running], patience: float) -> None:
    """Give processes `patience` seconds to end, then ask them to (SIGTERM), then kill them."""
    left = [*running]

    def wait(seconds: float) -> None:
        until = time.monotonic() + seconds
        while left and time.monotonic() < until:
            attend(left, 0.05)
            left[:] = [one for one in left if one.look() is None]

    try:
        wait(patience)
        for one in left:
            one.child.terminate()
        wait(PATIENCE)
    finally:  # or Ctrl-C once more
        for one in left:
            one.child.kill()
        for one in running:
            one.close()


def patience_after(error: BaseException) -> float:
    """Seconds that processes have to end by themselves: Ctrl-C reached them as well."""
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 0


def run_command(
    words: Sequence[str], log: Path, environment: Mapping[str, str], lock: int
) -> Ended:
    """Run a command to its end. What ends this process ends the command first."""
    one = start_command(words, log, environment, lock)
    try:
        while (found := one.ended()) is None:
            attend([one])
    except BaseException as error:
        end([one], patience_after(error))
        raise
    return found
