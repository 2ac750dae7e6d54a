"""Measures of the relearning attack on planted tables: nothing is said of what was not tested."""

from pathlib import Path

import pandas as pd
import pytest
from planted_tables import Study, claims

FILTERED, NPO = "base__to__filtered", "base__to__npo"
KEYS = ("recovered_facts", "recovered_share", "steps_to_half")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = Study(tmp_path / "outputs")
    for model in ("base", "filtered", "npo"):
        made.attack(model)
    return made


def change(study: Study, model: str, name: str = "relearning", **cells: object) -> None:
    """Write these cells into the rows of arm facts."""
    path = study.root / model / f"relearning/{name}.csv"
    table = pd.read_csv(path)
    for column, cell in cells.items():
        table.loc[table["arm"] == "facts", column] = cell
    table.to_csv(path, index=False)


def test_a_model_that_was_not_tested_has_no_number(study: Study) -> None:
    change(study, "npo", took=0, picked=0, attack_accuracy=0.63)
    found = study.read(14)
    for key in KEYS:
        assert (NPO, key) not in found.values
        assert "not tested: attacked facts reached 0.63, not 0.95" in found.reasons[NPO, key]
    assert found.values[NPO, "attack_took"].value == 0
    assert (NPO, "recovered_retain") in found.values, "another arm"


def test_nothing_is_over_a_filtered_model_that_was_not_tested(study: Study) -> None:
    change(study, "filtered", took=0, picked=0, attack_accuracy=0.63)
    found = study.read(14)
    assert (NPO, "recovered_facts") not in found.values
    assert "the filtered model: not tested" in found.reasons[NPO, "recovered_facts"]
    assert found.values[NPO, "recovered_share"].value > 0.5, "the gap is the base's"


def test_a_model_that_the_attack_broke_was_not_tested(study: Study) -> None:
    change(study, "npo", picked=0)
    assert "general accuracy does not stay above 0.7" in study.read(14).reasons[NPO, KEYS[0]]


def test_the_best_arm_is_chosen_on_tune(study: Study) -> None:
    """Whatever it gives on held-out facts."""
    change(study, "npo", tune_accuracy=0.3)
    path = study.root / "npo/relearning/relearning.csv"
    table = pd.read_csv(path)
    table.loc[table["arm"] == "retain", "tune_accuracy"] = 0.4
    table.to_csv(path, index=False)
    found = study.read(14)
    best = found.values[NPO, "recovered_best"]
    assert best.value == found.values[NPO, "recovered_retain"].value
    assert best.value < found.values[NPO, "recovered_facts"].value
    assert "arm=retain" in best.source.rows
    assert found.values[NPO, "arms_tried"].value == 2
    change(study, "npo", tune_accuracy=0.5)
    assert study.read(14).values[NPO, "recovered_best"].value == (
        found.values[NPO, "recovered_facts"].value
    )


def test_arms_that_did_not_take_are_not_counted(study: Study) -> None:
    change(study, "npo", took=0, picked=0, attack_accuracy=0.63)
    found = study.read(14)
    assert found.values[NPO, "arms_tried"].value == 1
    assert "arm=retain" in found.values[NPO, "recovered_best"].source.rows


def test_answers_to_other_questions_give_no_interval(study: Study) -> None:
    change(study, "filtered", "per_question", entity="another")
    found = study.read(14)
    over = found.values[NPO, "recovered_facts"]
    assert over.low is None and "not to the same questions" in over.unpaired
    assert not claims(found, "recovered_facts", "filtered")


def test_intervals_resample_entities(study: Study) -> None:
    """Facts of few entities are weaker evidence than the same answers on many."""
    widths = []
    ends = []
    for model in ("npo", "filtered"):
        table = pd.read_csv(study.root / model / "relearning/per_question.csv")
        table = table[(table["arm"] == "facts") & (table["step"] == 10) & (table["lr"] == 0.1)]
        ends.append(table.set_index("id")["correct"])
    # Those that come back stand together: all or none of an entity.
    rank = (ends[0] - ends[1]).rank(method="first")
    for entities in (60, 15):
        for model in ("base", "filtered", "npo"):
            path = study.root / model / "relearning/per_question.csv"
            table = pd.read_csv(path)
            place = table["id"].map(rank) * entities // (len(rank) + 1)
            table["entity"] = place.astype(int).map("e{:02d}".format)
            table.to_csv(path, index=False)
        found = study.read(14).values[NPO, "recovered_facts"]
        assert found.low is not None and found.high is not None
        widths.append(found.high - found.low)
    assert widths[1] > 1.3 * widths[0]
