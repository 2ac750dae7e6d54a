"""Scripts run in forks of one process that has everything imported, in milliseconds each.

    forked.warm()
    ended = forked.run(folder, ["infer.py", "--model", "./a", "--prompt", "x"])

Each fork is a process of its own: what it sets, caches or breaks is gone when it ends.
"""

import contextlib
import functools
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).parents[2]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "MPLBACKEND": "agg"}


class Ended(NamedTuple):
    """How a script ended."""

    status: int | None
    """Exit status; negative: the signal that killed it; None: it took too long."""
    out: str
    err: str

    @property
    def complaint(self) -> list[str]:
        """The lines on stderr."""
        return self.err.strip().splitlines()


@functools.cache
def warm() -> None:
    """Import what the scripts import lazily, and read a model once."""
    os.environ.update(OFFLINE)
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pandas as pd  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import tiny_models
    import torch

    from model_diffs.activations import collecting  # noqa: F401
    from model_diffs.attacks import relearning  # noqa: F401
    from model_diffs.core.step import load_steps
    from model_diffs.dictionaries import diffing  # noqa: F401
    from model_diffs.importance import running  # noqa: F401
    from model_diffs.models import loading
    from model_diffs.report import page  # noqa: F401
    from model_diffs.unlearning import running as unlearning  # noqa: F401

    torch.set_num_threads(1)  # a fork has no other thread than the one that forked
    load_steps()
    with tempfile.TemporaryDirectory() as folder:
        model = str(tiny_models.save("gpt_neox", Path(folder, "model")))
        loading.load_model(model, torch.device("cpu"), torch.float32)
        loading.load_tokenizer(model)


def run(folder: Path, words: Sequence[str], seconds: float = 30.0) -> Ended:
    """Run a script (or `pipeline`) with its options in `folder`, for `seconds` at most."""
    return call(folder, words[0], lambda: _script(words), seconds)


def call(folder: Path, name: str, function: Callable[[], object], seconds: float = 30.0) -> Ended:
    """Call a function in a fork, in `folder`; killed with all it started after `seconds`."""
    warm()
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place, name) for name in ("out", "err")]
        child = os.fork()
        if child == 0:
            _child(folder, name, function, streams)
        status = _wait(child, seconds)
        out, err = (one.read_text(errors="replace") if one.exists() else "" for one in streams)
        return Ended(status, out, err)


def _wait(child: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _child(
    folder: Path, name: str, function: Callable[[], object], streams: Sequence[Path]
) -> NoReturn:
    """What the fork does; it never returns to the caller's code."""
    from model_diffs.core import content
    from model_diffs.models import files

    status = 70
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, path in enumerate(streams, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = [name]
        files.resolve.cache_clear()
        content._known.clear()
        function()
        status = 0
    except SystemExit as left:
        status = int(left.code or 0)
    except BaseException:  # noqa: BLE001  # what no script may raise is shown as Python would
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _script(words: Sequence[str]) -> NoReturn:
    """A script as a process of its own would run it."""
    import runpy

    from model_diffs.core.script import execute, run_script
    from model_diffs.core.step import load_script

    sys.argv = [*words]
    if words[0] == "pipeline":
        runpy.run_module("model_diffs.pipeline", run_name="__main__")
    module = load_script(ROOT / words[0])
    run_script(lambda: execute(module) if hasattr(module, "STEP") else module.main())
