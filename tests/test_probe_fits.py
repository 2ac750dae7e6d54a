"""Fits of linear probes: scaling, the span of the states, solvers, and accuracies out of fold."""

import warnings
from typing import Any

import numpy as np
import pytest
import sklearn.linear_model
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_diffs.diagnostics import probes
from model_diffs.stats import cross_validation
from model_diffs.stats.cross_validation import Design

SETTINGS = probes.Settings(C=1.0, max_iter=1000, standardize=True, seed=42)


def states_of(seed: int, n: int = 60, d: int = 20) -> np.ndarray:
    """Dimensions of unequal scales around means of their own; the small ones tell the classes."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d))
    x[: 2 * n // 5, :4] += 1.0
    return x * np.where(np.arange(d) < 8, 0.05, 30.0) + 5 * draw.normal(size=d)


def test_states_are_scaled_by_what_is_trained_on() -> None:
    train, test = states_of(0), 3 * states_of(1) + 1
    scaler = StandardScaler().fit(train)
    for found, given in zip(probes.standardise(train, test), (train, test), strict=True):
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
    found, unseen = probes.rotate(train, test)
    assert found.shape == (10, 3) and unseen.shape == (4, 3)
    both, rotated = np.concatenate([train, test]), np.concatenate([found, unseen])
    size = scale**2 * max(sigma) ** 2
    np.testing.assert_allclose(rotated @ rotated.T / size, both @ both.T / size, atol=1e-9)


def test_a_fit_that_stops_early_is_seen_where_warnings_are_ignored() -> None:
    labels = np.arange(60) < 24
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, converged = probes.fit(states_of(0), labels, SETTINGS._replace(max_iter=1))
    assert not converged


@pytest.mark.parametrize(("failing", "tried"), [((), 1), (("newton-cg",), 2)])
def test_the_exact_solver_is_used_where_the_fast_one_fails(
    failing: tuple[str, ...], tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    solvers: list[str] = []

    class Fit(LogisticRegression):
        def fit(self, *given: Any) -> Any:
            solvers.append(self.solver)
            if self.solver in failing:
                warnings.warn("the line search failed", ConvergenceWarning, stacklevel=1)
            return super().fit(*given)

    monkeypatch.setattr(sklearn.linear_model, "LogisticRegression", Fit)
    found, converged = probes.fit(states_of(0), np.arange(60) < 24, SETTINGS)
    assert converged and solvers == ["newton-cg", "newton-cholesky"][:tried]
    assert found.solver == solvers[-1]


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
    row, _ = probes.probe_state(states, plan, settings, task)
    correct, trained = by_scikit_learn(states, plan.labels, plan.folds, standardize)
    assert row["test_accuracy"] == pytest.approx(correct.mean())
    assert row["train_accuracy"] == pytest.approx(trained.mean())
    shuffled = probes.shuffled_labels(plan, settings.seed)
    chance, _ = by_scikit_learn(states, shuffled, plan.folds, standardize)
    assert row["control_accuracy"] == pytest.approx(chance.mean())
    by_heart, _ = by_scikit_learn(states, task.labels, task.folds, standardize)
    found, converged = probes.task_accuracy(states, task, settings)
    np.testing.assert_array_equal(found, by_heart)
    assert converged == 4 and row["control_task_accuracy"] == pytest.approx(by_heart.mean())
    other, _ = by_scikit_learn(states, plan.labels, plan.folds, not standardize)
    other_task, _ = by_scikit_learn(states, task.labels, task.folds, not standardize)
    assert other.mean() != correct.mean() and not np.array_equal(other_task, by_heart)


@pytest.mark.parametrize("label", [True, False])
def test_a_task_with_one_label_to_train_on_predicts_it(label: bool) -> None:
    """All documents but some of fold 0 have one label: the probe of fold 0 knows no other."""
    folds = np.arange(20) % 4
    labels = np.full(20, label)
    labels[[0, 4]] = not label
    found, converged = probes.task_accuracy(
        np.random.default_rng(0).normal(size=(20, 5)), probes.ControlTask(labels, folds), SETTINGS
    )
    assert converged == 4
    assert found[folds == 0].tolist() == [0, 0, 1, 1, 1]


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
