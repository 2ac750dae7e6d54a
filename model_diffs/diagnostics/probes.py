"""Step 13: linear probes of the last token's state, forget against retain.

L2-regularised logistic regression is invariant to rotations of its features, and its weights lie in
the span of the training states. With fewer documents than dimensions it is therefore solved in that
span, with as many features as documents; the classifier is the same.
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

    C: float
    """Inverse strength of the L2 penalty, as in scikit-learn."""
    max_iter: int
    standardize: bool
    """Features scaled to mean 0 and variance 1 on the training folds."""
    seed: int


_FIRST = ("test_accuracy", "train_accuracy", "selectivity", "auc")
COLUMNS = (
    *("layer", *_FIRST, "majority_baseline"),
    *(f"{name}_{end}" for name in _FIRST for end in ("low", "high")),
    *("control_accuracy", "control_accuracy_low", "control_accuracy_high"),
    *("fits", "fits_converged"),
)
"""Of probe_results.csv; docs/probes.md defines them."""


# ── one fit ───────────────────────────────────────────────────────────────────────────────────────


def standardise(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Scale to mean 0 and variance 1 on `train`; dimensions that are constant there become 0."""
    mean, scale = train.mean(0), train.std(0)
    # Compared exactly: where all texts end in one token, its embedding is the same to the last bit.
    varies = train.min(0) < train.max(0)
    scale[~varies] = 1.0
    scaled = (np.where(varies, (states - mean) / scale, 0.0) for states in (train, test))
    return next(scaled), next(scaled)


def rotate(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Coordinates in the span of the training states T `[n, d]`, and of others `[m, d]`, if n < d.

    With T Tᵀ = U Λ Uᵀ those of T are U √Λ, and those of another state x are x Tᵀ U/√Λ.
    """
    n, d = train.shape
    if d <= n:
        return train, test
    values, vectors = np.linalg.eigh(train @ train.T)
    kept = values > n * np.finfo(np.float64).eps * max(values[-1], 0.0)
    if not kept.any():  # all states are zero: only the intercept is left to fit
        return np.zeros((n, 1)), np.zeros((len(test), 1))
    roots = np.sqrt(values[kept])
    return vectors[:, kept] * roots, (test @ train.T) @ (vectors[:, kept] / roots)


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
    """The thread pools of the numerical libraries; finding them is slow."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def fit(train: Floats, labels: Labels, settings: Settings) -> Fit:
    """L2-regularised logistic regression on `[n, r]` by scikit-learn's Newton solvers.

    Conjugate gradients first, which is faster; the exact step where its line search fails. One
    thread: for products this small, synchronisation costs more than it saves.
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
    """Predictions of the probes of all folds, per document `[documents]`."""

    scores: Floats
    """Log-odds from the probe that was not trained on it."""
    correct: Floats
    """1 where their sign is correct."""
    train_correct: Floats
    """Share of the probes trained on it that classify it correctly."""
    control_correct: Floats
    """As `correct`, with labels shuffled before training."""
    converged: int


def shuffled_labels(plan: Design, seed: int) -> Labels:
    """Labels permuted within each fold, so that every fold keeps its class sizes.

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
        train, unseen = rotate(*(standardise(*split) if settings.standardize else split))
        probe = fit(train, plan.labels[~test], settings)
        chance = fit(train, control[~test], settings)
        scores[test] = probe.decide(unseen)
        correct[test] = (scores[test] > 0) == plan.labels[test]
        trained[~test] += (probe.decide(train) > 0) == plan.labels[~test]
        control_correct[test] = (chance.decide(unseen) > 0) == control[test]
        converged += probe.converged + chance.converged
    return OutOfFold(scores, correct, trained / (len(folds) - 1), control_correct, converged)


class Probed(NamedTuple):
    """Results of the probes of a model."""

    rows: list[dict[str, Any]]
    """Rows of probe_results.csv."""
    resampled: list[dict[str, float]]
    """Rows of auc_resamples.csv: the AUC of each hidden state on each resample of the documents.
    Models that read the same documents share the draws."""


def _row(layer: int, found: OutOfFold, auc: Estimate, plan: Design) -> dict[str, Any]:
    majority = max(plan.labels.mean(), 1 - plan.labels.mean())
    accuracy = cross_validation.mean(found.correct, plan)
    estimates = {
        "test_accuracy": accuracy,
        "train_accuracy": cross_validation.mean(found.train_correct, plan),
        "selectivity": Estimate(accuracy.value - majority, accuracy.resampled - majority),
        "auc": auc,
        "control_accuracy": cross_validation.mean(found.control_correct, plan),
    }
    row: dict[str, Any] = {"layer": layer, "majority_baseline": float(majority)}
    for name, estimate in estimates.items():
        row |= percentile_interval(*estimate).cells(name)
    # One probe per fold with true labels, one with shuffled ones.
    return row | {"fits": 2 * len(np.unique(plan.folds)), "fits_converged": found.converged}


def probe_rows(
    forget: NDArray[np.float32],
    retain: NDArray[np.float32],
    plan: Design,
    settings: Settings,
    name: str = "",
) -> Probed:
    """One row per hidden state from last-token states `[documents, S, d]` of both classes.

    `name` is for the progress bar.
    """
    control = shuffled_labels(plan, settings.seed)
    rows, resampled = [], []
    for layer in progress(range(forget.shape[1]), f"probes, {name}", unit="state"):
        states = np.concatenate([forget[:, layer], retain[:, layer]]).astype(np.float64)
        found = out_of_fold(states, plan, control, settings)
        auc = cross_validation.auc(found.scores, plan)
        rows.append(_row(layer, found, auc, plan))
        resampled += [
            {"layer": layer, "resample": draw, "auc": float(value)}
            for draw, value in enumerate(auc.resampled)
        ]
    return Probed(rows, resampled)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The hidden state with the best AUC, means over states, and how many fits converged."""
    best = max(rows, key=lambda row: row["auc"])
    means = ("test_accuracy", "selectivity", "auc", "control_accuracy")
    return {
        "states": len(rows),
        "best": {
            "layer": best["layer"],
            "auc": best["auc"],
            "low": best["auc_low"],
            "high": best["auc_high"],
        },
        **{f"mean_{name}": float(np.mean([row[name] for row in rows])) for name in means},
        "majority_baseline": rows[0]["majority_baseline"],
        "fits": sum(row["fits"] for row in rows),
        "fits_converged": sum(row["fits_converged"] for row in rows),
    }
