"""The miniature's models are trained in processes that another program may start."""

import pickle
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from model_diffs.core.step import load_script
from model_diffs.miniature.recipe import Recipe

SCRIPT = Path(__file__).parents[1] / "create_miniature.py"


def test_what_a_process_is_given_is_found_without_the_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loaded a second time the script's own classes and functions are others of the same name; a
    process that has not loaded it knows none of them."""
    module, given = load_script(SCRIPT), []
    load_script(SCRIPT)

    class Pool:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, *call: Any) -> "Future[None]":
            given.append(pickle.dumps(call))
            done: Future[None] = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    options = module.Options(seed=7, lr=0.5, data_dir="elsewhere")
    todo = module.planned_runs(options)[1:]
    module.make_models(todo, options)
    monkeypatch.delitem(sys.modules, module.__name__)
    for line, (call, planned) in enumerate(zip(map(pickle.loads, given), todo, strict=True)):
        function, *arguments = call
        assert function.__module__ == "model_diffs.miniature.making"
        assert arguments == [line, planned, Recipe(seed=7, lr=0.5), "elsewhere", "auto"]
        assert planned.committed == [True]
