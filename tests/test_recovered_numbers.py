"""The relearning attack's measures by hand: numbers, resamples, reasons, on tables written here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model_diffs.attacks import recovered
from model_diffs.core.measure import Measure
from model_diffs.core.tables import Absent, Place, Tables
from model_diffs.stats.intervals import document_weights

SEED, ENTITIES = 5, 12
OF = np.repeat(np.arange(ENTITIES), np.arange(ENTITIES) % 3 + 1)  # one to three questions on each
NAMES = [f"e{i:02d}" for i in OF]
ORDER = np.random.default_rng(0).permutation(len(OF))
"""Of difficulty."""
SHARES = {0: 0.0, 5: 0.5, 10: 0.75, 15: 0.0}
TO_THE_END = {"steps": 10, "seed": SEED, "until": 0.95, "general_floor": 0.7}


def right(known: int) -> np.ndarray:
    """The easiest `known` of the 24 questions."""
    return np.less(ORDER, known).astype(int)


def answers(arm: str, lr: float | None, step: int, known: int) -> list[dict[str, Any]]:
    named = {"arm": arm, "lr": lr, "step": step, "group": "heldout"}
    return [
        {**named, "id": f"q{i}", "entity": e, "correct": r}
        for i, (e, r) in enumerate(zip(NAMES, right(known), strict=True))
    ]


def attacked(
    root: Path, model: str = "npo", last: int = 20, changes: Any = None, **arguments: Any
) -> Place:
    """Two arms at two rates, the second and step 10 of it picked: of 24 questions 8 are known,
    then `last`, and after a last step 8 again.

    The base knew all. `changes` are made to the two tables, rows of which are out of order.
    """
    rows, single = [], answers("before", None, 0, 24)
    for arm in ("facts", "retain"):
        for lr in (0.1, 0.2):
            for step, share in SHARES.items():
                known = round(8 + (last - 8) * share / 0.75) if lr == 0.2 else 8
                single += answers(arm, lr, step, known)
                took = (lr == 0.2 or None) if arm == "facts" else None
                rows.append(
                    {"arm": arm, "lr": lr, "step": step,
                     "picked": int(lr == 0.2 and step == 10),
                     "took": None if arm == "retain" else int(bool(took)),
                     "attack_accuracy": 0.9, "heldout_accuracy": known / 24,
                     "recovered_share": (known - 8) / 16}
                )  # fmt: skip
    tables = pd.DataFrame(rows), pd.DataFrame(single)
    folder = root / model / "relearning"
    folder.mkdir(parents=True)
    for name, table in zip(("relearning", "per_question"), tables, strict=True):
        changed = table if changes is None else changes(name, table)
        changed[::-1].to_csv(folder / f"{name}.csv", index=False)
    given = {**TO_THE_END, "model": model, "base": "b", "filtered": "./models/filtered"}
    given |= {"questions": "q.jsonl", **arguments}
    read = {"path": "q.jsonl", "size": 1, "mtime_ns": 1, "ctime_ns": 1, "sha256": "q"}
    record = {"arguments": given, "inputs": [read], "outputs": []}
    (folder / "run.json").write_text(json.dumps(record))
    return Place(Tables(root), f"{model}/relearning", "base", model, SEED)


MEASURE = Measure("key", axis="function", table="relearning", column="recovered_share")
DRAWN = document_weights(ENTITIES, SEED)


def drawn(known: int) -> np.ndarray:
    """Accuracy of so many right on each resample of entities."""
    of = [np.equal(OF, i) for i in range(ENTITIES)]
    sums, counts = ([f(one) for one in of] for f in (lambda x: right(known)[x].sum(), np.sum))
    return (DRAWN @ sums) / (DRAWN @ counts)


def test_the_share_of_the_gap_resamples_entities_on_all_three_sides(tmp_path: Path) -> None:
    found = recovered.recovered_share(attacked(tmp_path), MEASURE)
    assert found.value == pytest.approx(12 / 16) and found.source.rows == "lr=0.2, step=10"
    expected = (drawn(20) - drawn(8)) / (1 - drawn(8))
    assert found.sample is not None and found.sample.units == "entities"
    np.testing.assert_allclose(found.sample.resampled, expected)
    assert found.ends == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))


@pytest.mark.parametrize("arm", ["facts", "retain"])
def test_what_is_over_the_filtered_model_is_paired_with_it(arm: str, tmp_path: Path) -> None:
    place = attacked(tmp_path)
    attacked(tmp_path, "filtered", last=11)
    found = getattr(recovered, f"recovered_{arm}")(place, MEASURE)
    assert found.value == pytest.approx(9 / 24)
    assert found.source.rows == (
        f"mean over questions, arm={arm}, lr=0.2, step=10, minus that of "
        "filtered/relearning/relearning.csv (lr=0.2, step=10)"
    )
    assert found.sample is not None
    np.testing.assert_allclose(found.sample.resampled, drawn(20) - drawn(11))


def test_shares_pair_by_questions_options_and_seed_alone(tmp_path: Path) -> None:
    def sample(name: str, seed: int = SEED, **changed: Any) -> str:
        place = attacked(tmp_path / name, **changed)._replace(seed=seed)
        found = recovered.recovered_share(place, MEASURE)
        assert found.sample is not None
        return found.sample.identity

    first = sample("first")
    assert first == sample("again", model="other", last=22, format="png")
    assert first != sample("options", steps=11)
    assert first != sample("seed", seed=SEED + 1)
    other = lambda name, table: table.replace({"q0": "q"}) if "id" in table else table  # noqa: E731
    assert first != sample("ids", changes=other)
    other = lambda name, table: table.replace({"e00": "e"}) if "id" in table else table  # noqa: E731
    assert first != sample("entities", changes=other)


def test_a_record_that_names_no_base_was_made_with_one(tmp_path: Path) -> None:
    place = attacked(tmp_path)
    file = tmp_path / "npo/relearning/run.json"
    record = json.loads(file.read_text())
    del record["arguments"]["base"]
    file.write_text(json.dumps(record))
    assert recovered.recovered_share(place, MEASURE).value == 0.75


def test_the_share_of_rates_that_took_counts_each_once(tmp_path: Path) -> None:
    found = recovered.attack_took(attacked(tmp_path), MEASURE)
    assert found.value == 0.5 and found.source.rows == "mean over 2 rates, arm=facts"


def test_half_of_the_gap_is_closed_at_the_first_step_that_reaches_it(tmp_path: Path) -> None:
    later = recovered.steps_to_half(attacked(tmp_path / "later"), MEASURE)
    assert later.value == 5 and later.source.rows == "lr=0.2, arm=facts"
    exactly = attacked(tmp_path / "exactly", last=16)  # 5/16 after step 5, then 8/16
    assert recovered.steps_to_half(exactly, MEASURE).value == 10
    with pytest.raises(Absent, match="not closed within 15 steps"):
        recovered.steps_to_half(attacked(tmp_path / "never", last=15), MEASURE)


def cells(kind: str, **written: Any) -> Any:
    """Writes these cells into the rows of arm facts of a table."""

    def change(name: str, table: pd.DataFrame) -> pd.DataFrame:
        if name == kind:
            for column, cell in written.items():
                table.loc[table["arm"] == "facts", column] = cell
        return table

    return change


@pytest.mark.parametrize(
    ("measured", "changed", "reason"),
    [
        ("recovered_share", {"changes": cells("relearning", recovered_share=None)}, "no gap"),
        ("recovered_share", {"base": None}, "without --base"),
        ("recovered_share", {"changes": cells("relearning", picked=1)}, "8 rows picked"),
        ("steps_to_half", {"changes": cells("relearning", recovered_share=None)}, "no gap"),
        ("attack_took", {"changes": cells("relearning", heldout_accuracy=None)}, "--questions"),
        ("attack_took", {"changes": cells("relearning", arm="lora")}, "without --arm facts"),
        ("recovered_facts", {"filtered": None}, "without --filtered"),
        ("recovered_share", {"changes": cells("relearning", picked=0, took=1)}, "above 0.7 at any"),
        ("recovered_share", {"changes": cells("relearning", picked=0)}, "above 0.7 at any rate"),
        ("recovered_share",
         {"changes": cells("relearning", picked=0), "general_floor": "high"}, "no general_floor"),
        ("recovered_share",
         {"changes": cells("relearning", picked=0, took=0)}, "reached 0.90, not 0.95"),
        ("attack_took", {"changes": lambda _, table: pd.concat([table, table])}, "two rows"),
    ],
)  # fmt: skip
def test_why_there_is_no_number(
    measured: str, changed: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(Absent, match=reason):
        getattr(recovered, measured)(attacked(tmp_path, **changed), MEASURE)


def test_reasons_name_the_filtered_model_and_tell_defects(tmp_path: Path) -> None:
    place = attacked(tmp_path)
    attacked(tmp_path, "filtered", changes=cells("relearning", picked=1))
    with pytest.raises(Absent, match="the filtered model: failed") as left:
        recovered.recovered_facts(place, MEASURE)
    assert left.value.defect


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda name, t: pd.concat([t, t]) if name == "per_question" else t, "not every question"),
        (cells("per_question", group="tune"), "not every question"),
        (cells("per_question", entity="another"), "not to the same questions"),
    ],
)
def test_answers_that_cannot_be_paired_leave_the_number(
    change: Any, reason: str, tmp_path: Path
) -> None:
    found = recovered.recovered_share(attacked(tmp_path, changes=change), MEASURE)
    assert found.value == 0.75 and found.sample is None and reason in found.unpaired


def test_a_gap_that_some_resamples_lack_gives_no_interval(tmp_path: Path) -> None:
    """The base knew but the questions on one entity more: not every resample draws it."""
    lost = np.flatnonzero(OF == 2)

    def change(name: str, table: pd.DataFrame) -> pd.DataFrame:
        if name == "per_question":
            known = ~table["id"].isin([f"q{i}" for i in lost]) | (table["arm"] == "before")
            table["correct"] = known.astype(int)
            table.loc[(table["step"] == 10) & (table["id"] == f"q{lost[0]}"), "correct"] = 1
        else:
            table["recovered_share"] = 1 / 3
        return table

    found = recovered.recovered_share(attacked(tmp_path, changes=change), MEASURE)
    assert found.value == 1 / 3 and "no gap to close" in found.unpaired
