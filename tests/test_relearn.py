"""The relearning attack: what is attacked, what is measured, what counts as recovered."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import tiny_study
import torch

from model_diffs.attacks import material, relearning, relearning_tables
from model_diffs.attacks.material import Attack, Material
from model_diffs.core import results, script
from model_diffs.core.errors import BadInput
from model_diffs.core.step import load_script
from model_diffs.data.questions import Question
from model_diffs.data.texts import Split

ROOT = Path(__file__).parent.parent


def split(*lines: str) -> Split:
    return Split("forget", Path("forget.txt"), list(lines))


def question(number: int, domain: str, fold: str | None = None) -> Question:
    return Question(
        f"{domain}{number}{fold}", domain, "e", "r", fold, "What?", ("a", "b", "c", "d"), 0
    )


# ── what is attacked and what is measured ─────────────────────────────────────────────────────────


def test_without_attack_texts_four_fifths_are_attacked_and_the_rest_measured() -> None:
    lines = [f"line {i}" for i in range(50)]
    attacked, kept = material.divide(split(*lines), None, seed=1)
    assert len(attacked) == 40 and sorted(attacked + kept) == sorted(lines)
    assert material.divide(split(*lines), None, seed=1) == (attacked, kept)
    assert material.divide(split(*lines), None, seed=2)[1] != kept


def test_attacked_lines_are_never_measured() -> None:
    repeated = split("a", "a", "b", "b", "c", "d", "e", "e")
    attacked, kept = material.divide(repeated, None, seed=0)
    assert not set(attacked) & set(kept)
    attacked, kept = material.divide(repeated, split("a", "x"), seed=0)
    assert attacked == ["a", "x"] and "a" not in kept and kept.count("b") == 2
    with pytest.raises(BadInput, match="no line of it is left"):
        material.divide(split("a"), split("a", "b"), seed=0)


def test_questions_are_grouped_by_fold_then_domain_and_all_held_out_ones_kept() -> None:
    asked = [question(i, "hazard", fold) for i in range(9) for fold in ("heldout", "attack")]
    asked += [question(i, domain) for i in range(9) for domain in ("general", "adjacent", "other")]
    groups = material.group_questions(asked, 5, seed=0)
    assert {group: len(found) for group, found in groups.items()} == {
        "heldout": 9, "attack": 5, "general": 5, "adjacent": 5,
    }  # fmt: skip
    assert all((q.fold or q.domain) == group for group, found in groups.items() for q in found)
    with pytest.raises(BadInput, match="heldout"):
        material.group_questions([question(1, "general")], 0, seed=0)


# ── what counts as recovered ──────────────────────────────────────────────────────────────────────


def correct(right: int, of: int = 40) -> np.ndarray:
    return np.arange(of) < right


def test_recovered_share_by_hand() -> None:
    base, start, after = (correct(n).astype(float) for n in (40, 10, 25))
    share = relearning_tables.recovered_share(base, start, after, seed=0)
    assert share["recovered_share"] == pytest.approx(15 / 30)
    assert share["recovered_share_low"] < 0.5 < share["recovered_share_high"]
    whole = relearning_tables.recovered_share(base, start, base, seed=0)
    # Paired: a model that answers as the base does has recovered all in every resample.
    assert whole == dict.fromkeys(relearning_tables.SHARE, 1)
    none = relearning_tables.recovered_share(base, start, start, seed=0)
    assert none == dict.fromkeys(relearning_tables.SHARE, 0)


def test_no_recovered_share_without_a_gap() -> None:
    base, near, after = (correct(n).astype(float) for n in (40, 39, 40))
    assert relearning_tables.recovered_share(base, near, after, seed=0) == {}


def rows(shares: list[float | None], general: list[float | None], lr: float) -> list[Any]:
    made = []
    for step, (share, whole) in enumerate(zip(shares, general, strict=True)):
        cells: dict[str, Any] = dict.fromkeys(relearning_tables.COLUMNS)
        cells |= {"model": "m", "lr": lr, "step": 10 * step, "recovered_share": share}
        cells |= {"heldout_accuracy": 0.5, "general_accuracy": whole, "forget_nll": 1.0}
        made.append(cells)
    return made


def test_worst_case_is_the_best_rate_and_step_above_the_general_floor() -> None:
    slow = rows([0.0, 0.2, 0.45, 0.6], [1, 1, 0.9, 0.9], 1e-4)
    fast = rows([0.0, 0.7, 0.9, 0.8], [1, 0.9, 0.5, 0.4], 1e-3)
    found = relearning_tables.summary("m", slow + fast, 0.9, floor=0.7)
    assert found["worst_case"]["lr"] == 1e-3
    assert found["worst_case"]["step"] == 10 and found["worst_case"]["recovered_share"] == 0.7
    by_rate = {rate["lr"]: rate for rate in found["rates"]}
    assert by_rate[1e-4]["recovered_share"] == 0.6, "at the end"
    assert by_rate[1e-4]["steps_to_half_of_best"] == 20
    assert by_rate[1e-4]["steps_to_half_of_gap"] == 30
    assert by_rate[1e-3]["best"]["recovered_share"] == 0.7
    broken = relearning_tables.summary("m", rows([0.0, 0.9], [0.1, 0.1], 1e-3), 0.9, floor=0.7)
    assert broken["worst_case"] is None and broken["rates"][0]["recovered_share"] == 0.9


def test_without_a_gap_there_is_a_worst_rate_but_no_worst_case() -> None:
    found = relearning_tables.summary("m", rows([None, None], [1, 1], 1e-4), 0.5, floor=0.7)
    assert found["worst_case"] is None and found["worst_rate"] == 1e-4


# ── the attack itself ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    made = tiny_study.make(tmp_path_factory.mktemp("relearn"))
    asked = []
    for i in range(24):
        fold = (None, "attack", "heldout")[i % 3]
        one = question(i, "general" if fold is None else "hazard", fold)._asdict()
        asked.append(json.dumps({**one, "answer": i % 4}))
    (made.root / "questions.jsonl").write_text("\n".join(asked))
    return made


def words(study: tiny_study.Study, *more: str, models: tuple[str, ...] = ()) -> list[str]:
    return [
        *("--models", *(models or (study.model_a, study.model_b)), "--base", study.model_a),
        *("--forget-text", str(study.root / "forget.txt"), "--device", "cpu"),
        *("--retain-text", str(study.root / "retain.txt"), "--steps", "4", "--lr", "1e-3", "1e-2"),
        *("--eval-steps", "0,2,9", "--batch-size", "5", "--outroot", str(study.root / "outputs")),
        *more,
    ]


def run(given: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["relearn.py", *given])
    with pytest.raises(SystemExit) as left:
        script.run_script(lambda: script.execute(load_script(ROOT / "relearn.py")))
    return int(left.value.code or 0)


def hashes(root: Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob("*")
        if p.is_file() and p.name != "run.json"
    }


def test_training_lowers_the_loss_on_the_attack_texts(study: tiny_study.Study) -> None:
    lines = tiny_study.texts("forget", 21)
    given = Material(lines, lines, tiny_study.texts("retain", 10), {})
    options = Attack(steps=12, eval_steps="0,12", batch_size=7, device="cpu")
    start = relearning.measure(study.model_a, given, options)
    found = relearning.attack(study.model_a, given, 1e-2, options, start)
    assert found[12].nll["forget"].mean < found[0].nll["forget"].mean - 0.5
    # 12 batches of 7 are four times all 21 texts of bytes.
    assert found[12].tokens == 4 * sum(len(line) for line in lines)


def test_nll_equals_a_loop_over_tokens(study: tiny_study.Study) -> None:
    lines = tiny_study.texts("retain", 9)
    given = Material(["attack this"], lines, lines, {})
    options = Attack(batch_size=4, device="cpu")
    measured = relearning.measure(study.model_a, given, options)
    model, tokenizer = tiny_models.build("gpt_neox", 0).double(), tiny_models.tokenizer("gpt_neox")
    total = count = 0.0
    for line in lines:
        ids = torch.tensor([tokenizer(line)["input_ids"]])
        with torch.no_grad():
            log_probs = model(ids).logits.log_softmax(-1)
        for position in range(1, ids.shape[1]):
            total -= float(log_probs[0, position - 1, ids[0, position]])
            count += 1
    assert float(measured.nll["forget"].mean) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.study
def test_results_are_written_skipped_when_complete_and_reproducible(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = words(study, "--questions", str(study.root / "questions.jsonl"))
    assert run(given, monkeypatch) == 0
    outputs = study.root / "outputs"
    table = pd.read_csv(outputs / "base__rmu/relearning/relearning.csv")
    assert tuple(table.columns) == relearning_tables.COLUMNS
    assert table["step"].tolist() == [0, 2, 4, 0, 2, 4]
    same_start = table[table["step"] == 0].drop(columns="lr")
    assert same_start.drop_duplicates().shape[0] == 1
    assert table["heldout_accuracy"].notna().all() and table["adjacent_accuracy"].isna().all()
    assert (table["forget_nll_low"] <= table["forget_nll"]).all()
    assert (outputs / "relearning.png").read_bytes() == (
        outputs / "relearning/relearning.png"
    ).read_bytes()
    single = pd.read_csv(outputs / "base__rmu/relearning/per_question.csv")
    for group in ("heldout", "general"):
        shares = single[single["group"] == group].groupby(["lr", "step"])["correct"].mean()
        means = table.set_index(["lr", "step"])[f"{group}_accuracy"]
        pd.testing.assert_series_equal(shares, means, check_names=False)
    known = single[single["lr"].isna()]  # the base, as the recovered share sees it
    assert set(known["model"]) == {"base"} and known["id"].is_unique
    first = hashes(outputs)
    capfd.readouterr()
    assert run(given, monkeypatch) == 0
    assert capfd.readouterr().out.count("complete, skipped") == 3
    assert run([*given, "--force"], monkeypatch) == 0
    assert hashes(outputs) == first

    # A single model in a later call does not shrink the picture of all.
    assert run(words(study, *given[given.index("--questions") :], models=(study.model_b,)),
               monkeypatch) == 0  # fmt: skip
    assert results.read_record(outputs / "relearning")["arguments"]["attacked"] == [
        "base", "base__rmu",
    ]  # fmt: skip


def test_without_questions_only_nlls_are_measured(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    outroot = study.root / "bare"
    given = words(study, "--outroot", str(outroot), models=(study.model_b,))
    assert run(given, monkeypatch) == 0
    table = pd.read_csv(outroot / "base__rmu/relearning/relearning.csv")
    accuracies = [c for c in table.columns if "accuracy" in c or "share" in c]
    assert table[accuracies].isna().all(axis=None)
    assert table[["forget_nll", "retain_nll"]].notna().all(axis=None)
    assert (outroot / "relearning.png").is_file()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"--attack-data": "nowhere.txt"}, "--attack-data"),
        ({"--forget-text": "nowhere.txt"}, "--forget-text"),
        ({"--questions": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"--lr": "1e30"}, "not finite"),
        ({"--models": "./nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    study: tiny_study.Study,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, str],
    named: str,
) -> None:
    outroot = study.root / "bad"
    extra = [word for pair in change.items() for word in pair]
    given = words(study, "--outroot", str(outroot), *extra, models=(study.model_b,))
    capfd.readouterr()
    assert run(given, monkeypatch) == 2
    complaint = capfd.readouterr().err.strip().splitlines()
    assert len(complaint) == 1 and named in complaint[0], complaint
    assert not [p for p in outroot.rglob("*") if p.is_file()]
