"""Tables of the relearning attack by hand: areas, shares, the rate picked, what a summary says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model_diffs.attacks import relearning_tables as tables
from model_diffs.attacks.material import Material
from model_diffs.attacks.relearning import Attacked, Measured
from model_diffs.attacks.relearning_tables import Reference, Setting
from model_diffs.data.questions import Question
from model_diffs.stats.intervals import Interval, document_weights, ratio_interval

ENTITIES = [
    f"e{i // 2}" for i in range(9)
]  # two questions on each of four entities, one on a fifth
STEPS = (0, 9, 99)
SEED = 3


def right(*numbers: int) -> np.ndarray:
    return np.isin(np.arange(9), numbers).astype(float)


def asked(group: str) -> list[Question]:
    choices = ("a", "b", "c", "d")
    return [
        Question(f"{group}{i}", "hazard", e, "r", group, "What?", choices, 0)
        for i, e in enumerate(ENTITIES)
    ]


MATERIAL = Material({}, [], [], {"heldout": asked("heldout")})


def mean(value: float) -> Interval:
    return Interval(*(np.float64(value + d) for d in (0, -0.1, 0.1)))


def attacked(
    arm: str = "facts",
    lr: float = 0.1,
    took: bool | None = True,
    heldout: tuple[np.ndarray, ...] = (right(0), right(0, 2, 4), right(0, 2, 4, 6, 7)),
    **accuracies: list[float],
) -> Attacked:
    """Measured at STEPS: these held-out answers, and accuracies on other groups."""
    measured = {}
    for place, step in enumerate(STEPS):
        means = {group: mean(values[place]) for group, values in accuracies.items()}
        correct = {}
        if heldout:
            correct = {"heldout": heldout[place]}
            means["heldout"] = mean(float(heldout[place].mean()))
        nll = {"forget": mean(3 - place - lr), "retain": mean(2.0)}
        measured[step] = Measured(10 * step, correct, means, nll)
    return Attacked(arm, lr, measured, took)


def setting(base: np.ndarray | None = None, **references: Reference) -> Setting:
    options = SimpleNamespace(steps=STEPS[-1], general_floor=0.7, seed=SEED)
    known = None if base is None else Measured(0, {"heldout": base}, {}, {})
    return Setting(known, references, MATERIAL, options)


def test_area_ends_at_the_last_step_that_was_measured() -> None:
    """A curve is not cut where it goes on beyond `last`."""
    assert tables.log_area([0, 9, 99], [0.0, 0.0, 1.0], 9) == pytest.approx(0.25)
    assert tables.log_area([0, 9, 99], [0.0, 0.0, 1.0], 999) == pytest.approx((0.5 + 1) / 3)


def test_a_mean_over_entities_weighs_questions() -> None:
    values = np.arange(9.0)
    sums = [1, 5, 9, 13, 8]  # of 0 + 1, 2 + 3, …, and 8 alone
    expected = ratio_interval(sums, [2, 2, 2, 2, 1], 7)
    found = tables.over_entities(values, ENTITIES, 7)
    assert [*map(float, found)] == pytest.approx([*map(float, expected)])
    assert float(found.mean) == 4


def test_the_share_s_interval_is_that_of_resampled_entities() -> None:
    base, start, after = right(*range(9)), right(0), right(0, 1, 2, 4)
    gained = np.array([1, 1, 1, 0, 0])
    gaps = np.array([1, 2, 2, 2, 1])
    weights = document_weights(5, SEED)
    drawn = (weights @ gained) / (weights @ gaps)
    found = tables.recovered_share(base, start, after, ENTITIES, SEED)
    assert found["recovered_share"] == pytest.approx(3 / 8)
    ends = [found["recovered_share_low"], found["recovered_share_high"]]
    assert ends == pytest.approx([*np.percentile(drawn, [2.5, 97.5])])


def test_the_least_gap_is_one_in_twenty() -> None:
    many = [f"e{i}" for i in range(40)]
    base = np.ones(40)
    of = lambda wrong: (np.arange(40) >= wrong).astype(float)  # noqa: E731
    assert tables.recovered_share(base, of(1), base, many, SEED) == {}
    # Both resamples without one of the two and with them exist: there is no interval.
    assert tables.recovered_share(base, of(3), of(1), many, SEED) == {
        "recovered_share": pytest.approx(2 / 3)
    }
    exactly = np.zeros(20)
    exactly[0] = tables.LEAST_GAP * 20  # as a binary fraction exactly the least gap
    assert tables.recovered_share(exactly, np.zeros(20), exactly, many[:20], SEED) == {
        "recovered_share": 1.0
    }


def test_the_share_of_a_single_question_has_an_interval() -> None:
    one, none = np.ones(1), np.zeros(1)
    found = tables.recovered_share(one, none, one, ["e"], SEED)
    assert [*found] == [*tables.SHARE] and {*found.values()} == {1.0}


def picked(attacks: list[Attacked]) -> tuple[Attacked, int] | None:
    """The attack and step that are picked, with a floor of 0.7."""
    found = tables.pick(attacks, 0.7)
    return found and (found.attacked, found.step)


@pytest.mark.parametrize(("general", "counts"), [(0.7, False), (0.71, True)])
def test_a_rate_is_picked_where_general_facts_stay_above_the_floor(
    general: float, counts: bool
) -> None:
    one = attacked(tune=[0.0, 0.5, 0.5], general=[1.0, 1.0, general])
    found = picked([one])
    assert (found is not None and found[0] is one) == counts
    assert picked([attacked(tune=[0.0, 0.5, 0.5])]) is not None, "or were not asked"


def test_a_harmless_arm_is_read_at_its_best_step_on_tune() -> None:
    """Before training hurts; not before it, and where the model is not broken yet."""
    best = attacked("retain", took=None, tune=[0.9, 0.6, 0.3])
    worse = attacked("retain", lr=0.2, took=None, tune=[0.9, 0.2, 0.5])
    assert picked([worse, best]) == (best, 9)
    broken = attacked("retain", lr=0.3, took=None, tune=[0.9, 0.8, 0.4], general=[1.0, 0.5, 0.9])
    assert picked([broken]) == (broken, 99)
    assert picked([broken, worse, best]) == (best, 9)
    hurt = attacked("retain", took=None, tune=[0.9, 0.6, 0.3], general=[1.0, 0.9, 0.2])
    assert picked([hurt]) == (hurt, 9), "the end does not speak against what was before"
    even = attacked("retain", took=None, tune=[0.1, 0.4, 0.4])
    assert picked([even]) == (even, 9), "the earliest of equal steps"


def test_an_arm_on_facts_is_read_where_it_took_alone() -> None:
    one = attacked(tune=[0.0, 0.8, 0.5])
    assert picked([one]) == (one, 99)


def test_one_step_is_enough() -> None:
    one = attacked(tune=[0.0, 0.5, 0.5])
    for took in (True, None):
        short = one._replace(measured={0: one.measured[0], 1: one.measured[9]}, took=took)
        assert picked([short]) == (short, 1)


def test_among_equal_rates_the_lowest_is_picked() -> None:
    rates = [attacked(lr=lr, tune=[0.0, 0.5, 0.5]) for lr in (0.2, 0.1, 0.3)]
    assert picked(rates) == (rates[1], 99)
    sooner = attacked(lr=0.4, tune=[0.0, 0.6, 0.5])
    assert picked([*rates, sooner]) == (sooner, 99)


def test_without_questions_the_lowest_loss_on_forget_lines_is_picked() -> None:
    rates = [attacked(lr=lr, took=None, heldout=()) for lr in (0.1, 0.3, 0.2)]
    assert picked(rates) == (rates[1], 99)
    same = rates[1]._replace(lr=0.05)
    assert picked([rates[1], same]) == (same, 99)


def test_why_nothing_was_tested() -> None:
    slow = [attacked(took=False, attack=[0.1, at, 0.2]) for at in (0.4, 0.6)]
    assert "attacked facts reached 0.60" in tables.not_tested(slow, 0.7)
    broken = attacked(attack=[0.1, 0.9, 1.0], general=[1.0, 0.5, 0.5])
    assert "above 0.7" in tables.not_tested([*slow, broken], 0.7)


def test_rows_have_what_was_measured_and_nothing_else() -> None:
    given = setting(right(*range(9)))
    attacks = [
        attacked(tune=[0.0, 0.5, 0.5]), attacked(lr=0.2, tune=[0.0, 0.5, 0.6]),
        attacked("retain", took=None, tune=[0.0, 0.1, 0.1]),
    ]  # fmt: skip
    rows = tables.attack_rows("m", attacks, given)
    assert all(tuple(row) == tables.COLUMNS for row in rows)
    assert [row["arm"] for row in rows] == ["facts"] * 6 + ["retain"] * 3
    assert [row["picked"] for row in rows] == [0, 0, 0, 0, 0, 1, 0, 1, 0], "one of each arm"
    assert [row["took"] for row in rows] == [1] * 6 + [None] * 3
    assert [row["step"] for row in rows[:3]] == [0, 9, 99]
    assert [row["tokens"] for row in rows[:3]] == [0, 90, 990]
    shares = [row["recovered_share"] for row in rows[:3]]
    assert shares == pytest.approx([0, 2 / 8, 4 / 8])
    last = rows[5]
    assert [last[f"tune_accuracy{end}"] for end in tables.ENDS] == pytest.approx([0.6, 0.5, 0.7])
    assert [last[f"forget_nll{end}"] for end in tables.ENDS] == pytest.approx([0.8, 0.7, 0.9])
    assert last["adjacent_accuracy"] is None and last["area_over_filtered"] is None
    area = (1 / 9 + 2 * 3 / 9 + 5 / 9) / 4
    assert last["area"] == pytest.approx(area)
    alone = tables.attack_rows("m", attacks, setting())
    assert all(row["recovered_share"] is None and row["area"] is not None for row in alone)
    silent = tables.attack_rows("m", [attacked(took=None, heldout=())], given)
    assert all(row["recovered_share"] is row["area"] is None for row in silent)
    failed = tables.attack_rows("m", [attacked(took=False)], given)
    assert all(row["recovered_share"] is row["area"] is None for row in failed)


def test_areas_over_the_filtered_model_are_paired_by_question() -> None:
    reference = Reference(right(0) / 2, right(0))
    (first, *_) = tables.attack_rows("m", [attacked()], setting(facts=reference))
    own = (right(0) + 2 * right(0, 2, 4) + right(0, 2, 4, 6, 7)) / 4
    expected = tables.over_entities(own - right(0) / 2, ENTITIES, SEED)
    cells = [first[f"area_over_filtered{end}"] for end in tables.ENDS]
    assert cells == pytest.approx([*map(float, expected)])
    cells = [first[f"area{end}"] for end in tables.ENDS]
    assert cells == pytest.approx([*map(float, tables.over_entities(own, ENTITIES, SEED))])


def test_each_answer_is_a_row() -> None:
    two = {
        0: Measured(0, {"heldout": right(1)}, {}, {}),
        9: Measured(0, {"heldout": right()}, {}, {}),
    }
    rows = tables.question_rows(MATERIAL, "m", "facts", 0.1, two)
    assert len(rows) == 18 and [row["step"] for row in rows] == [0] * 9 + [9] * 9
    assert [row["correct"] for row in rows] == [0, 1] + [0] * 16
    assert rows[1] == {
        "model": "m", "arm": "facts", "lr": 0.1, "step": 0, "group": "heldout", "id": "heldout1",
        "entity": "e0", "correct": 1,
    }  # fmt: skip


def summarised(attacks: list[Attacked], given: Setting) -> dict[str, Any]:
    return tables.summary("m", attacks, tables.attack_rows("m", attacks, given), given)


def test_a_summary_tells_the_picked_rate_and_step_of_each_arm() -> None:
    reference = Reference(right(0) / 2, right(0))
    attacks = [
        attacked(lr=0.2, took=False, tune=[0.0, 0.5, 0.9], attack=[0.1, 0.2, 0.3]),
        attacked(tune=[0.0, 0.5, 0.5], attack=[0.1, 0.2, 1.0]),
        attacked("retain", took=None, tune=[0.0, 0.1, 0.1]),
    ]
    found = summarised(attacks, setting(right(*range(9)), facts=reference))
    facts, retain = found["arms"]
    assert (found["model"], found["base_heldout_accuracy"]) == ("m", 1.0)
    assert found["general_floor"] == 0.7
    assert found["start"]["heldout_accuracy"] == pytest.approx(1 / 9)
    assert found["start"]["attack_accuracy"] == 0.1
    assert (facts["rates"], facts["rates_took"], facts["not_tested"]) == (2, 1, "")
    assert (facts["lr"], facts["step"], facts["attack_accuracy"]) == (0.1, 99, 1.0)
    over = tables.over_entities(right(2, 4, 6, 7), ENTITIES, SEED)
    cells = [facts[name] for name in tables.OVER_FILTERED]
    assert cells == pytest.approx([*map(float, over)])
    assert facts["steps_to_half"] == 99, "half exactly"
    assert (retain["rates"], retain["rates_took"], retain["step"]) == (1, None, 9)
    assert retain["heldout_accuracy"] == pytest.approx(3 / 9) and retain["steps_to_half"] == 99
    assert all(retain[name] is None for name in tables.OVER_FILTERED)
    base = summarised(attacks, setting())
    assert base["base_heldout_accuracy"] is None and base["arms"][0]["steps_to_half"] is None


def test_half_of_the_gap_is_half_exactly() -> None:
    attacks, given = [attacked(tune=[0.0, 0.5, 0.5])], setting(right(*range(9)))
    rows = tables.attack_rows("m", attacks, given)
    for share, step in ((0.5, 9), (0.499, 99)):
        changed = [{**row, "recovered_share": share} if row["step"] == 9 else row for row in rows]
        assert tables.arm_summary(attacks, changed, given)["steps_to_half"] == step


def test_chance_is_one_of_the_choices() -> None:
    assert all(tables.CHANCE * len(one.choices) == 1 for one in asked("heldout"))


def test_a_summary_of_an_arm_that_tested_nothing_is_empty() -> None:
    attacks = [attacked(took=False, attack=[0.1, 0.2, 0.3]), attacked("retain", took=None)]
    facts, retain = summarised(attacks, setting(right(*range(9))))["arms"]
    assert facts["lr"] is facts["heldout_accuracy"] is facts["steps_to_half"] is None
    assert facts["not_tested"] and facts["rates_took"] == 0
    assert retain["lr"] == 0.1 and retain["steps_to_half"] == 99


def test_the_filtered_model_is_read_at_the_rate_picked_for_it(tmp_path: Path) -> None:
    slow = attacked(lr=0.2, heldout=(right(), right(), right(8)), tune=[0.0, 0.1, 0.2])
    fast = attacked(tune=[0.0, 0.5, 0.5])
    other = attacked("lora", took=False, tune=[0.0, 0.5, 0.5])
    harmless = attacked("retain", took=None, tune=[0.0, 0.5, 0.4])
    attacks = [slow, fast, other, harmless]
    numbered = [one._replace(id=str(i)) for i, one in enumerate(asked("heldout"))]
    given = MATERIAL._replace(questions={"heldout": numbered})  # ids that look like numbers
    rows = tables.attack_rows("filtered", attacks, setting())
    single = [
        row for one in attacks
        for row in tables.question_rows(given, "filtered", one.arm, one.lr, one.measured)
    ]  # fmt: skip
    single += [{**row, "group": "tune", "correct": 1 - row["correct"]} for row in single]
    pd.DataFrame(rows).to_csv(tmp_path / "relearning.csv", index=False)
    pd.DataFrame(single[::-1]).to_csv(tmp_path / "per_question.csv", index=False)
    found = tables.read_references(tmp_path, given, 999)
    assert [*found] == ["facts", "retain"]
    np.testing.assert_array_equal(found["facts"].picked, right(0, 2, 4, 6, 7))
    np.testing.assert_array_equal(found["retain"].picked, right(0, 2, 4))
    np.testing.assert_allclose(found["facts"].area, tables.heldout_area(fast, 999))
