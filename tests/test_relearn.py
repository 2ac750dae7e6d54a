"""The relearning attack: what is attacked, what is measured, what counts as recovered."""

import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pandas as pd
import pytest
import tiny_models
import tiny_study
import torch

from model_diffs.attacks import material, relearning, relearning_tables
from model_diffs.attacks.material import Attack, Material
from model_diffs.core import results, script, tracking
from model_diffs.core.errors import BadInput
from model_diffs.core.step import load_script
from model_diffs.data.questions import Question
from model_diffs.data.texts import Split

ROOT = Path(__file__).parent.parent


def split(*lines: str) -> Split:
    return Split("forget", Path("forget.txt"), list(lines))


def question(number: int, domain: str, fold: str | None = None, entity: str = "") -> Question:
    name = f"{domain}{number}{fold}"
    return Question(
        name, domain, entity or name, "r", fold, "What?", ("a", "b", "c", "d"), number % 4
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


def test_questions_are_grouped_by_fold_then_domain_and_read_ones_all_kept() -> None:
    folds = ("heldout", "tune", "attack")
    asked = [question(i, "hazard", fold) for i in range(9) for fold in folds]
    asked += [question(i, domain) for i in range(9) for domain in ("general", "adjacent", "other")]
    groups = material.group_questions(asked, 5, seed=0)
    assert {group: len(found) for group, found in groups.items()} == {
        "heldout": 9, "tune": 9, "attack": 5, "general": 5, "adjacent": 5,
    }  # fmt: skip
    assert all((q.fold or q.domain) == group for group, found in groups.items() for q in found)


@pytest.mark.parametrize("lacking", ["heldout", "attack"])
def test_questions_without_a_fold_that_decides_are_refused(lacking: str) -> None:
    asked = [question(i, "hazard", f) for i in range(4) for f in ("heldout", "attack", "tune")]
    with pytest.raises(BadInput, match=f"fold '{lacking}'"):
        material.group_questions([q for q in asked if q.fold != lacking], 0, seed=0)


def test_without_a_tune_fold_half_of_the_held_out_entities_choose_the_rate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [question(i, "hazard", fold, f"{fold}{i // 3}")
             for i in range(30) for fold in ("heldout", "attack")]  # fmt: skip
    groups = material.group_questions(asked, 0, seed=3)
    chosen, read = ({q.entity for q in groups[group]} for group in ("tune", "heldout"))
    assert len(chosen) == len(read) == 5 and not chosen & read
    assert len(groups["tune"] + groups["heldout"]) == 30, "whole entities, nothing lost"
    assert capsys.readouterr().out.count("5 of the 10 held-out entities") == 1
    again = material.group_questions(asked, 0, seed=4)
    assert {q.entity for q in again["tune"]} != chosen, "seeded"
    one = [q._replace(entity="e") for q in asked]
    with pytest.raises(BadInput, match="one entity"):
        material.group_questions(one, 0, seed=3)


# ── the attack itself ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    made = tiny_study.make(tmp_path_factory.mktemp("relearn"))
    asked = []
    for i in range(48):
        fold = (None, "attack", "heldout", "tune")[i % 4]
        one = question(i, "general" if fold is None else "hazard", fold, f"e{i // 8}{fold}")
        asked.append(json.dumps({**one._asdict(), "answer": (i // 4) % 4}))
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


LINES = tiny_study.texts("forget", 21)


def test_training_lowers_the_loss_on_the_attack_texts(study: tiny_study.Study) -> None:
    given = Material({"facts": LINES}, LINES, tiny_study.texts("retain", 10), {})
    options = Attack(arm=("facts",), lr=(1e-2,), steps=12, eval_steps="0,12", batch_size=7,
                     device="cpu")  # fmt: skip
    (found,) = relearning.attack(study.model_a, given, options)
    start, end = found.measured[0], found.end
    assert end.nll["forget"].mean < start.nll["forget"].mean - 0.5
    # 12 batches of 7 are four times all 21 texts of bytes.
    assert end.tokens == 4 * sum(len(line) for line in LINES)
    assert found.took is None, "without questions nobody can say"


def test_one_loading_serves_all_arms_and_rates_in_any_order(study: tiny_study.Study) -> None:
    """Each attack begins at the model's own weights, also after an adapter."""
    pytest.importorskip("peft")
    retain = tiny_study.texts("retain", 12)
    given = Material(dict.fromkeys(("facts", "lora"), LINES) | {"retain": retain}, LINES, retain,
                     {"heldout": [question(i, "hazard", "heldout") for i in range(8)]})  # fmt: skip

    def nlls(arms: tuple[str, ...], *lr: float) -> dict[tuple[str, float], list[float]]:
        options = Attack(arm=arms, lr=lr, steps=3, eval_steps="0,3", device="cpu", batch_size=7)
        return {
            (one.arm, one.lr): [
                float(measured.nll[split].mean)
                for measured in one.measured.values() for split in measured.nll
            ]
            for one in relearning.attack(study.model_a, given, options)
        }  # fmt: skip

    forwards = nlls(("facts", "lora", "retain"), 1e-2, 1e-3)
    assert forwards == nlls(("retain", "lora", "facts"), 1e-3, 1e-2)
    assert forwards["retain", 1e-3] == nlls(("retain",), 1e-3)["retain", 1e-3]
    ends = [values[2:] for values in forwards.values()]
    assert all(ends.count(one) == 1 for one in ends), "no two attacks are alike"


def test_an_arm_on_facts_stops_when_it_took_and_the_others_do_not(study: tiny_study.Study) -> None:
    asked = {"attack": [question(i, "hazard", "attack") for i in range(8)]}
    given = Material({"facts": LINES, "retain": LINES}, LINES, LINES, asked)

    def attack(until: float) -> list[tuple[list[int], bool | None]]:
        options = Attack(arm=("facts", "retain"), lr=(1e-3,), steps=6, eval_steps="0,2,4",
                         device="cpu", until=until)  # fmt: skip
        return [([*a.measured], a.took) for a in relearning.attack(study.model_a, given, options)]

    whole = [0, 2, 4, 6]
    assert attack(1e-9)[0][1] is not None
    reached = relearning.measure(study.model_a, given, Attack(device="cpu")).accuracy["attack"]
    low = float(reached.mean) / 2 or 1e-9
    assert attack(1.0) == [(whole, False), (whole, None)]
    assert attack(low) == [([0, 2], True), (whole, None)], "not before a step was trained"


def test_nll_equals_a_loop_over_tokens(study: tiny_study.Study) -> None:
    lines = tiny_study.texts("retain", 9)
    given = Material({}, lines, lines, {})
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


@pytest.mark.parametrize("attacked", [True, False])
def test_the_base_is_loaded_once_and_known_before_the_filtered_model(
    attacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attacked too, it is measured by its own attack, and written in its place."""
    module, loaded, written = load_script(ROOT / "relearn.py"), [], []

    def measured(model: str, *_: object) -> str:
        loaded.append(model)
        return f"start of {model}"

    def attack(model: str, *_: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(measured={0: measured(model)})]

    def write(run: results.PlannedRun, attacks: list, _: object, base: object, __: object) -> None:
        written.append((run.label, attacks[0].measured[0], base))

    monkeypatch.setattr(relearning, "attack", attack)
    monkeypatch.setattr(relearning, "measure", measured)
    monkeypatch.setattr(relearning, "fitting_threads", lambda *_: nullcontext())
    monkeypatch.setattr(module, "open_run", nullcontext)
    monkeypatch.setattr(module, "write_attacks", write)
    models = ("filtered", *(["base"] if attacked else []), "other")
    given = Material({}, [], [], {"heldout": [question(0, "hazard", "heldout")]})
    runs = [results.PlannedRun(Path(name), name, {}, name) for name in models]
    module.attack_each(runs, given, module.Options(model=models, base="base"))
    assert sorted(loaded) == sorted({"base", *models})
    known = "start of base"
    assert written == [(name, f"start of {name}", known) for name in models]


@pytest.mark.study
def test_results_are_written_skipped_when_complete_and_reproducible(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = words(study, "--questions", str(study.root / "questions.jsonl"))
    given += ["--filtered", study.model_a, "--general-floor", "0.01", "--until", "0.01"]
    assert run(given, monkeypatch) == 0
    outputs = study.root / "outputs"
    table = pd.read_csv(outputs / "base__rmu/relearning/relearning.csv")
    assert tuple(table.columns) == relearning_tables.COLUMNS
    by_arm = table.groupby("arm")["step"].agg(list)
    assert by_arm["facts"] == 2 * [0, 2] and by_arm["retain"] == 2 * [0, 2, 4]
    facts = table[table["arm"] == "facts"]
    assert (facts["took"] == 1).all() and table[table["arm"] == "retain"]["took"].isna().all()
    same_start = table[table["step"] == 0][[c for c in table if c.endswith(("accuracy", "nll"))]]
    assert same_start.drop_duplicates().shape[0] == 1
    assert table["heldout_accuracy"].notna().all() and table["adjacent_accuracy"].isna().all()
    assert (table["forget_nll_low"] <= table["forget_nll"]).all()
    assert (outputs / "relearning.png").read_bytes() == (
        outputs / "relearning/relearning.png"
    ).read_bytes()
    single = pd.read_csv(outputs / "base__rmu/relearning/per_question.csv")
    for group in ("heldout", "tune", "attack", "general"):
        own = single[(single["group"] == group) & (single["arm"] != "before")]
        shares = own.groupby(["arm", "lr", "step"])["correct"].mean()
        means = table.set_index(["arm", "lr", "step"])[f"{group}_accuracy"]
        pd.testing.assert_series_equal(shares, means, check_names=False)
    known = single[single["arm"] == "before"]  # the base, as the recovered share sees it
    assert set(known["model"]) == {"base"} and known["id"].is_unique and known["lr"].isna().all()
    first = hashes(outputs)
    capfd.readouterr()
    assert run(given, monkeypatch) == 0
    assert capfd.readouterr().out.count("complete, skipped") == 3
    assert run([*given, "--force"], monkeypatch) == 0
    assert hashes(outputs) == first

    # A single model in a later call does not shrink the picture of all.
    more = given[given.index("--questions") :]
    assert run(words(study, *more, models=(study.model_b,)), monkeypatch) == 0
    assert results.read_record(outputs / "relearning")["arguments"]["attacked"] == [
        "base", "base__rmu",
    ]  # fmt: skip


@pytest.mark.study
def test_areas_over_the_filtered_model_are_those_of_its_own_table(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filtered model is named last, attacked first, and found again by a later call."""
    outputs = study.root / "over"
    given = ["--questions", str(study.root / "questions.jsonl"), "--filtered", study.model_a]
    given += ["--outroot", str(outputs), "--general-floor", "0.01", "--arm", "retain"]
    alone = words(study, *given, models=(study.model_b,))
    assert run(alone, monkeypatch) == 2, "not attacked yet"
    assert not outputs.exists()
    both = words(study, *given, models=(study.model_b, study.model_a))
    assert run(both, monkeypatch) == 0
    tables = [
        pd.read_csv(outputs / f"{m}/relearning/relearning.csv") for m in ("base", "base__rmu")
    ]
    filtered, other = tables
    assert filtered["area_over_filtered"].isna().all()
    reference = filtered.loc[filtered["picked"] == 1, "area"].unique()
    assert len(reference) == 1
    assert other["area_over_filtered"].to_numpy() == pytest.approx(other["area"] - reference[0])
    first = hashes(outputs)
    assert run([*alone, "--force"], monkeypatch) == 0
    assert hashes(outputs) == first


def test_training_is_shown_while_it_lasts_and_kept(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run per model; each arm and rate is drawn over its own steps."""
    opened: dict[str, MagicMock] = {}

    def open_one(folder: Path, label: str, _: object) -> MagicMock:
        assert label not in opened and (label == "all models" or not folder.exists())
        return opened.setdefault(label, MagicMock())

    monkeypatch.setattr(tracking, "wanted", lambda: True)
    monkeypatch.setattr(tracking, "_open", open_one)
    monkeypatch.setattr(tracking, "_content", lambda folder, _: {"folder": folder.name})
    asked = ["--questions", str(study.root / "questions.jsonl"), "--arm", "facts", "retain"]
    outroot = study.root / "shown"
    assert run(words(study, *asked, "--outroot", str(outroot)), monkeypatch) == 0
    assert set(opened) == {"base", "base__rmu", "all models"}
    for label in ("base", "base__rmu"):
        calls = [call.args[0] for call in opened[label].log.call_args_list]
        assert calls.pop() == {"folder": "relearning"}, "in the same run"
        opened[label].finish.assert_called_once_with()
        folder = outroot / label / "relearning"
        trained = pd.read_csv(folder / "training.csv")
        measured = pd.read_csv(folder / "relearning.csv").set_index(["arm", "lr", "step"])
        for (arm, lr), own in trained.groupby(["arm", "lr"]):
            part = {0.001: f"{arm}/lr 1e-3", 0.01: f"{arm}/lr 1e-2"}[lr]
            opened[label].define_metric.assert_any_call(f"{part}/*", step_metric=f"{part}/step")
            rows = [{key.removeprefix(f"{part}/"): value for key, value in row.items()}
                    for row in calls if f"{part}/step" in row]  # fmt: skip
            steps = [row for row in rows if "loss" in row]
            assert [row["step"] for row in steps] == [*range(1, len(own) + 1)]
            for column in ("loss", "grad_norm", "lr"):
                assert [row[column] for row in steps] == pytest.approx(own[column].tolist())
            looks = [row for row in rows if "heldout_accuracy" in row]
            assert looks and all("forget_nll" in row for row in looks)
            for row in looks:
                at = measured.loc[(arm, lr, row["step"])]
                assert row == pytest.approx({name: at.get(name, row["step"]) for name in row})


def test_without_questions_only_nlls_are_measured(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    outroot = study.root / "bare"
    given = words(study, "--outroot", str(outroot), models=(study.model_b,))
    assert run(given, monkeypatch) == 0
    table = pd.read_csv(outroot / "base__rmu/relearning/relearning.csv")
    accuracies = [c for c in table.columns if "accuracy" in c or "share" in c or "area" in c]
    assert table[[*accuracies, "took"]].isna().all(axis=None)
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
        ({"--arm": "benign"}, "--benign-text"),
        ({"--arm": "permuted"}, "--permuted-text"),
        ({"--arm": "permuted", "--permuted-text": "nowhere.txt"}, "--permuted-text"),
        ({"--arm": "fact"}, "facts, benign, retain"),
        ({"--lora-rank": "4"}, "--arm"),
        ({"--filtered": "./never-attacked"}, "add it to --model"),
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


def test_benign_texts_that_state_what_is_forgotten_are_refused(study: tiny_study.Study) -> None:
    texts = {name: str(study.root / f"{name}.txt") for name in ("forget", "retain")}
    options = Attack(forget_text=texts["forget"], retain_text=texts["retain"], arm=("benign",),
                     benign_text=texts["forget"])  # fmt: skip
    with pytest.raises(BadInput, match="share"):
        material.read_material(options)
