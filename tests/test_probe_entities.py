"""Folds of linear probes by entity, and the control task, on states with planted truths."""

import numpy as np
import pytest

from model_diffs.data.questions import Question, mentioned
from model_diffs.diagnostics import probes
from model_diffs.stats import cross_validation

SETTINGS = probes.Settings(C=1.0, max_iter=1000, standardize=True, seed=42)


def test_documents_of_one_entity_are_in_one_fold() -> None:
    draw = np.random.default_rng(0)
    named = [{f"e{draw.integers(12)}"} for _ in range(60)] + [set() for _ in range(40)]
    named[0], named[1] = {"e0", "e1"}, {"e1", "e2"}
    group = cross_validation.groups(named)
    assert len({*group[60:]} & {*group[:60]}) == 0 and len({*group[60:]}) == 40
    assert (
        len({g for g, things in zip(group, named, strict=True) if things & {"e0", "e1", "e2"}}) == 1
    )
    labels = np.arange(100) % 5 < 2
    folds = cross_validation.whole_groups(group, labels, 5, seed=0)
    assert folds is not None
    for one in np.unique(group):
        assert len({*folds[group == one]}) == 1
    for of_class in (labels, ~labels):
        counts = np.bincount(folds[of_class], minlength=5)
        assert counts.min() > 0.5 * of_class.sum() / 5
    other = cross_validation.whole_groups(group, labels, 5, seed=1)
    assert other is not None and not np.array_equal(folds, other)
    # Four entities do not fill five folds.
    assert cross_validation.whole_groups(np.arange(100) % 4, labels, 5, seed=0) is None


def test_entities_are_found_as_whole_words() -> None:
    asked = [load_question(entity) for entity in ("Ann", "Ann Lee", "Bo (II)")]
    texts = ["Ann Lee met Ann.", "Anna met Bo (II).", "Ann Leers", "nobody"]
    assert mentioned(texts, asked) == [{"Ann", "Ann Lee"}, {"Bo (II)"}, {"Ann"}, set()]
    assert mentioned(["Ann"], []) == [set()]


def load_question(entity: str) -> Question:
    return Question(entity, "hazard", entity, "r", None, "p", ("a", "b", "c", "d"), 0)


def test_summary_says_by_what_documents_are_divided() -> None:
    forget = [f"Agent {i % 10} burns {i}." for i in range(30)]
    retain = [f"Agent {i % 10} sings {i}." for i in range(40)]
    expected = cross_validation.design(30, 40, 5, seed=0).folds
    for entities, said in (([f"Agent {i}" for i in range(10)], "entity"), (["Town"], "document"),
                           ([], "document"), (["Agent"], "document")):  # fmt: skip
        asked = [load_question(entity) for entity in entities]
        plan, task, by = probes.folds_of(forget, retain, asked, 5, 0)
        assert by.split(":")[0] == said
        assert np.array_equal(plan.folds, expected) == (said == "document")
        assert np.array_equal(task.folds, expected)
        agents = np.array([i % 10 for i in (*range(30), *range(40))])
        together = [len({*plan.folds[agents == a]}) == 1 for a in range(10)]
        assert all(together) if said == "entity" else not all(together)


def entity_clouds(memorable: float, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States of 20 entities with 8 documents each, half of them forget; their entities; labels."""
    draw = np.random.default_rng(3)
    entity = np.repeat(np.arange(20), 8)
    labels = entity % 2 == 0
    order = np.argsort(~labels, kind="stable")
    states = draw.normal(size=(160, 40)) + memorable * draw.normal(size=(20, 40))[entity]
    states[:, 0] += shift * labels
    return states[order], entity[order], labels[order]


@pytest.mark.parametrize(("memorable", "shift"), [(3.0, 0.0), (0.0, 6.0)])
def test_control_task_is_learned_by_heart_only(memorable: float, shift: float) -> None:
    """States that name the entity give the control task and nothing on new entities; states that
    tell the class give the class on new entities and nothing of the control task."""
    states, entity, labels = entity_clouds(memorable, shift)
    mixed = cross_validation.design(80, 80, 5, seed=0)
    folds = cross_validation.whole_groups(entity, labels, 5, seed=0)
    assert folds is not None
    plan = cross_validation.design(80, 80, 5, 0, folds)
    task = probes.control_task(entity, mixed, seed=0)
    assert all(len({*task.labels[entity == e]}) == 1 for e in range(20))
    assert task.labels.mean() == 0.5
    ((row, _),) = probes.probe_states(states[None], plan, SETTINGS, task)
    if memorable:
        assert row["control_task_accuracy"] > 0.9 and row["test_accuracy"] < 0.75
        assert row["control_task_selectivity_high"] < 0
        ((leaking, _),) = probes.probe_states(states[None], mixed, SETTINGS, task)
        assert leaking["test_accuracy"] > 0.9, "documents of one entity in training and test"
    else:
        assert row["test_accuracy"] > 0.95 and row["control_task_accuracy"] < 0.7
        assert row["control_task_selectivity_low"] > 0.2
    assert row["control_task_selectivity"] == pytest.approx(
        row["test_accuracy"] - row["control_task_accuracy"]
    )
