"""Studies of several worlds, their stages, and the lock."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_diffs.attacks import lock, runs
from model_diffs.core.errors import BadInput
from model_diffs.pipeline import worlds
from model_diffs.pipeline.studies import Study, read_study

STUDY = """
make = ["create_miniature.py --world-seed 10{world} --data-dir data/w{world}"]
seeds = ["20{world}"]
results = "b/w{world}"
made_in = "./made/w{world}"
[worlds]
development = [1]
locked = [2]
measure = "1,4"
attack = "14"
registration = "doc.md"
[models]
base = "./models/w{world}/base"
[unlearn.npo]
until = "hazard=0.30"
[unlearn.rmu]
until = "hazard=0.30"
"""
DOCUMENT = f"""# Doc
{lock.BEGIN}
The analysis.

### Files
- `code.py`
{lock.END}
Results, which may change.
"""


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(STUDY)
    Path("doc.md").write_text(DOCUMENT)
    Path("code.py").write_text("x = 1\n")
    return read_study("study.toml")


def test_a_world_s_number_stands_everywhere(template: Study) -> None:
    study = worlds.of_world(template, 1)
    assert study.seeds == (201,) and study.base == "./models/w1/base" and study.results == "b/w1"
    assert next(iter(study.made())) == "./made/w1/base__npo"
    assert study.make == ("create_miniature.py --world-seed 101 --data-dir data/w1",)
    locked = worlds.of_world(template, 2)
    assert locked.make[0].endswith("--registration doc.md") and locked.seeds == (202,)


def stages(template: Study, words: str = "") -> list[tuple[int, str]]:
    return [(one.world, one.steps) for one in worlds.stages(template, words, "")]


def test_models_come_before_measures_predictors_and_attacks(template: Study) -> None:
    assert stages(template, "1") == [
        (1, "create_miniature.py,unlearn.py"), (1, "1,4"), (1, "write_predictors.py"), (1, "14"),
    ]  # fmt: skip


def test_a_locked_world_waits_for_the_registration(template: Study) -> None:
    assert {world for world, _ in stages(template)} == {1}
    lock.register(Path("doc.md"))
    assert {world for world, _ in stages(template)} == {1, 2}
    Path("code.py").write_text("x = 2\n")
    assert {world for world, _ in stages(template)} == {1}


def test_what_missed_its_target_is_left_out(template: Study) -> None:
    for name, reached in (("npo", True), ("rmu", False)):
        folder = Path(f"made/w1/base__{name}")
        folder.mkdir(parents=True)
        until = {"reached": reached}
        (folder / "unlearning.json").write_text(json.dumps({"until": until}))
    *_, last = worlds.stages(template, "1", "")
    assert {one.name: one.compare for one in last.study.unlearn} == {"npo": True, "rmu": False}


@pytest.mark.parametrize("words", ["7", "1,x", "-1"])
def test_unknown_worlds_are_refused(words: str, template: Study) -> None:
    with pytest.raises(BadInput, match="no world"):
        stages(template, words)
    with pytest.raises(BadInput, match="studies with"):
        worlds.chosen_worlds(replace(template, worlds=None), "1")


def test_the_analysis_follows_once_a_world_has_predictors(
    template: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    status = [0]

    def run(words: list[str]) -> SimpleNamespace:
        ran.append(words[1:])
        return SimpleNamespace(returncode=status[0])

    monkeypatch.setattr(worlds.subprocess, "run", run)
    assert worlds.analyse(template, "out") == 0 and not ran
    written = Path("out/b/w2/predictors/predictors.csv")
    written.parent.mkdir(parents=True)
    written.write_text("model\nnpo\n")
    assert worlds.analyse(template, "out") == 0
    assert [Path(words[0]).name for words in ran] == [*worlds.ANALYSIS]
    assert all(Path(words[0]).is_file() and "out" in words for words in ran)
    status[0] = 3
    assert worlds.analyse(template, "out") == 3 and len(ran) == 3


def test_the_analysis_is_made_again_only_where_a_world_has_something_newer(
    template: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[list[bool]] = []

    def run(words: list[str]) -> SimpleNamespace:
        if Path(words[1]).name == worlds.ANALYSIS[0]:
            forced.append([])
        forced[-1].append("--force" in words)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(worlds.subprocess, "run", run)
    predictors, made = Path("out/b/w1/predictors"), Path("out", worlds.PREDICTION, "run.json")
    records = [predictors / "run.json", Path("out/b/w1/relearning/npo/run.json"), template.path]
    for path in (predictors / "predictors.csv", *records[:2], made):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    for path in (*records, made):
        os.utime(path, (1000, 1000))
    worlds.analyse(template, "out")
    for path in records:
        os.utime(path, (2000, 2000))
        worlds.analyse(template, "out")
        os.utime(path, (1000, 1000))
    made.unlink()
    worlds.analyse(template, "out")
    assert forced == [[False, False], *[[True, False]] * 4]


# ── the lock ──────────────────────────────────────────────────────────────────────────────────────


def options() -> Any:
    models = ("./models/base", "./unlearned_models/base__npo")
    return SimpleNamespace(
        questions="data/w2/questions.jsonl", outroot="out", base="./models/base", model=models
    )


def written(registered: Any) -> None:
    folder = Path("out/predictors")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictors.csv").write_text("model\nnpo\n")
    record = {"registered": registered, "arguments": {}, "inputs": [], "outputs": []}
    (folder / "run.json").write_text(json.dumps(record))


def attack(done: list[str]) -> None:
    script: Any = SimpleNamespace()
    chosen: Any = options()
    run: Any = SimpleNamespace(model_a="m")
    runs.make_all(script, chosen, [run], lambda todo: done.append("attacked"), lambda one: None)


def test_no_attack_reads_a_locked_world_before_its_time(template: Study) -> None:
    """Refused without registration, without predictors, and with those of another registration."""
    Path("data/w2").mkdir(parents=True)
    Path("data/w2", lock.LOCKED).write_text(json.dumps({"registration": "doc.md"}))
    done: list[str] = []
    with pytest.raises(BadInput, match="is not registered"):
        attack(done)
    record = lock.register(Path("doc.md"))
    with pytest.raises(BadInput, match="until its predictors are written"):
        attack(done)
    written({"doc.md": "another"})
    with pytest.raises(BadInput, match="until its predictors are written"):
        attack(done)
    assert not done
    written(json.loads(record.read_text()))
    lock.check(options().questions, options().outroot, ["npo"])
    with pytest.raises(BadInput, match="has no row of rmu"):
        lock.check(options().questions, options().outroot, ["npo", "rmu"])
    Path("out/predictors/predictors.csv").write_bytes(b"\xff\xfe no table")
    with pytest.raises(BadInput, match="has no row of npo"):
        lock.check(options().questions, options().outroot, ["npo"])


def test_every_attacked_model_but_the_base_needs_its_row(
    template: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(lock, "check", lambda *words: asked.append(words[2]))
    monkeypatch.setattr(runs.step, "planned_runs", lambda *_: [])
    done: list[str] = []
    attack(done)
    assert asked == [["npo"]] and done == ["attacked"]


def test_results_may_change_and_the_registered_part_may_not(template: Study) -> None:
    document = Path("doc.md")
    lock.register(document)
    document.write_text(DOCUMENT + "\nMore results.\n")
    assert lock.unregistered("doc.md") == "" and lock.register(document)
    document.write_text(DOCUMENT.replace("The analysis", "Another analysis"))
    assert "doc.md changed" in lock.unregistered("doc.md")
    with pytest.raises(BadInput, match="something has changed"):
        lock.register(document)


def test_a_document_without_a_registered_part_is_refused(template: Study) -> None:
    Path("doc.md").write_text("nothing")
    with pytest.raises(BadInput, match="not one part between"):
        lock.register(Path("doc.md"))


def test_other_worlds_are_not_locked(tmp_path: Path) -> None:
    lock.check(str(tmp_path / "questions.jsonl"), str(tmp_path))
    lock.check(None, str(tmp_path))
