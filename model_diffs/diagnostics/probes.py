"""Step 13: linear probes of the last token's state, forget against retain.

L2-regularised logistic regression does not change when its features are rotated, and its weights
lie in the span of the training states. So with fewer documents than dimensions it is solved in that
span, with as many features as documents, and is the same classifier.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.core.progress import progress
from model_diffs.stats import cross_validation
from model_diffs.stats.cross_validation import Design, Estimate
from model_diffs.stats.intervals import percentile_interval

# Of the largest gradient entry of the mean loss: fits agree to many more digits than are printed.
TOLERANCE = 1e-8
Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]


class Settings(NamedTuple):
    """How probes are fitted."""

    C: float = 1.0
    """Inverse strength of the L2 penalty, as scikit-learn counts it."""
    max_iter: int = 1000
    standardize: bool = True
    """Features scaled to mean 0 and variance 1 on the training folds."""
    seed: int = 42


class Row(NamedTuple):
    """One hidden state. `_low`, `_high` are 95 % intervals over documents."""

    layer: int
    test_accuracy: float
    train_accuracy: float
    selectivity: float
    auc: float
    majority_baseline: float
    test_accuracy_low: float
    test_accuracy_high: float
    train_accuracy_low: float
    train_accuracy_high: float
    selectivity_low: float
    selectivity_high: float
    auc_low: float
    auc_high: float
    control_accuracy: float
    control_accuracy_low: float
    control_accuracy_high: float
    fits: int
    """Probes that were fitted: one per fold, with true and with shuffled labels."""
    fits_converged: int


# ── one fit ───────────────────────────────────────────────────────────────────────────────────────


class Features(NamedTuple):
    """States of a fold as the solver sees them; r is the smaller of documents and dimensions."""

    train: Floats
    """`[n, r]`."""
    test: Floats
    """`[m, r]`."""
    combine: Floats | None
    """`[n, r]`: coordinates are those along `combine`ᵀ T; None where they are the dimensions."""

    def weights(self, train: Floats, found: Floats) -> Floats:
        """Weights `[d]` in the dimensions of the states `train` `[n, d]` that were rotated."""
        return found if self.combine is None else train.T @ (self.combine @ found)


def standardise(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Scale to mean 0 and variance 1 on `train`; dimensions that are constant there become 0."""
    mean, scale = train.mean(0), train.std(0)
    # Exactly: every text may end in the same token, whose embedding says nothing.
    varies = train.min(0) < train.max(0)
    scale[~varies] = 1.0
    return np.where(varies, (train - mean) / scale, 0.0), np.where(
        varies, (test - mean) / scale, 0.0
    )


def features(train: Floats, test: Floats) -> Features:
    """Rotate states T `[n, d]`, and others `[m, d]`, into the span of T where n < d.

    With T Tᵀ = U Λ Uᵀ the coordinates of T are U √Λ, and those of another state x are x Tᵀ U/√Λ.
    """
    n, d = train.shape
    if d <= n:
        return Features(train, test, None)
    values, vectors = np.linalg.eigh(train @ train.T)
    kept = values > n * np.finfo(np.float64).eps * max(values[-1], 0.0)
    if not kept.any():  # states that are all zero: only the intercept is left to fit
        return Features(np.zeros((n, 1)), np.zeros((len(test), 1)), np.zeros((n, 1)))
    roots = np.sqrt(values[kept])
    combine = vectors[:, kept] / roots
    return Features(vectors[:, kept] * roots, (test @ train.T) @ combine, combine)


class Fit(NamedTuple):
    """A fitted probe."""

    weights: Floats
    """`[r]`."""
    intercept: float
    converged: bool

    def decide(self, states: Floats) -> Floats:
        """Log-odds of forget."""
        return states @ self.weights + self.intercept


