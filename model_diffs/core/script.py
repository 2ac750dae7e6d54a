"""How a script starts and ends: its environment, its exit status, what it says of an error."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from model_diffs.core import memory, results
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.parent import end_with_parent
from model_diffs.core.processes import wait_for_processes
from model_diffs.core.results import PlannedRun
from model_diffs.core.step import planned_runs


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; ask for deterministic algorithms where they are a choice."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if torch.cuda.is_available():  # the CPU's are; asking loads the compiler, which takes seconds
        # cuBLAS is deterministic only with a fixed workspace.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def load_environment() -> None:
    """Read `.env` of the working folder; what the environment says already wins."""
    from dotenv import load_dotenv

    try:
        load_dotenv(Path.cwd() / ".env")
    except UnicodeDecodeError as error:
        raise BadInput(".env is not UTF-8 text") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def execute(module: ModuleType, words: Sequence[str] | None = None) -> None:
    """Run a step's script on command-line words: what is not complete is made by its `main`.

    Raises what `main` raises. In a pipeline, `failed.json` then says so beside each folder that
    was not made.
    """
    chosen = parse(module.Options, words, module.__doc__)
    todo = results.pending(planned_runs(module, chosen), chosen.force)
    if module.STEP.processes:
        wait_for_processes()  # before one of them writes what another looks for
    if not todo:
        return
    try:
        memory.check(module, chosen, todo)
        module.main(chosen, todo)
    except (Exception, SystemExit) as error:
        results.note_failure([one for one in todo if not one.committed], _one_line(error))
        raise


Stage = tuple[Callable[[list[PlannedRun], Any], None], list[PlannedRun]]
"""What makes the results of a stage, and all of them."""


def run_stages(*stages: Stage, chosen: Any, todo: list[PlannedRun]) -> None:
    """Make what is due of each stage in turn.

    What a stage made, the later ones read: of these, what is stale now joins `todo`.
    """
    remade = False
    for make, planned in stages:
        if remade:
            todo += results.pending([one for one in planned if one not in todo])
        due = [one for one in todo if one in planned]
        if due:
            make(due, chosen)
            remade = True


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
# A folder or a loop of links where a file was looked for, or a name that no file can have.
_NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def disk_problem(error: BaseException) -> str:
    """What is wrong where a disk is full or unwritable, whichever library says so, or where a name
    is of no file; else empty."""
    if isinstance(error, OSError) and error.errno in (*_DISK, *_NO_FILE):
        return f"{error.strerror}: {error.filename or 'output'}"
    found = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
    if found and int(found[1]) in _DISK:
        return f"{os.strerror(int(found[1]))}: output"
    if "inline_container.cc" in str(error):  # torch.save
        return f"{os.strerror(errno.ENOSPC)} or unwritable: output"
    return ""


def _terminated(*_: object) -> NoReturn:
    sys.exit(143)


def run_step(name: str) -> NoReturn:
    """Run the step's script whose module is `name` (`__name__`) as a process of its own."""
    run_script(lambda: execute(sys.modules[name]))


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run `main` and leave with its exit status.

    0 done; 2 bad input, with one line on stderr; 130 Ctrl-C; 143 SIGTERM; 141 nobody reads the
    output any more (`| head`). A full or unwritable disk and a name of no file are bad input too.
    Anything else is a defect and keeps its traceback.
    """
    script = Path(sys.argv[0]).name
    # Threads that wait for work sleep: spinning takes the cores from whoever else has work to do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    end_with_parent()
    signal.signal(signal.SIGTERM, _terminated)  # what is half-written is removed
    try:
        load_environment()
        main()
    except BadInput as error:
        print(f"{script}: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{script}: interrupted; nothing half-done is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # What is still buffered would raise once more when Python closes its output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        problem = disk_problem(error)
        if not problem:
            raise
        print(f"{script}: {problem}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
