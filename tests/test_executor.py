"""Processes of the pipeline: what they say, how they end, and who may write meanwhile."""

import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from model_diffs.core import folders, results
from model_diffs.core.errors import BadInput
from model_diffs.core.parent import PIPELINE, here, pid_of, process_lives
from model_diffs.core.results import PlannedRun
from model_diffs.core.step import Script, Step
from model_diffs.pipeline import closing, executor, lock, processes
from model_diffs.pipeline.units import Target, Unit

ROOT = Path(__file__).parent.parent


def run(code: str, log: Path, **environment: str) -> processes.Ended:
    words = ["python", "-c", code]
    with lock.hold(str(log.parent)) as held:
        return processes.run_command(words, log, {**os.environ, **environment}, held)


def wait_until(holds: object, seconds: float = 10) -> bool:
    """Whether `holds()` became true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


# ── what a process says ───────────────────────────────────────────────────────────────────────────

TALKS = """
import sys
for i in range(30): print(f"line {i}")
print("warning: odd", file=sys.stderr)
sys.exit(3)
"""


def test_output_goes_to_the_log_and_its_end_is_kept(tmp_path: Path) -> None:
    ended = run(TALKS, tmp_path / "logs/1_x.log")
    lines = (tmp_path / "logs/1_x.log").read_text().splitlines()
    assert ended.status == 3 and ended.warnings == ["warning: odd"]
    assert sorted(lines) == sorted(["warning: odd", *(f"line {i}" for i in range(30))])
    assert ended.last == lines[-15:]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_costs_the_log_and_not_the_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.log").symlink_to("/dev/full")
    ended = run(TALKS, tmp_path / "x.log")
    assert ended.status == 3 and "line 29" in ended.last
    assert capsys.readouterr().err.count("going on without a log") == 1


def test_bytes_that_are_no_text_are_logged_as_they_are(tmp_path: Path) -> None:
    ended = run(r"import os; os.write(1, b'\xff\x00\n' + b'x' * 200000)", tmp_path / "x.log")
    assert (tmp_path / "x.log").read_bytes() == b"\xff\x00\n" + b"x" * 200000
    assert ended.status == 0


def test_a_program_that_cannot_be_started_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(b"\x00\x01")
    (tmp_path / "tool").chmod(0o755)
    with pytest.raises(BadInput, match="tool cannot be started"):
        processes.run_command([str(tmp_path / "tool")], tmp_path / "x.log", {}, os.open("/", 0))


@pytest.mark.parametrize(("name", "status"), [("SIGKILL", 137), ("SIGTERM", 143)])
def test_a_killed_process_has_the_status_of_a_shell(tmp_path: Path, name: str, status: int) -> None:
    code = f"import os, signal; os.kill(os.getpid(), signal.{name})"
    assert run(code, tmp_path / "x.log").status == status


# ── how it ends ───────────────────────────────────────────────────────────────────────────────────

PARENT = """
import os, signal, sys
from pathlib import Path
from model_diffs.core.parent import PIPELINE, here
from model_diffs.pipeline import lock, processes
from model_diffs.pipeline.__main__ import _end_by_signal

signal.signal(signal.SIGTERM, _end_by_signal)
processes.PATIENCE = 0.3
root, words = Path(sys.argv[1]), sys.argv[2:]
with lock.hold(str(root)) as held:
    environment = {**os.environ, PIPELINE: here(os.getpid())}
    processes.run_command(words, root / "x.log", environment, held)
"""
CHILD = """
import os, signal, sys, time
from pathlib import Path
from model_diffs.core.parent import end_with_parent
end_with_parent()
if len(sys.argv) > 2: signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