@cache
def _threads() -> Any:
    """The thread pools of the numerical libraries; finding them takes a while, so once."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def fit(train: Floats, labels: Labels, settings: Settings) -> Fit:
    """L2-regularised logistic regression `[n, r]` by scikit-learn's Newton solvers.

    Conjugate gradients first, which is the faster; where its line search gives up, the exact step.
    On one thread: on products this small, threads wait for one another longer than they work.
    """
    from sklearn.linear_model import LogisticRegression

    for solver in ("newton-cg", "newton-cholesky"):
        model = LogisticRegression(
            C=settings.C, solver=solver, tol=TOLERANCE, max_iter=settings.max_iter
        )
        with _threads().limit(limits=1), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(train, labels)
        # ConvergenceWarning, and a plain UserWarning for a line search that failed.
        converged = not any(issubclass(warning.category, UserWarning) for warning in caught)
        if converged:
            break
    return Fit(model.coef_[0], float(model.intercept_[0]), converged)


# ── one layer, out of fold ────────────────────────────────────────────────────────────────────────


class OutOfFold(NamedTuple):
    """What the probes of all folds say of each document."""

    scores: Floats
    """`[documents]` log-odds from the probe that was not trained on it."""
    correct: Floats
    """`[documents]` 1 where the sign of that is right."""
    train_correct: Floats
    """`[documents]` share of the probes trained on it that have it right."""
    control_correct: Floats
    """`[documents]` as `correct`, where labels were shuffled before training."""
    converged: int


def shuffled_labels(plan: Design, seed: int) -> Labels:
    """Labels permuted within each fold: chance level, with every fold's class sizes kept.

    Permuted over all documents, a fold with few forget labels would be tested by a probe trained on
    many, and score below chance.
    """
    generator = np.random.default_rng(seed)
    result = plan.labels.copy()
    for fold in np.unique(plan.folds):
        members = np.flatnonzero(plan.folds == fold)
        result[members] = plan.labels[generator.permutation(members)]
    return result


def out_of_fold(states: Floats, plan: Design, control: Labels, settings: Settings) -> OutOfFold:
    """Train and test the probes of one hidden state, `[documents, d]`."""
    size = len(states)
    scores, trained = np.empty(size), np.zeros(size)
    correct, control_correct = np.empty(size), np.empty(size)
    folds, converged = np.unique(plan.folds), 0
    for fold in folds:
        test = plan.folds == fold
        split = states[~test], states[test]
        turned = features(*(standardise(*split) if settings.standardize else split))
        probe = fit(turned.train, plan.labels[~test], settings)
        chance = fit(turned.train, control[~test], settings)
        scores[test] = probe.decide(turned.test)
        correct[test] = (scores[test] > 0) == plan.labels[test]
        trained[~test] += (probe.decide(turned.train) > 0) == plan.labels[~test]
        control_correct[test] = (chance.decide(turned.test) > 0) == control[test]
        converged += probe.converged + chance.converged
    return OutOfFold(scores, correct, trained / (len(folds) - 1), control_correct, converged)


class AucRow(NamedTuple):
    """The AUC of one hidden state on one resample of the documents."""

    layer: int
    resample: int
    auc: float


class Probed(NamedTuple):
    """What the probes of a model found."""

    rows: list[Row]
    resampled: list[AucRow]
    """Models that read the same documents share the draws, so their lines belong together."""


def _row(layer: int, found: OutOfFold, auc: Estimate, plan: Design) -> Row:
    majority = max(plan.labels.mean(), 1 - plan.labels.mean())
    accuracy = cross_validation.mean(found.correct, plan)
    estimates = {
        "test_accuracy": accuracy,
        "train_accuracy": cross_validation.mean(found.train_correct, plan),
        "selectivity": Estimate(accuracy.value - majority, accuracy.resampled - majority),
        "auc": auc,
        "control_accuracy": cross_validation.mean(found.control_correct, plan),
    }
    cells: dict[str, float] = {"majority_baseline": float(majority)}
    for name, estimate in estimates.items():
        interval = percentile_interval(estimate.value, estimate.resampled)
        for end, value in zip(("", "_low", "_high"), interval, strict=True):
            cells[name + end] = float(value)
    fits = 2 * len(np.unique(plan.folds))
    return Row(layer=layer, fits=fits, fits_converged=found.converged, **cells)


def probe_rows(
    forget: NDArray[np.float32],
    retain: NDArray[np.float32],
    plan: Design,
    settings: Settings,
    name: str = "",
) -> Probed:
    """One row per hidden state from last-token states `[documents, S, d]` of both classes."""
    control = shuffled_labels(plan, settings.seed)
    rows, resampled = [], []
    for layer in progress(range(forget.shape[1]), f"probes, {name}", unit="state"):
        states = np.concatenate([forget[:, layer], retain[:, layer]]).astype(np.float64)
        found = out_of_fold(states, plan, control, settings)
        auc = cross_validation.auc(found.scores, plan)
        rows.append(_row(layer, found, auc, plan))
        resampled += [AucRow(layer, i, float(value)) for i, value in enumerate(auc.resampled)]
    return Probed(rows, resampled)


def summary(rows: Sequence[Row]) -> dict[str, object]:
    """Where the splits are told apart best, and how the fits went."""
    best = max(rows, key=lambda row: row.auc)
    return {
        "states": len(rows),
        "best": {"layer": best.layer, "auc": best.auc, "low": best.auc_low, "high": best.auc_high},
        "mean_test_accuracy": float(np.mean([row.test_accuracy for row in rows])),
        "mean_selectivity": float(np.mean([row.selectivity for row in rows])),
        "mean_auc": float(np.mean([row.auc for row in rows])),
        "mean_control_accuracy": float(np.mean([row.control_accuracy for row in rows])),
        "majority_baseline": rows[0].majority_baseline,
        "fits": sum(row.fits for row in rows),
        "fits_converged": sum(row.fits_converged for row in rows),
    }
