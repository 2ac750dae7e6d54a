"""Measures of the eliciting attacks by hand: which attack counts, its resamples, its absences."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model_diffs.attacks import elicited
from model_diffs.core.measure import Measure
from model_diffs.core.tables import Absent, Place, Tables
from model_diffs.stats.intervals import document_weights

SEED, ENTITIES = 5, 12
OF = np.repeat(np.arange(ENTITIES), np.arange(ENTITIES) % 3 + 1)  # one to three questions on each
NAMES = [f"e{i:02d}" for i in OF]
ORDER = np.random.default_rng(0).permutation(len(OF))
"""Of difficulty."""
MEASURE = Measure("key", axis="function", table="elicitation", column="accuracy")
# attack, strength, right of 24 held-out questions, accuracy on tune, reads the base, picked
ROWS: list[tuple[str, str, int, float, int, int]] = [
    ("none", "-", 23, 0.95, 0, 1),
    ("quantise", "4bit", 22, 0.4, 0, 1),
    ("quantise", "3bit", 22, 0.9, 0, 0),
    ("direction", "all", 20, 0.7, 0, 1),
    ("direction", "block0", 9, 0.5, 0, 0),
    ("interpolate", "t0.75", 24, 1.0, 1, 1),
    ("lens", "block0", 24, 0.9, 0, 0),
    ("prune", "p10", 24, 0.9, 0, 0),
]


def right(known: int) -> np.ndarray:
    """The easiest `known` of the 24 questions."""
    return np.less(ORDER, known).astype(int)


def planted(root: Path, model: str = "npo", rows: Any = None, **arguments: Any) -> Place:
    """The results of one model."""
    table, single = [], []
    for attack, strength, known, tune, base, picked in rows or ROWS:
        named = {"attack": attack, "strength": strength}
        for fold, accuracy in (("heldout", known / 24), ("tune", tune)):
            cells = {"accuracy": accuracy, "reads_base": base, "picked": picked}
            table.append({**named, "fold": fold, **cells})
        single += [
            {**named, "fold": "heldout", "id": f"q{i}", "entity": e, "correct": r}
            for i, (e, r) in enumerate(zip(NAMES, right(known), strict=True))
        ]
    folder = root / model / "elicitation"
    folder.mkdir(parents=True)
    pd.DataFrame(table)[::-1].to_csv(folder / "elicitation.csv", index=False)
    pd.DataFrame(single)[::-1].to_csv(folder / "per_question.csv", index=False)
    given = {"model": model, "filtered": "./models/filtered", "questions": "q.jsonl", **arguments}
    read = {"path": "q.jsonl", "size": 1, "mtime_ns": 1, "ctime_ns": 1, "sha256": "q"}
    record = {"arguments": given, "inputs": [read], "outputs": []}
    (folder / "run.json").write_text(json.dumps(record))
    return Place(Tables(root), f"{model}/elicitation", "base", model, SEED)


def filtered(root: Path, known: int = 7) -> None:
    """The filtered model, whose best direction is that of one block."""
    planted(root, "filtered", [("direction", "block1", known, 0.2, 0, 1), *ROWS[:2]])


def drawn(known: int) -> np.ndarray:
    """Accuracy of so many right on each resample of entities."""
    weight = document_weights(ENTITIES, SEED)
    of = [np.equal(OF, i) for i in range(ENTITIES)]
    sums, counts = ([f(one) for one in of] for f in (lambda x: right(known)[x].sum(), np.sum))
    return (weight @ sums) / (weight @ counts)


def test_the_attack_that_is_best_on_tune_counts_over_the_filtered_model(tmp_path: Path) -> None:
    place = planted(tmp_path)
    filtered(tmp_path)
    found = elicited.elicited(place, MEASURE)
    assert found.value == pytest.approx(13 / 24), "direction: quantise is worse on tune"
    assert found.source.rows == (
        "attack=direction, strength=all, minus that of filtered/elicitation/elicitation.csv "
        "(attack=direction, strength=block1)"
    )
    assert found.sample is not None and found.sample.units == "entities"
    np.testing.assert_allclose(found.sample.resampled, drawn(20) - drawn(7))
    assert found.ends == pytest.approx(tuple(np.percentile(drawn(20) - drawn(7), [2.5, 97.5])))


def test_attacks_are_counted_that_tested_the_model_without_the_base(tmp_path: Path) -> None:
    found = elicited.attacks_tried(planted(tmp_path), MEASURE)
    assert found.value == 2
    assert {"quantise", "direction", "lens", "prune"} == set(
        found.source.rows.removeprefix("of ").split(", ")
    )


def test_numbers_pair_by_questions_and_options(tmp_path: Path) -> None:
    def sample(name: str, draws: int = SEED, other: str = "", **arguments: Any) -> str:
        place = planted(tmp_path / name, **arguments)._replace(seed=draws)
        filtered(tmp_path / name)
        if other:
            for one in (place, place._replace(folder="filtered/elicitation")):
                changed(one, "per_question", lambda table: table.replace({other: "z"}))
        found = elicited.elicited(place._replace(tables=Tables(tmp_path / name)), MEASURE)
        assert found.sample is not None
        return found.sample.identity

    first = sample("a")
    assert first == sample("b", model="other", format="png") != sample("c", seed=1)
    assert first not in (sample("d", draws=6), sample("e", other="e00"), sample("f", other="q0"))


def changed(place: Place, name: str, change: Any) -> Place:
    """The place with a table of it changed."""
    path = place.tables.outroot / place.path(name)
    change(pd.read_csv(path)).to_csv(path, index=False)
    return place._replace(tables=Tables(place.tables.outroot))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (ROWS[:1] + ROWS[4:], "not tested: no attack"),
        (
            [("lens", "block0", 20, 0.9, 0, 1)],
            "the filtered model: not tested: no strength of lens",
        ),
        ([(*ROWS[3][:5], 1), ("direction", "x", 3, 0.7, 0, 1)], "two strengths are picked"),
    ],
)
def test_without_a_tested_attack_there_is_no_number(rows: Any, reason: str, tmp_path: Path) -> None:
    place = planted(tmp_path, rows=rows)
    filtered(tmp_path)
    with pytest.raises(Absent, match=reason):
        elicited.elicited(place, MEASURE)


def test_without_a_filtered_model_there_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="without --filtered"):
        elicited.elicited(planted(tmp_path, filtered=None), MEASURE)


def test_answers_to_other_questions_give_no_interval(tmp_path: Path) -> None:
    place = planted(tmp_path)
    filtered(tmp_path)
    other = place._replace(folder="filtered/elicitation")
    changed(other, "per_question", lambda table: table.replace({"e00": "e"}))
    found = elicited.elicited(place._replace(tables=Tables(tmp_path)), MEASURE)
    assert found.sample is None and "not to the same questions" in found.unpaired
    changed(other, "per_question", lambda table: table[table["id"] != "q3"])
    found = elicited.elicited(place._replace(tables=Tables(tmp_path)), MEASURE)
    assert found.sample is None


def test_damaged_answers_and_tables_are_said(tmp_path: Path) -> None:
    place = planted(tmp_path)
    filtered(tmp_path)
    whole = place.tables.outroot / place.path("per_question")
    rows = pd.read_csv(whole)
    for damaged in (pd.concat([rows, rows]), rows[rows["attack"] != "direction"]):
        damaged.to_csv(whole, index=False)
        found = elicited.elicited(place._replace(tables=Tables(tmp_path)), MEASURE)
        assert found.sample is None and "has not every question of" in found.unpaired
    twice = changed(place, "elicitation", lambda table: pd.concat([table, table]))
    with pytest.raises(Absent, match="two rows of one attack, strength, fold"):
        elicited.elicited(twice, MEASURE)
