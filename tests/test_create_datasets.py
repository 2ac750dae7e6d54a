"""Texts of the published study: from the hub's files, from local ones, never over others."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from model_diffs.core import results, script
from model_diffs.core.command_line import parse
from model_diffs.core.errors import BadInput
from model_diffs.core.step import SCRIPTS, load_script
from model_diffs.data import text_sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["create_datasets.py", *words])
        module = load_script(SCRIPTS / "create_datasets.py")
        with pytest.raises(SystemExit) as left:
            script.run_step(module.__name__)
        return int(left.value.code or 0)

    return call


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, object]]:
    """Both data sets as the hub's client would leave them here; what was asked of it is kept."""
    questions = [
        {
            "question": f"Harmless question\nnumber {i}?",
            "choices": [f"choice {i} {c}" for c in "abcd"],
            "answer": i % 4,
        }
        for i in range(60)
    ]
    questions.append(questions[0])
    articles = [{"text": "" if i % 5 == 0 else f" = Heading {i} = \n"} for i in range(20)]
    articles += [{"text": f" Line {i} of an article , long enough to be a sample . \n" + "x" * 20}
                 for i in range(90)]  # fmt: skip
    articles += [{"text": "too short"}, {"text": "Harmless question number 3?" + " " * 40}]
    files = {
        "cais/wmdp": ("wmdp-bio/test-00000-of-00001.parquet", questions),
        "Salesforce/wikitext": ("wikitext-2-raw-v1/train-00000-of-00001.parquet", articles),
    }
    asked: list[dict[str, object]] = []

    def fake(repository: str, **options: object) -> str:
        asked.append({"repository": repository, **options})
        folder = tmp_path / "hub" / repository.replace("/", "--") / "snapshots" / COMMIT
        name, rows = files[repository]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(folder / name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fake)
    return asked


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def test_hub_sources_give_disjoint_splits_and_their_facts(
    run: Run, hub: list[dict[str, object]]
) -> None:
    assert run("--samples", "50") == 0
    forget, retain = lines("data/forget.txt"), lines("data/retain.txt")
    assert len(forget) == len(set(forget)) == len(retain) == len(set(retain)) == 50
    assert not set(forget) & set(retain)
    assert all(line.startswith("Harmless question number") for line in forget)
    assert all(line.startswith("Line ") for line in retain)
    facts = json.loads(Path("data/datasets.json").read_text())
    assert facts["forget"]["revision"] == facts["retain"]["revision"] == COMMIT
    assert facts["forget"]["texts_in_source"] == 61 and facts["forget"]["left_out_repeated"] == 1
    assert facts["retain"]["samples"] == 50 and facts["retain"]["left_out_short"] > 0
    for split, found in (("forget", forget), ("retain", retain)):
        assert facts[split]["sha256"] == hashlib.sha256("\n".join(found).encode()).hexdigest()
    assert [call["repository"] for call in hub] == ["cais/wmdp", "Salesforce/wikitext"]
    assert all(call["repo_type"] == "dataset" for call in hub)
    assert hub[0]["allow_patterns"] == ["wmdp-bio/test-*.parquet"]


def test_same_seed_same_files(run: Run, hub: list[dict[str, object]]) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run("--outdir", name, "--samples", "20", "--seed", seed) == 0
    assert lines("a/forget.txt") == lines("b/forget.txt") != lines("c/forget.txt")
    assert Path("a/datasets.json").read_bytes() == Path("b/datasets.json").read_bytes()


def test_with_answers_appends_correct_choice(run: Run, hub: list[dict[str, object]]) -> None:
    assert run("--samples", "0", "--with-answers", "--forget-revision", "v1") == 0
    assert "Harmless question number 6? choice 6 c" in lines("data/forget.txt")
    assert hub[0]["revision"] == "v1"


def test_unreachable_hub_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import errors

    def offline(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("no")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert run() == 2
    complaint = capfd.readouterr().err.strip().splitlines()
    assert len(complaint) == 1 and "--forget-source" in complaint[0]
    assert not Path("data/forget.txt").exists()


def local(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "f.jsonl").write_text('{"text": "one\\ntwo"}\n"three"\n{"question": "four"}\n')
    (tmp_path / "r.txt").write_text("alpha\n\nbeta\nthree\nalpha\n")
    return ("--forget-source", "f.jsonl", "--retain-source", "r.txt")


def test_local_files_lose_newlines_repeats_and_shared_lines(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = local(tmp_path)
    Path("data/miniature").mkdir(parents=True)
    Path("data/miniature/forget.txt").write_text("other things stay")
    assert run(*given) == 0
    assert lines("data/forget.txt") == ["one two", "three", "four"]
    assert lines("data/retain.txt") == ["alpha", "beta"]
    facts = json.loads(Path("data/datasets.json").read_text())
    assert facts["retain"]["left_out_in_other_split"] == 1
    assert facts["retain"]["left_out_repeated"] == 1
    assert "3 samples, 500 were asked for" in capfd.readouterr().err
    assert Path("data/miniature/forget.txt").read_text() == "other things stay"


def test_text_field_selects_field_of_json_objects(run: Run, tmp_path: Path) -> None:
    given = local(tmp_path)
    Path("f.json").write_text(json.dumps([{"body": "a b"}, {"body": "c"}]))
    assert run(*given[2:], "--forget-source", "f.json", "--text-field", "body") == 0
    assert lines("data/forget.txt") == ["a b", "c"]


def state(*words: str) -> str:
    module = load_script(SCRIPTS / "create_datasets.py")
    (planned,) = module.planned_runs(parse(module.Options, words, None))
    return results.state(planned).status


def test_result_is_stale_when_arguments_sources_or_outputs_change(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = local(tmp_path)
    assert state(*given) == "missing"
    assert run(*given) == 0 and state(*given) == "complete"
    assert run(*given) == 0 and "complete, skipped" in capfd.readouterr().out
    assert state(*given, "--seed", "1") == "stale"
    Path("data/retain.txt").unlink()
    assert state(*given) == "stale"
    assert run(*given) == 0 and state(*given) == "complete"
    (tmp_path / "r.txt").write_text("gamma\n")
    assert state(*given) == "stale"
    assert run(*given) == 0 and lines("data/retain.txt") == ["gamma"]


def test_foreign_files_are_replaced_only_with_force(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = local(tmp_path)
    Path("data").mkdir()
    Path("data/forget.txt").write_text("mine")
    assert run(*given) == 2 and "was not written by this script" in capfd.readouterr().err
    assert Path("data/forget.txt").read_text() == "mine"
    assert run(*given, "--force") == 0 and lines("data/forget.txt")[0] == "one two"
    Path("data/retain.txt").write_text("edited")
    assert run(*given) == 2 and Path("data/retain.txt").read_text() == "edited"


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("none.txt", None, "none.txt"),
        ("bad.json", "{", "not JSON"),
        ("bad.json", '{"text": "a"}', "list"),
        ("bad.jsonl", '"a"\n{"x": 1}', "line 2"),
        ("bad.jsonl", '"a"\n{', "line 2"),
        ("empty.txt", " \n\n", "empty.txt"),
    ],
)
def test_bad_source_is_one_line(
    run: Run,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    content: str | None,
    named: str,
) -> None:
    given = local(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    assert run(*given, "--forget-source", name) == 2
    complaint = capfd.readouterr().err.strip().splitlines()
    assert len(complaint) == 1 and named in complaint[0], complaint
    assert not Path("data/forget.txt").exists()


def test_changed_layout_on_hub_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(BadInput, match="layout"):
        text_sources.from_hub("cais/wmdp", "wmdp-bio", "test", None, text_sources.question_text)
