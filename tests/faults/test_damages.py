"""Random damages: no traceback, no hang, nothing half-written, nothing wrongly complete.

`python tests/faults/damages.py --count 500` runs as many as one likes, over all scripts.
"""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import damages
import pytest

from model_diffs.core import results, script

pytestmark = pytest.mark.study
WEIGHTS = ["collect_param_stats.py", *damages.COMMANDS["collect_param_stats.py"]]


def test_damaged_studies_are_used_or_refused(tmp_path: Path) -> None:
    ends, faults = damages.trials(range(20), 0, tmp_path, damages.QUICK)
    assert not faults
    assert sum(ends.values()) == 20 and ends["refused"] and ends["done"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("damages") / "sound"
    damages.build(place, WEIGHTS[:1])
    return place


def raises(*_: object) -> None:
    raise ZeroDivisionError


def talks(*_: object) -> None:
    print("one\ntwo", file=sys.stderr)
    sys.exit(2)


def leaves(*_: object) -> None:
    sys.exit(3)


WRONG: list[tuple[str, Callable[..., None]]] = [
    ("traceback", raises),
    ("hang", lambda *_: time.sleep(60)),
    ("lines", talks),
    ("status", leaves),
]


@pytest.mark.parametrize(("kind", "execute"), WRONG, ids=[kind for kind, _ in WRONG])
def test_sees_what_a_script_does_wrong(
    sound: Path, monkeypatch: pytest.MonkeyPatch, kind: str, execute: Callable[..., None]
) -> None:
    monkeypatch.setattr(damages, "SECONDS", 2.0)
    assert damages.judge(sound, sound, WEIGHTS) == ("done", "")
    monkeypatch.setattr(script, "execute", execute)
    assert damages.judge(sound, sound, WEIGHTS)[0] == kind


def test_sees_a_result_that_is_wrongly_complete(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "study"
    shutil.copytree(sound, place)
    with (place / "b/model.safetensors").open("r+b") as weights:
        weights.seek(-7, 2)
        weights.write(b"\x01")
    assert damages.judge(place, sound, WEIGHTS)[0] == "done"
    monkeypatch.setattr(results, "state", lambda *_: results.State("complete", ""))
    kind, says = damages.judge(place, sound, WEIGHTS)
    assert kind == "wrong complete" and "b/model.safetensors" in says
