"""Checks before a long run: every planted fault is reported, and a sound experiment has none."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import AutoTokenizer

from model_diffs.core.options import Compute
from model_diffs.core.script import run_script
from model_diffs.core.step import load_script
from model_diffs.models import devices
from model_diffs.pipeline import preflight
from model_diffs.pipeline.preflight import Finding, Sizes

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
        run_script(load_script(ROOT / "check_experiment.py").main)
    return int(left.value.code or 0), capfd.readouterr().out


def test_sound_experiment_has_no_warnings_or_errors(
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
    ("missing text", lambda: Path("forget.txt").unlink(), "error", "--forget-text"),
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
def test_reports_planted_faults(
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


def levels(found: Iterable[Finding]) -> list[str]:
    return [level for level, _, _ in found]


def test_compares_memory_and_disk_with_what_is_free(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = Sizes(weights=10, stored_bytes=40, to_download_bytes=0)
    options = Compute(device="cpu", dtype="fp32")
    for free, expected in (
        (1000, ["ok", "ok"]),
        (100, ["ok", "warning"]),
        (10, ["error", "warning"]),
    ):
        monkeypatch.setattr(devices, "free_memory", lambda _, free=free: free)
        assert levels(preflight.check_memory(sizes, options, lora=False)) == expected
    monkeypatch.setattr(devices, "free_memory", lambda _: 100)
    assert levels(preflight.check_memory(sizes, options, lora=True)) == ["ok", "ok"]
    assert preflight.check_disk(place / "not" / "yet", [sizes], 4)[0] == "ok"
    huge = Sizes(10, 2**62, 0)
    assert preflight.check_disk(place, [huge], 1)[0] == "error"


def test_reports_long_samples_and_missing_packages(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status, found = report(monkeypatch, capfd, "--max-length", "5")
    assert status == 0 and "120 samples are cut at 5 tokens" in found
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda _: ["torch>=1", "no-such-package", "numpy<1"]
    )
    assert sorted(levels(preflight.check_packages())) == ["error", "ok", "warning"]


def test_asks_the_hub_for_sizes_and_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "cached_snapshot", lambda _: None)
    monkeypatch.setattr(preflight, "hub_sizes", lambda _: Sizes(7, 14, 14))
    found = preflight.Models()
    assert levels(found.check(["org/name"])) == ["ok"]
    assert found.sizes == [Sizes(7, 14, 14)] and not found.checkpoints


def test_warns_of_a_device_that_is_not_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preflight.is_deterministic(torch.device("cpu"))
    monkeypatch.setattr(preflight, "is_deterministic", lambda _: False)
    assert levels(preflight.check_device(Compute(device="cpu"))) == ["ok", "warning"]
    nonsense = preflight.check_device(Compute(device="nonsense"))
    assert levels(preflight.guarded("device", nonsense)) == ["error"]


def test_takes_models_and_texts_from_the_study(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("mine.toml").write_text(
        '[models]\nbase = "./a"\nfiltered = "./b"\n'
        '[texts]\nforget = "forget.txt"\nretain = "retain.txt"\nquestions = "questions.jsonl"\n'
        "[unlearn.npo]\n[unlearn.ga]\ncompare = false\n"
    )
    words = ["check_experiment.py", "--study", "mine.toml", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        run_script(load_script(ROOT / "check_experiment.py").main)
    found = capfd.readouterr().out
    assert left.value.code == 0 and "0 warnings, 0 errors" in found, found
    assert "for 1 unlearned models" in found and "1 hazard" in found
