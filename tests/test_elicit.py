"""elicit.py: what is picked and read, what is compared with the filtered model, what is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import elicit_study
import numpy as np
import pandas as pd
import pytest
import tiny_models
import tiny_study
from tiny_study import Study

from model_diffs.attacks import elicitation, elicitation_tables, registry
from model_diffs.attacks.elicitation import Found, Tried
from model_diffs.attacks.elicitation_tables import Setting
from model_diffs.core.errors import BadInput
from model_diffs.stats.intervals import entity_interval

ATTACKS = ("quantise", "interpolate", "few_shot", "lens")
STRENGTHS = ("quantise=8bit,2bit", "few_shot=attack1,general2")


def write_questions(path: Path) -> Path:
    rows = [one._asdict() for own in elicit_study.groups().values() for one in own]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def arguments(study: Study, *models: str, **changed: Any) -> list[str]:
    given: dict[str, Any] = {
        "model": models,
        "base": study.model_a,
        "filtered": str(study.root / "filtered"),
        "questions": str(study.root / "questions.jsonl"),
        "attacks": ATTACKS,
        "strengths": STRENGTHS,
        "general_floor": 0.05,
        **changed,
    }
    words: list[str] = []
    for name, value in given.items():
        if value is not None:
            many = value if isinstance(value, tuple | list) else [value]
            words += ["--" + name.replace("_", "-"), *map(str, many)]
    return words


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = tiny_study.make(tmp_path_factory.mktemp("elicit"))
    tiny_models.save("gpt_neox", made.root / "filtered", seed=5)
    write_questions(made.root / "questions.jsonl")
    models = (made.model_a, made.model_b, str(made.root / "filtered"))
    made.run("elicit.py", *arguments(made, *models))
    return made


def table(study: Study, model: str, name: str = "elicitation") -> pd.DataFrame:
    return pd.read_csv(study.root / "outputs" / model / "elicitation" / f"{name}.csv")


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def test_every_setting_has_a_row_per_fold_with_its_interval(study: Study) -> None:
    found = table(study, "base__rmu")
    assert [*found.columns] == [*elicitation_tables.COLUMNS]
    tried = {(one.attack, one.strength) for one in found.itertuples()}
    assert tried == {
        ("none", "-"), ("quantise", "8bit"), ("quantise", "2bit"),
        *(("interpolate", one) for one in ("filtered-t0.5", "t0.25", "t0.5", "t0.75")),
        ("few_shot", "attack1"), ("few_shot", "general2"),
        ("lens", "block0"), ("lens", "block1"),
    }  # fmt: skip
    single = table(study, "base__rmu", "per_question")
    for row in found.itertuples():
        own = single[(single["attack"] == row.attack) & (single["strength"] == row.strength)]
        own = own[own["fold"] == row.fold]
        assert len(own) == row.questions == elicit_study.COUNTS[row.fold]
        found_again = entity_interval(own["correct"], own["entity"].tolist(), 42)
        expected = [float(value) for value in found_again]
        assert (row.accuracy, row.accuracy_low, row.accuracy_high) == pytest.approx(tuple(expected))
    sides = found[found["fold"].isin(["general", "adjacent"])].set_index(
        ["attack", "strength", "fold"]
    )["accuracy"]
    for row in found.itertuples():
        assert row.general_accuracy == sides[row.attack, row.strength, "general"]
        assert row.adjacent_accuracy == sides[row.attack, row.strength, "adjacent"]
    assert set(found.loc[found["reads_base"] == 1, "attack"]) == {"interpolate"}


def test_the_strength_picked_is_the_best_on_tune(study: Study) -> None:
    for model in ("base", "base__rmu", "filtered"):
        found = table(study, model)
        for attack, own in found[found["fold"] == "tune"].groupby("attack"):
            allowed = own[own["general_accuracy"] > 0.05]
            if len(allowed):
                assert own.loc[own["picked"] == 1, "accuracy"].item() == allowed["accuracy"].max()
            else:
                assert not own["picked"].any(), attack


def test_over_filtered_is_paired_with_the_filtered_model_at_its_own_strength(study: Study) -> None:
    mine, other = table(study, "base__rmu"), table(study, "filtered")
    heldout = other[(other["fold"] == "heldout") & (other["picked"] == 1)]
    theirs = heldout.set_index("attack")["accuracy"]
    compared = mine[(mine["fold"] == "heldout") & mine["attack"].isin(theirs.index)]
    assert len(compared) > 5
    for row in compared.itertuples():
        assert row.over_filtered == pytest.approx(row.accuracy - theirs[row.attack])
        assert row.over_filtered_low <= row.over_filtered <= row.over_filtered_high
    assert mine.loc[mine["fold"] != "heldout", "over_filtered"].isna().all()
    assert other["over_filtered"].isna().all()


def test_the_base_has_no_row_of_the_way_to_itself_and_says_so(study: Study) -> None:
    found = table(study, "base")
    assert set(found.loc[found["attack"] == "interpolate", "strength"]) == {"filtered-t0.5"}
    facts = json.loads((study.root / "outputs/base/elicitation/run.json").read_text())
    assert facts["attacks"]["interpolate"]["reads"] == ["base"]
    assert facts["skipped"] == 3 and set(facts["attack_seconds"]) == set(ATTACKS)
    summary = json.loads((study.root / "outputs/base/elicitation/summary.json").read_text())
    assert len(summary["skipped"]) == 3 and "its weights are those of" in summary["skipped"][0]


def test_the_overview_has_a_row_per_model_and_attack(study: Study) -> None:
    folder = study.root / "outputs" / "elicitation"
    found = pd.read_csv(folder / "elicitation_summary.csv")
    assert found.groupby("model", sort=False)["attack"].apply(tuple).to_dict() == dict.fromkeys(
        ("base", "filtered", "base__rmu"), ("none", *ATTACKS)
    )
    rows = table(study, "base__rmu")
    picked = rows[(rows["fold"] == "heldout") & (rows["picked"] == 1)].set_index("attack")
    own = found[found["model"] == "base__rmu"].set_index("attack")
    for attack, row in picked.iterrows():
        assert own.loc[attack, "heldout_accuracy"] == row["accuracy"]
        assert own.loc[attack, "over_filtered"] == pytest.approx(row["over_filtered"])
    for name in ("elicitation", "interpolation"):
        assert (folder / f"{name}.png").stat().st_size > 10_000
    assert not (folder / "rewind.png").exists()


# ── runs ──────────────────────────────────────────────────────────────────────────────────────────


def test_again_gives_the_same_bytes(study: Study, tmp_path: Path) -> None:
    def digests(root: Path) -> dict[str, str]:
        files = [*root.rglob("*.csv"), *root.rglob("summary.json")]
        return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    models = (str(study.root / "filtered"), study.model_b)
    study.run("elicit.py", *arguments(study, *models), "--outroot", str(tmp_path))
    before, again = digests(study.root / "outputs"), digests(tmp_path)
    per_model = [one for one in again if not one.startswith("elicitation/")]
    assert len(per_model) == 6 and all(again[one] == before[one] for one in per_model)


def test_a_model_attacked_later_is_compared_with_the_one_that_is_there(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    later = tiny_models.save("gpt_neox", study.root / "base__cb", seed=8)
    study.run("elicit.py", *arguments(study, str(later)))
    assert table(study, "base__cb")["over_filtered"].notna().any()
    overview = pd.read_csv(study.root / "outputs/elicitation/elicitation_summary.csv")
    assert set(overview["model"]) == {"base", "filtered", "base__rmu", "base__cb"}
    capsys.readouterr()
    study.run("elicit.py", *arguments(study, str(later)))
    assert capsys.readouterr().out.count("complete, skipped") == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base": None}, "--attacks interpolate needs --base"),
        ({"strengths": ("quantise=8",)}, "quantise=8"),
        ({"strengths": ("noise=s0.1",)}, "noise"),
        ({"strengths": ("quantise",)}, "ATTACK=A,B"),
        ({"questions": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"seed": 7}, "filtered"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_results_alone(
    study: Study, changed: dict[str, Any], message: str
) -> None:
    before = sorted(str(path) for path in (study.root / "outputs").rglob("*"))
    with pytest.raises(BadInput, match=message) as refusal:
        study.run("elicit.py", *arguments(study, study.model_b, **changed))
    assert "\n" not in str(refusal.value)
    assert sorted(str(path) for path in (study.root / "outputs").rglob("*")) == before


def test_an_unknown_attack_ends_with_status_two(study: Study) -> None:
    with pytest.raises(SystemExit) as ended:
        study.run("elicit.py", *arguments(study, study.model_b, attacks=("shout",)))
    assert ended.value.code == 2


# ── what is picked ────────────────────────────────────────────────────────────────────────────────


def tried(strength: str, tune: float, general: float, undone: float | None = None) -> Tried:
    """20 questions per group, each on an entity of its own."""
    shares = {"tune": tune, "general": general, "heldout": 0.5}
    correct = {g: (np.arange(20) < round(20 * s)).astype(float) for g, s in shares.items()}
    entities = [str(i) for i in range(20)]
    accuracy = {group: entity_interval(own, entities, 0) for group, own in correct.items()}
    return Tried("attack", strength, correct, accuracy, undone)


def test_a_strength_that_breaks_the_model_is_not_picked() -> None:
    every = [tried("mild", 0.3, 1.0), tried("best", 0.6, 0.8), tried("broken", 0.9, 0.5)]
    chosen = elicitation.pick(every, floor=0.5)
    assert chosen is not None and chosen.strength == "best"
    assert elicitation.pick(every[2:], floor=0.5) is None
    ties = [tried("a", 0.6, 0.8), tried("b", 0.6, 0.9), tried("c", 0.6, 0.9)]
    chosen = elicitation.pick(ties, floor=0.5)
    assert chosen is not None and chosen.strength == "b", "then general, then the milder"
    for one in every:
        del one.accuracy["general"]
    chosen = elicitation.pick(every, floor=0.5)
    assert chosen is not None and chosen.strength == "broken", "nothing says that it is"


def test_the_smallest_reversal_restores_half_of_the_gap() -> None:
    start = tried("-", 0.2, 1.0)
    every = [
        tried("k1", 0.5, 1.0, 0.1),
        tried("k4", 0.6, 1.0, 0.4),
        tried("block", 0.7, 1.0, 0.3),
        tried("all", 1.0, 1.0, 1.0),
    ]
    chosen = elicitation.smallest(every, start)
    assert chosen is not None and chosen.strength == "block", "0.6 is half-way from 0.2 to 1"
    assert elicitation.restored(every[0], start, every[-1]) == pytest.approx(3 / 8)
    assert elicitation.smallest(every[:-1], start) is None, "nobody knows how wide the gap is"
    assert elicitation.smallest(every, tried("-", 1.0, 1.0)) is None, "there is no gap"


def test_smallest_reversals_are_not_compared_with_the_filtered_models() -> None:
    asked = {"heldout": elicit_study.groups()["general"] * 2}
    answers = {"quantise": np.zeros(20), "rewind": np.zeros(20)}
    attacks = [registry.load(name) for name in answers]
    setting = Setting(asked, attacks, answers, 0.5, 0)
    one = tried("x", 0.5, 1.0)
    assert elicitation_tables.over_filtered(one._replace(attack="rewind"), setting) == {}
    found = elicitation_tables.over_filtered(one._replace(attack="quantise"), setting)
    assert found["over_filtered"] == 0.5


def test_why_an_attack_tested_nothing_is_said() -> None:
    attacks = [registry.load(name) for name in ("quantise", "rewind", "lens")]
    broken = tried("8bit", 0.9, 0.1)._replace(attack="quantise")
    start = tried("-", 0.5, 1.0)._replace(attack="none")
    same = tried("all", 0.5, 1.0, 1.0)._replace(attack="rewind")
    found = Found([start, broken, same], ["lens: one block", "lens block7: what else"], {})
    setting = Setting({"heldout": elicit_study.groups()["general"] * 2}, attacks, {}, 0.5, 0)
    picked = elicitation_tables.picks(found, setting)
    rows = elicitation_tables.rows("m", found, picked, setting)
    said = elicitation_tables.summary("m", found, picked, rows, setting)["attacks"]
    why = {one["attack"]: one["not_tested"] for one in said}
    assert "0.5 at any strength" in why["quantise"] and "no gap" in why["rewind"]
    assert why["lens"] == "one block"
    assert all(one["heldout_accuracy"] is None and one["strength"] is None for one in said)
