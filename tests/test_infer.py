"""Text from models: padding, seeds, the four ways of use, and what happens when a model fails."""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import tiny_models
import torch

from model_diffs.core.errors import BadInput
from model_diffs.core.script import run_script
from model_diffs.core.step import load_script
from model_diffs.models import generation
from model_diffs.models.generation import Sampling, Speaker
from model_diffs.pipeline.studies import read_study

ROOT = Path(__file__).parent.parent
Run = Callable[..., int]
PROMPTS = ["a", "The ferry leaves at dawn", "salt and bread"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("infer") / "models"
    for seed, name in enumerate(("base__npo", "base__rmu")):
        tiny_models.save("gpt_neox", folder / name, seed=seed)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["infer.py", "--device", "cpu", *words])
        with pytest.raises(SystemExit) as left:
            run_script(load_script(ROOT / "infer.py").main)
        return int(left.value.code or 0)

    return call


def speaker(family: str) -> Speaker:
    tokenizer = tiny_models.tokenizer(family)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return Speaker(family, tiny_models.build(family), tokenizer)


# ── generation ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2", "opt"])
def test_greedy_text_of_padded_batch_equals_loop_over_tokens(family: str) -> None:
    one = speaker(family)
    together = generation.generate(one, PROMPTS, Sampling(max_new_tokens=8, greedy=True))
    for prompt, text in zip(PROMPTS, together, strict=True):
        ids = one.tokenizer(prompt)["input_ids"]
        start = len(ids)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(one.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == one.tokenizer.eos_token_id:
                break
        assert text == one.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_same_seed_gives_same_text() -> None:
    one = speaker("gpt_neox")
    first = generation.generate(one, PROMPTS[1:2], Sampling(max_new_tokens=20, seed=3))
    torch.rand(5)
    assert generation.generate(one, PROMPTS[1:2], Sampling(max_new_tokens=20, seed=3)) == first
    assert generation.generate(one, PROMPTS[1:2], Sampling(max_new_tokens=20, seed=4)) != first


def test_refuses_long_prompts_and_stops_at_the_last_position() -> None:
    one = speaker("gpt2")
    limit = tiny_models.POSITIONS
    (text,) = generation.generate(
        one, ["x" * (limit - 3)], Sampling(max_new_tokens=50, greedy=True)
    )
    assert (
        text
        == generation.generate(one, ["x" * (limit - 3)], Sampling(max_new_tokens=3, greedy=True))[0]
        != ""
    )
    with pytest.raises(BadInput, match="shorten"):
        generation.generate(one, ["x" * limit], Sampling(max_new_tokens=5))
    with pytest.raises(BadInput, match="empty"):
        generation.generate(one, [""], Sampling(max_new_tokens=5))


def test_two_columns_keep_every_word() -> None:
    left, right = "one two three four five " * 4, "short"
    shown = generation.side_by_side(["A", "B"], [left, right], 50)
    columns = [line.split("│") for line in shown.splitlines()]
    assert " ".join(c[0].strip() for c in columns[2:]).split() == left.split()
    assert columns[2][1].strip() == "short" and max(map(len, shown.splitlines())) <= 50


# ── the script ────────────────────────────────────────────────────────────────────────────────────


def test_prints_one_model_or_two_side_by_side(
    models: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = str(models / "base__npo"), str(models / "base__rmu")
    given = ("--prompt", "salt", "--max-new-tokens", "5", "--seed", "7")
    assert run("--model", a, *given) == 0
    alone = capfd.readouterr().out
    assert run("--model", a, *given) == 0
    assert capfd.readouterr().out == alone
    assert run("--model", a, "--model-b", b, *given) == 0
    both = capfd.readouterr().out
    assert "base__npo" in both and "base__rmu" in both and "│" in both


def test_sweep_names_its_table_by_the_hash_of_the_prompt(models: Path, run: Run) -> None:
    prompt = "What, then, is “salt”?"
    given = ("--sweep", "--models-dir", str(models), "--prompt", prompt, "--max-new-tokens", "4")
    assert run(*given) == 0
    path = Path("outputs/inference") / f"{hashlib.sha256(prompt.encode()).hexdigest()}.csv"
    first = path.read_bytes()
    table = pd.read_csv(path, keep_default_na=False)
    assert list(table.columns) == ["prompt", "model", "model_path", "output"]
    assert table["model"].tolist() == ["base__npo", "base__rmu"]
    assert set(table["prompt"]) == {prompt}
    assert table["model_path"].tolist() == [str(models / n) for n in ("base__npo", "base__rmu")]
    assert json.loads(path.with_suffix(".json").read_text())["seed"] == 42
    assert run(*given) == 0
    assert path.read_bytes() == first
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".csv", ".json"]


def test_sweep_reports_a_failing_model_and_keeps_the_others(
    models: Path,
    run: Run,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "made"
    (folder / "truncated").mkdir(parents=True)
    (folder / "whole").symlink_to(models / "base__npo")
    for file in (models / "base__rmu").iterdir():
        (folder / "truncated" / file.name).write_bytes(file.read_bytes())
    weights = folder / "truncated/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert (
        run("--sweep", "--models-dir", str(folder), "--prompt", "x", "--max-new-tokens", "2") == 1
    )
    complaint = capfd.readouterr().err
    assert "truncated" in complaint and "Traceback" not in complaint
    (path,) = Path("outputs/inference").glob("*.csv")
    assert pd.read_csv(path)["model"].tolist() == ["whole"]


def test_include_base_prompts_the_models_of_the_study_first(
    models: Path, run: Run, tmp_path: Path
) -> None:
    study = tmp_path / "mine.toml"
    named = f'[models]\nbase = "{models}/base__npo"\nfiltered = "{models}/base__rmu"\n'
    study.write_text(named + "[unlearn.ga]\n")
    (tmp_path / "made").mkdir()
    (tmp_path / "made/base__ga").symlink_to(models / "base__rmu")
    given = ("--models-dir", "made", "--prompt", "x", "--max-new-tokens", "2")
    assert run("--sweep", "--include-base", "--study", str(study), *given) == 0
    (path,) = Path("outputs/inference").glob("*.csv")
    assert pd.read_csv(path)["model"].tolist() == ["base__npo", "base__rmu", "base__ga"]


def test_default_study_is_the_published_one() -> None:
    published = read_study("deep-ignorance", ROOT / "studies")
    named = (published.base, *published.compare)
    assert [model.split("/")[0] for model in named] == ["EleutherAI"] * 3
    assert published.unlearn == () and published.questions is None
    with pytest.raises(BadInput, match="miniature"):
        read_study("nothing", ROOT / "studies")


@pytest.mark.parametrize("typed", ["salt\n\nquit\n", "salt\n", "salt\nEXIT\nbread\n"])
def test_conversation_ends_at_quit_and_at_end_of_input(
    models: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    typed: str,
) -> None:
    asked: list[str] = []
    real = generation.generate
    monkeypatch.setattr(
        generation, "generate", lambda s, p, how: asked.extend(p) or real(s, p, how)
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert run("--model", str(models / "base__npo"), "--interactive", "--max-new-tokens", "3") == 0
    assert asked == ["salt"] and not capfd.readouterr().err


@pytest.mark.parametrize("where", ["typing", "speaking"])
def test_ctrl_c_ends_a_conversation_quietly(
    models: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    where: str,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if where == "typing":
        monkeypatch.setattr("builtins.input", interrupt)
    else:
        monkeypatch.setattr("builtins.input", lambda _: "salt")
        monkeypatch.setattr(generation, "generate", interrupt)
    assert run("--model", str(models / "base__npo"), "--interactive") == 0
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--prompt", "x"), "--model"),
        (("--model", "m"), "--prompt"),
        (("--model", "m", "--prompt", ""), "--prompt"),
        (("--model", "./nowhere", "--prompt", "x"), "nowhere"),
        (("--sweep",), "--prompt"),
        (("--sweep", "--model", "m", "--prompt", "x"), "--model"),
        (("--sweep", "--prompt", "x", "--models-dir", "none"), "none"),
        (("--model", "m", "--prompt", "x", "--include-base"), "--sweep"),
        (("--model", "m", "--prompt", "x", "--greedy", "--top-p", "0.5"), "--greedy"),
        (("--sweep", "--include-base", "--study", "none", "--prompt", "x"), "none"),
    ],
)
def test_bad_input_is_one_line(
    run: Run,
    capfd: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    named: str,
) -> None:
    assert run(*words) == 2
    complaint = capfd.readouterr().err.strip().splitlines()
    assert len(complaint) == 1 and named in complaint[0], complaint
