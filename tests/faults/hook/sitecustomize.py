"""Python imports this first in every process that has this folder in PYTHONPATH: a kill at a hook.

KILL_AT is `module:Name.function:n:when:signal:whom`: at the n-th call, `before` or `after` it, the
signal goes to `child` (this process), `shell` (the pipeline) or `group` (all of them). Only
processes that a pipeline started are concerned.
"""

import os
import signal
import sys

PIPELINE = "MODEL_DIFFS_PIPELINE"


def _strike(number: int, whom: str) -> None:
    pipeline = int(os.environ[PIPELINE].partition("@")[0])  # by now a fork has it too
    note = os.open(os.environ["KILL_NOTE"], os.O_CREAT | os.O_WRONLY)
    os.close(note)
    if whom == "group":
        os.killpg(os.getpgid(pipeline), number)
    else:
        os.kill(pipeline if whom == "shell" else os.getpid(), number)


def _patch(module: object) -> None:
    _, path, n, when, name, whom = os.environ["KILL_AT"].split(":")
    owner: object = module
    *owners, function = path.split(".")
    for one in owners:
        owner = getattr(owner, one)
    original, calls = getattr(owner, function), []

    def hooked(*arguments: object, **named: object) -> object:
        calls.append(1)
        now = len(calls) == int(n)
        if now and when == "before":
            _strike(getattr(signal, name), whom)
        result = original(*arguments, **named)
        if now and when == "after":
            _strike(getattr(signal, name), whom)
        return result

    setattr(owner, function, hooked)


class _Finder:
    """Lets the others find the module, and patches it once it was executed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != self.name:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: object) -> None:
            execute(module)  # type: ignore[arg-type]
            _patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _install() -> None:
    wanted = os.environ["KILL_AT"].split(":")[0]
    if wanted in sys.modules:
        _patch(sys.modules[wanted])
    else:
        sys.meta_path.insert(0, _Finder(wanted))  # type: ignore[arg-type]


if os.environ.get("KILL_AT"):
    if os.environ.get(PIPELINE):
        _install()
    else:  # the pipeline's own process, whose forks run the scripts
        os.register_at_fork(after_in_child=_install)