def start(
    tmp_path: Path, *words: str, more: tuple[str, ...] = ()
) -> tuple["subprocess.Popen[bytes]", int]:
    """A pipeline's process, and the number of the process that it (or a launcher) started."""
    note = tmp_path / "pid"
    command = [sys.executable, "-c", PARENT, str(tmp_path), *words, "-c", CHILD, str(note), *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert wait_until(lambda: note.exists() and note.read_text())
    return process, int(note.read_text())


@pytest.mark.parametrize("launcher", [(), (sys.executable, "-c", LAUNCHER)])
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_process_ends_with_the_pipeline(
    tmp_path: Path, sent: int, status: int, launcher: tuple[str, ...]
) -> None:
    words = [*launcher] if launcher else ["python"]
    process, child = start(tmp_path, *words)
    process.send_signal(sent)
    assert process.wait(20) == status
    assert wait_until(lambda: not process_lives(child))
    with lock.hold(str(tmp_path)):  # the last of them has ended
        pass
    process.communicate()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process, child = start(tmp_path, "python", more=("ignores",))
    process.terminate()
    assert process.wait(20) == 143 and not process_lives(child)
    process.communicate()


def test_a_process_whose_pipeline_is_gone_ends_at_once() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = (
        "from model_diffs.core.parent import end_with_parent; end_with_parent(); print('went on')"
    )
    environment = {**os.environ, PIPELINE: here(gone.pid)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert found.returncode == -signal.SIGKILL and not found.stdout


@pytest.mark.parametrize(
    "name", ["", "x", "-1@here", "0@{host}", "1@elsewhere", "9" * 30, "١@{host}"]
)
def test_names_that_are_of_no_process_here_are_nobody(name: str) -> None:
    assert pid_of(name.format(host=os.uname().nodename)) is None
    assert pid_of(here(17)) == 17


POOL = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from model_diffs.core.parent import end_with_parent

def work(place):
    Path(place).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    end = end_with_parent, (os.getpid(),)
    with ProcessPoolExecutor(1, get_context("spawn"), *end) as pool:
        pool.submit(work, sys.argv[1]).result()
"""


def test_workers_end_with_a_script_that_was_started_by_hand(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(POOL)
    note = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "script.py", note]
    with subprocess.Popen(command, env=environment) as process:
        assert wait_until(lambda: note.exists() and note.read_text())
        process.kill()
    assert wait_until(lambda: not process_lives(int(note.read_text())))


# ── one after another ─────────────────────────────────────────────────────────────────────────────


@dataclass
class NoOptions:
    """Options of a script that has none."""


def unit(place: Path, number: int, code: str) -> Unit:
    """A unit that runs `code`, and would fill a folder that an earlier run has filled."""
    (place / f"{number}.py").write_text(code)
    step = Step(number=number, folder=f"f{number}", question="?", scope="other")
    planned = PlannedRun(place / f"f{number}", f"result {number}", {})
    with results.open_run(planned):
        pass
    before = (planned.folder / results.RECORD).stat().st_mtime_ns
    target = Target(planned, "stale", "--force", forced=True, before=before)
    module = types.SimpleNamespace(STEP=step, Options=NoOptions)
    script = Script(str(place / f"{number}.py"), module)  # type: ignore[arg-type]
    return Unit(script, [], [target], chosen=NoOptions(), name=f"step_{number}")


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_failure_is_told_noted_and_shown_without_earlier_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    keep_going: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv(results.INVOCATION, "now")
    remade = f"from pathlib import Path; Path({str(tmp_path)!r}, 'f3/run.json').write_text('{{}}')"
    codes = ("print('warning: odd')", "print('no luck'); raise SystemExit(7)", remade)
    found = [unit(tmp_path, number, code) for number, code in enumerate(codes, 1)]
    ran: list[tuple[Unit, int]] = []
    shared = executor.Shared(str(tmp_path), ["python"], os.open(os.devnull, 0), False, keep_going)
    executor.run_units(found, shared, ran)
    os.close(shared.lock)
    assert [status for _, status in ran] == ([0, 7, 0] if keep_going else [0, 7])
    closing.print_closing(found, ran, str(tmp_path), False)
    said = capsys.readouterr()
    table = [
        line.split() for line in said.out.splitlines() if line[2:].lstrip().startswith("result")
    ]
    outcomes = ["skipped", "failed", "done" if keep_going else "pending"]
    assert [line[3:] for line in table] == [[one] for one in outcomes]
    assert "warning: odd" in said.out
    assert "step 2 failed with status 7" in said.err and "| no luck" in said.err
    noted = results.read_failure(tmp_path / "f2")
    assert noted["invocation"] == "now" and "status 7: no luck" in noted["reason"]
    assert not results.read_failure(tmp_path / "f1")


# ── the lock ──────────────────────────────────────────────────────────────────────────────────────

HOLDER = """
import os, subprocess, sys, time
from model_diffs.pipeline import lock
with lock.hold(sys.argv[1]) as held:
    code = f"import time; time.sleep({sys.argv[2]})"
    child = subprocess.Popen([sys.executable, "-c", code], pass_fds=[held])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def holder(place: Path, seconds: float) -> tuple["subprocess.Popen[str]", int]:
    """A process that holds the lock, and one that it started, which sleeps."""
    command = [sys.executable, "-c", HOLDER, str(place), str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_a_living_holder_is_named_and_a_dead_ones_processes_are_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process, _ = holder(tmp_path, 3)
    refused = pytest.raises(BadInput, match=f"another pipeline .*{process.pid}@")
    with refused, lock.hold(str(tmp_path)):
        pass
    process.kill()
    process.wait()
    before = time.monotonic()
    with lock.hold(str(tmp_path)):
        assert time.monotonic() - before > 0.3
    assert capsys.readouterr().out.count("waiting for processes") == 1
    process.communicate()


def test_patience_with_a_dead_holders_processes_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    process, child = holder(tmp_path, 30)
    process.kill()
    process.wait()
    with pytest.raises(BadInput, match="another pipeline"), lock.hold(str(tmp_path)):
        pass
    os.kill(child, signal.SIGKILL)
    process.communicate()


def test_a_file_system_without_locks_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.hold(str(tmp_path)):
        pass
    said = capsys.readouterr().err
    assert "cannot be locked" in said and len(said.splitlines()) == 1


# ── leftovers ─────────────────────────────────────────────────────────────────────────────────────


def test_leftovers_of_dead_processes_go_and_an_old_result_returns(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = folders.unfinished_name("x").partition("@")[2].removesuffix(folders.PARTIAL)
    dead, alive = f"{gone.pid}@{here}", f"{os.getpid()}@{here}"
    deep = tmp_path / "a__to__b"
    for name in (f".step.{dead}.partial", f".kept.{alive}.partial", f".old.{dead}.old.partial",
                 f".made.{dead}.old.partial", "made", ".notes.partial", "x.partial"):  # fmt: skip
        (deep / name).mkdir(parents=True)
        (deep / name / "file").write_text(name)
    (deep / f".whole.csv.{dead}.partial").write_text("half")
    lock.remove_leftovers([tmp_path, tmp_path / "nowhere"])
    assert {p.name for p in deep.iterdir()} == {
        f".kept.{alive}.partial", "old", "made", ".notes.partial", "x.partial",
    }  # fmt: skip
    assert (deep / "made/file").read_text() == "made"
    assert (deep / "old/file").read_text() == f".old.{dead}.old.partial"


def test_what_another_host_writes_is_left_alone_for_a_day(tmp_path: Path) -> None:
    name = f".step.{2**22 + 1}@elsewhere.partial"  # a number that no process here has
    (tmp_path / name).mkdir()
    table = tmp_path / name / "table.csv"
    table.write_text("half")
    lock.remove_leftovers([tmp_path])
    assert table.exists()
    for path in (table, table.parent):
        os.utime(path, (0, time.time() - folders.FORGOTTEN - 60))
    lock.remove_leftovers([tmp_path])
    assert not table.parent.exists()
