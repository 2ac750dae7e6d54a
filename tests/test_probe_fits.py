"""Fits of linear probes: scaling, the span of the states, solvers, and accuracies out of fold."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_diffs.diagnostics import probes
from model_diffs.stats import cross_validation, logistic
from model_diffs.stats.cross_validation import Design

SETTINGS = probes.Settings(C=1.0, max_iter=1000, standardize=True, seed=42)


def states_of(seed: int, n: int = 60, d: int = 20) -> np.ndarray:
    """Dimensions of unequal scales around means of their own; the small ones tell the classes."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d))
    x[: 2 * n // 5, :4] += 1.0
    return x * np.where(np.arange(d) < 8, 0.05, 30.0) + 5 * draw.normal(size=d)


def features(train: np.ndarray, test: np.ndarray, standardize: bool) -> list[np.ndarray]:
    """Both in coordinates of a fit on `train`."""
    every = torch.from_numpy(np.concatenate([train, test]))
    found = logistic.coordinates(every, torch.arange(len(every)) < len(train), standardize).numpy()
    return [found[: len(train)], found[len(train) :]]


def test_states_are_scaled_by_what_is_trained_on() -> None:
    train, test = states_of(0), 3 * states_of(1) + 1
    scaler = StandardScaler().fit(train)
    for found, given in zip(features(train, test, True), (train, test), strict=True):
        np.testing.assert_allclose(found, scaler.transform(given), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("sigma", [[1.0, 1.0, 0.5], [1e5, 1.0, 1.0]])
def test_the_span_has_as_many_features_as_the_states_have_rank(
    sigma: list[float], scale: float
) -> None:
    draw = np.random.default_rng(0)
    left, right = (np.linalg.qr(draw.normal(size=(side, 3)))[0] for side in (10, 40))
    train = scale * (left * sigma) @ right.T
    test = scale * draw.normal(size=(4, 3)) @ right.T
    found, unseen = features(train, test, False)
    assert found.shape == (10, 3) and unseen.shape == (4, 3)
    both, rotated = np.concatenate([train, test]), np.concatenate([found, unseen])
    size = scale**2 * max(sigma) ** 2
    np.testing.assert_allclose(rotated @ rotated.T / size, both @ both.T / size, atol=1e-9)


@pytest.mark.parametrize("C", [1e-4, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_many_fits_at_once_equal_scikit_learn(C: float, shift: float) -> None:
    """Separable classes and such that are not, of unlike ranks, each with three label sets."""
    draw = np.random.default_rng(0)
    labels = np.stack([np.arange(40) < 16, draw.random(40) < 0.5, draw.random(40) < 0.2])
    states = draw.normal(size=(3, 40, 12)) + shift * labels[0][:, None] * (np.arange(12) < 2)
    states[1, :, 4:] = 0.0
    folds = np.arange(40) % 4
    given = (torch.from_numpy(one) for one in (states, folds, labels))
    found = logistic.fit_folds(*given, C=C, max_iter=200, standardize=True)
    assert found.converged.all() and found.scores.shape == (12, 3, 40)
    for problem, (of, fold) in enumerate(np.ndindex(3, 4)):
        train = folds != fold
        scaler = StandardScaler().fit(states[of][train])
        for scores, target in zip(found.scores[problem], labels, strict=True):
            reference = LogisticRegression(C=C, tol=1e-12, max_iter=100_000, solver="newton-cg")
            reference.fit(scaler.transform(states[of][train]), target[train])
            expected = reference.predict_proba(scaler.transform(states[of]))[:, 1]
            np.testing.assert_allclose(scores.sigmoid(), expected, atol=1e-4)


def by_scikit_learn(
    states: np.ndarray, labels: np.ndarray, folds: np.ndarray, standardize: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which documents are labelled rightly, by the probe of their fold, and in training."""
    correct, trained = np.zeros((2, len(states)))
    for fold in np.unique(folds):
        test = folds == fold
        scaler = StandardScaler() if standardize else "passthrough"
        probe = make_pipeline(scaler, LogisticRegression(tol=1e-10, max_iter=100_000))
        probe.fit(states[~test], labels[~test])
        correct[test] = probe.predict(states[test]) == labels[test]
        trained[~test] += probe.predict(states[~test]) == labels[~test]
    return correct, trained / (len(np.unique(folds)) - 1)


@pytest.mark.parametrize("standardize", [True, False])
def test_accuracies_are_those_of_scikit_learn_out_of_fold(standardize: bool) -> None:
    states, settings = states_of(2), SETTINGS._replace(standardize=standardize, C=1.0)
    plan = cross_validation.design(24, 36, 5, seed=1)
    task = probes.control_task(np.arange(60) // 2, cross_validation.design(24, 36, 4, seed=2), 3)
    (row, _), other_row = probes.probe_states(
        np.stack([states, states[::-1]]), plan, settings, task
    )
    assert other_row[0]["test_accuracy"] != row["test_accuracy"], "each state has its own probes"
    correct, trained = by_scikit_learn(states, plan.labels, plan.folds, standardize)
    assert row["test_accuracy"] == pytest.approx(correct.mean())
    assert row["train_accuracy"] == pytest.approx(trained.mean())
    shuffled = probes.shuffled_labels(plan, settings.seed)
    chance, _ = by_scikit_learn(states, shuffled, plan.folds, standardize)
    assert row["control_accuracy"] == pytest.approx(chance.mean())
    by_heart, _ = by_scikit_learn(states, task.labels, task.folds, standardize)
    found = probes.answers(states[None], task.folds, task.labels[None], settings)
    np.testing.assert_array_equal(found.correct[0, 0], by_heart)
    assert found.converged.tolist() == [[4]]
    assert row["fits"] == row["fits_converged"] == 14
    assert row["control_task_accuracy"] == pytest.approx(by_heart.mean())
    other, _ = by_scikit_learn(states, plan.labels, plan.folds, not standardize)
    other_task, _ = by_scikit_learn(states, task.labels, task.folds, not standardize)
    assert other.mean() != correct.mean() and not np.array_equal(other_task, by_heart)


@pytest.mark.parametrize("label", [True, False])
def test_a_task_with_one_label_to_train_on_predicts_it(label: bool) -> None:
    """All documents but some of fold 0 have one label: the probe of fold 0 knows no other."""
    folds = np.arange(20) % 4
    labels = np.full(20, label)
    labels[[0, 4]] = not label
    states = np.random.default_rng(0).normal(size=(1, 20, 5))
    found = probes.answers(states, folds, labels[None], SETTINGS)
    assert found.converged.tolist() == [[4]]
    assert found.correct[0, 0, folds == 0].tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("forget", "retain", "types", "positive"),
    [(12, 18, 10, 4), (12, 18, 30, 12), (5, 95, 4, 1), (95, 5, 4, 3), (10, 10, 2, 1)],
)
def test_the_share_of_types_with_a_label_is_that_of_forget_documents(
    forget: int, retain: int, types: int, positive: int
) -> None:
    """At least one type has it, and at least one has not."""
    plan = cross_validation.design(forget, retain, 5, seed=0)
    of = np.arange(forget + retain) % types
    drawn = set()
    for seed in range(12):
        task = probes.control_task(of, plan, seed)
        with_label = {*of[task.labels].tolist()}
        assert len(with_label) == positive and not with_label & {*of[~task.labels].tolist()}
        assert task.folds is plan.folds
        drawn.add(tuple(sorted(with_label)))
    assert len(drawn) > 1, "drawn with the seed"


def test_labels_are_shuffled_within_folds_with_the_seed() -> None:
    labels = np.arange(40) < 16
    plan = Design(labels, np.arange(40) // 10, np.ones((1, 16)), np.ones((1, 24)))
    found = [probes.shuffled_labels(plan, seed) for seed in (1, 1, 2)]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    for fold, count in ((0, 10), (1, 6), (2, 0), (3, 0)):
        assert all(one[plan.folds == fold].sum() == count for one in found)
