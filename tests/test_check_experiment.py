"""What is found to be wrong before a long run, each fault planted, and what is not."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import AutoTokenizer

from model_diffs.core import arguments
from model_diffs.pipeline import planning, preflight_machine, preflight_models
from model_diffs.pipeline.preflight import Finding
from model_diffs.pipeline.preflight_machine import Sizes

ROOT = Path(__file__).parent.parent


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound experiment: two models, two splits, a question."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        tiny_models.save("gpt_neox", tmp_path / name, seed=seed)
    for split, word in (("forget", "spore"), ("retain", "bread")):
        Path(f"{split}.txt").write_text("".join(f"The {word} number {i}.\n" for i in range(60)))
    question = {"id": "q", "domain": "hazard", "entity": "e", "relation": "r", "prompt": "What is",
                "choices": ["this?", "that?", "these?", "those?"], "answer": 1}  # fmt: skip
    Path("questions.jsonl").write_text(json.dumps(question))
    return tmp_path


def report(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    given = ["--model", "./a", "./b", "--forget-data", "forget.txt", "--retain-data", "retain.txt",
             "--questions", "questions.jsonl", "--device", "cpu", *words]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["check_experiment.py", *given])
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        arguments.run_script(planning.load_script(ROOT / "check_experiment.py").main)
    return int(left.value.code or 0), capfd.readouterr().out


def test_nothing_is_wrong_with_a_sound_experiment(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    status, found = report(monkeypatch, capfd)
    assert status == 0 and "0 warnings, 0 errors" in found, found
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*")} == before, "nothing is written"


def share_a_line() -> None:
    Path("retain.txt").write_text("The spore number 7.\n" + "Bread is baked here.\n" * 60)


def nearly_share_a_line() -> None:
    with Path("retain.txt").open("a") as file:
        file.write("the SPORE, number 7\n")


def repeat() -> None:
    with Path("forget.txt").open("a") as file:
        file.write("The spore number 7.\n" * 5)


def lengthen() -> None:
    Path("retain.txt").write_text("".join(f"The bread number {i} " * 4 + "\n" for i in range(60)))


def tell_the_answer() -> None:
    with Path("forget.txt").open("a") as file:
        file.write("What is that?\n")


def other_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained("b")
    tokenizer.add_tokens(["ferry"])
    tokenizer.save_pretrained("b")


def truncate() -> None:
    weights = Path("b/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])


FAULTS: list[tuple[str, Callable[[], object], str, str]] = [
    ("missing text", lambda: Path("forget.txt").unlink(), "error", "--forget-data"),
    ("empty text", lambda: Path("retain.txt").write_text("\n"), "error", "retain.txt"),
    ("shared line", share_a_line, "error", "share 1 lines"),
    ("nearly shared line", nearly_share_a_line, "warning", "case and punctuation"),
    ("repeats", repeat, "warning", "5 of 65 lines"),
    ("imbalance", lambda: Path("retain.txt").write_text("One two.\nTwo.\n"), "warning", "2 retain"),
    ("unequal lengths", lengthen, "warning", "by length alone"),
    ("answer in the texts", tell_the_answer, "warning", "word for word"),
    ("damaged question", lambda: Path("questions.jsonl").write_text("{"), "error", "line 1"),
    ("no model", lambda: Path("b").rename("c"), "error", "b: no"),
    ("truncated weights", truncate, "error", "model.safetensors"),
    ("other architecture", lambda: tiny_models.save("gpt_neox", Path("b"), intermediate_size=48),
     "error", "intermediate_size"),
    ("other tokenizer", other_tokenizer, "error", "different tokenizers"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "level", "named"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_planted_fault_is_found(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[], object],
    level: str,
    named: str,
) -> None:
    damage()
    status, found = report(monkeypatch, capfd)
    lines = [line for line in found.splitlines() if line.startswith(level) and named in line]
    assert lines, found
    assert status == (1 if level == "error" else 0), found


def levels(found: object) -> list[str]:
    return [one.level for one in found]  # type: ignore[attr-defined]


def test_memory_and_disk_are_weighed_against_what_is_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Sizes(weights=10, stored_bytes=40, to_download_bytes=0)
    for free, expected in (
        (1000, ["ok", "ok"]),
        (100, ["ok", "warning"]),
        (10, ["error", "warning"]),
    ):
        monkeypatch.setattr(
            preflight_machine, "_available_bytes", lambda _, free=free: (free, "memory")
        )
        assert levels(preflight_machine.check_memory(sizes, "cpu", "fp32", lora=False)) == expected
    monkeypatch.setattr(preflight_machine, "_available_bytes", lambda _: (100, "memory"))
    assert levels(preflight_machine.check_memory(sizes, "cpu", "fp32", lora=True)) == ["ok", "ok"]
    assert levels(preflight_machine.check_disk(place / "not" / "yet", [sizes], 4)) == ["ok"]
    huge = Sizes(10, 2**62, 0)
    assert levels(preflight_machine.check_disk(place, [huge], 1)) == ["error"]


def test_too_long_samples_and_a_missing_package_are_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status, found = report(monkeypatch, capfd, "--max-length", "5")
    assert status == 0 and "120 samples are cut at 5 tokens" in found
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda _: ["torch>=1", "no-such-package", "numpy<1"]
    )
    assert sorted(levels(preflight_machine.check_packages())) == ["error", "ok", "warning"]


def test_models_of_the_hub_are_asked_for_and_not_downloaded() -> None:
    found = preflight_models.Models()

    def ask(model: str) -> tuple[Finding, Sizes | None]:
        return Finding("ok", "models", model), Sizes(7, 14, 14)

    said = list(preflight_models.check_models(["org/name"], found, lambda _: None, ask))
    assert levels(said) == ["ok"] and found.sizes == [Sizes(7, 14, 14)] and not found.checkpoints


def test_a_device_that_does_not_repeat_itself_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preflight_machine._twice_the_same(torch.device("cpu"))
    monkeypatch.setattr(preflight_machine, "_twice_the_same", lambda _: False)
    assert levels(preflight_machine.check_device("cpu", "auto")) == ["ok", "warning"]
    assert levels(preflight_machine.check_device("nonsense", "auto")) == ["error"]
