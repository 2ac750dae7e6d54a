"""The tests of one module in forks of this process: as they are, and with each mutant."""

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mutation_operators import Mutant

PACKAGE = "model_diffs"
# Where garbage is collected at the end of each session (unraisableexception), that takes a second.
PLUGINS = ("xdist", "cacheprovider", "unraisableexception")
PYTEST = ("-q", "--tb=short", "-o", "addopts=", "-m", "not study", *(f"-pno:{p}" for p in PLUGINS))
FAILED = "failed.txt"
HANG = 10.0
"""Seconds of computing that the tests of a mutant may take beyond three times what they take."""
WAITING = 30
"""Times that, for tests that wait for ever without computing, and for a busy machine."""


class Test(NamedTuple):
    """A test without any change."""

    name: str
    seconds: float
    lines: frozenset[int]
    """Those of the module that it reaches."""


class Tests(NamedTuple):
    """What runs without any change."""

    all: list[Test]
    """Fastest first."""
    imported: frozenset[int]
    """Lines of the module that run when it is imported."""
    failed: Counter[str]
    """How often each failed so far."""

    def of(self, lines: range) -> list[Test]:
        """The tests that reach one of these lines; all for lines that run on import.

        Those that often fail for their time come first, then the fast ones.
        """
        reached = [test for test in self.all if not test.lines.isdisjoint(lines)]
        if not reached and not self.imported.isdisjoint(lines):
            reached = self.all
        return sorted(reached, key=lambda test: -self.failed[test.name] / (test.seconds + 0.2))


class _Recorder:
    """Plugin of pytest: which lines of one module each test reaches, and how long it takes."""

    def __init__(self, module: Path) -> None:
        import coverage

        self.module = str(module)
        self.coverage = coverage.Coverage(data_file=None, include=[self.module])
        self.seconds: dict[str, float] = {}
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.seconds[nodeid] = -time.monotonic()
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.seconds[nodeid] += time.monotonic()
        self.coverage.switch_context("")

    def write(self, to: Path) -> None:
        """Tests, and the modules that running them imported."""
        self.coverage.stop()
        lines: dict[str, list[int]] = {name: [] for name in ["", *self.seconds]}
        for line, names in self.coverage.get_data().contexts_by_lineno(self.module).items():
            for name in names:
                lines[name].append(line)
        found = {"seconds": self.seconds, "lines": lines, "libraries": list(sys.modules)}
        to.write_text(json.dumps(found))


class _StopAtFailure:
    """Plugin of pytest: a test that fails ends this process, without tearing anything down."""

    def __init__(self, note: Path) -> None:
        self.note = note

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.note.write_text(report.nodeid)
            os._exit(1)


def forked(folder: Path, words: Sequence[str], seconds: float, record: Path | None = None) -> bool:
    """Do these tests pass in a fork of this process within so many seconds of computing?"""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        limit = int(seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        with (folder / "log.txt").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.path[:0] = [str(folder), str(folder / "tests")]
        sys.dont_write_bytecode = record is None
        import pytest

        recorder = None if record is None else _Recorder(folder / record)
        # A folder of its own: mutants neither fill the one that tests share nor remove from it.
        plugin = recorder or _StopAtFailure(folder / FAILED)
        own = f"--basetemp={folder / 'temporary'}"
        status = int(pytest.main([*PYTEST, own, *words], plugins=[plugin]))
        if recorder is not None:
            recorder.write(folder / "recorded.json")
        os._exit(status)
    end = time.monotonic() + WAITING * seconds
    pause = 0.002
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _end_group(child)
            return status == 0
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    _end_group(child)
    os.waitpid(child, 0)
    return False


def _end_group(leader: int) -> None:
    """End a fork and what its tests may have started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def without_change(folder: Path, module: Path, files: Sequence[str]) -> Tests:
    """Run the tests as they are, and import here what they needed of libraries."""
    if not forked(folder, files, 900, module):
        raise SystemExit((folder / "log.txt").read_text()[-3000:] + "\nthe tests fail as they are")
    found = json.loads((folder / "recorded.json").read_text())
    own = {PACKAGE, *(file.stem for file in [*folder.glob("*.py"), *folder.glob("tests/*.py")])}
    for name in found["libraries"]:
        if name.split(".")[0] not in own and name not in sys.modules and name != "__main__":
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - names of modules that only exist once something ran
                continue
    gc.freeze()
    lines = {name: frozenset(found["lines"][name]) for name in found["lines"]}
    tests = [Test(name, seconds, lines[name]) for name, seconds in found["seconds"].items()]
    return Tests(sorted(tests, key=lambda test: test.seconds), lines[""], Counter())


def killed(folder: Path, module: Path, mutant: Mutant, tests: Tests) -> bool:
    """Does a test fail with this change?"""
    reached = tests.of(mutant.lines)
    if not reached:
        return False
    expected = sum(test.seconds for test in reached)
    (folder / module).write_text(mutant.source)
    (folder / FAILED).write_text("")
    if forked(folder, [test.name for test in reached], HANG + 3 * expected):
        return False
    tests.failed[(folder / FAILED).read_text()] += 1
    return True
