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
import pandas as pd
from numpy.typing import NDArray

from model_diffs.activations.saved import pick
from model_diffs.core.progress import progress
from model_diffs.data.questions import Question, mentioned
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
    *(f"control_task_{name}{end}" for name in ("accuracy", "selectivity")
      for end in ("", "_low", "_high")),
    *("auc_residual", "auc_residual_low", "auc_residual_high"),
)  # fmt: skip
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


@cache
def _threads() -> Any:
    """The thread pools of the numerical libraries; finding them is slow."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def fit(train: Floats, labels: Labels, settings: Settings) -> tuple[Any, bool]:
    """scikit-learn's `LogisticRegression` of forget on `[n, r]`, and whether it converged.

    Newton steps by conjugate gradients first, which is faster; exact ones where that line search
    fails. One thread: for products this small, synchronisation costs more than it saves.
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
    return model, converged


# ── all layers, out of fold ───────────────────────────────────────────────────────────────────────


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


class ControlTask(NamedTuple):
    """Labels that say nothing but which entity a document is about (Hewitt & Liang 2019)."""

    labels: Labels
    """`[documents]`, drawn at random once per type, here per entity: the same wherever it is."""
    folds: NDArray[np.int64]
    """`[documents]`: documents of one entity are trained and tested on, so that a probe with room
    for it can learn each entity's label by heart."""


def control_task(types: NDArray[np.int64], plan: Design, seed: int) -> ControlTask:
    """Random labels of each type, with about the share of forget documents; folds by document.

    `plan`: with folds that divide types. Both labels are given to at least one type.
    """
    count = int(types.max()) + 1
    positive = min(max(round(plan.labels.mean() * count), 1), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return ControlTask(np.isin(types, order[:positive]), plan.folds)


def folds_of(
    forget: Sequence[str],
    retain: Sequence[str],
    questions: Sequence[Question],
    folds: int,
    seed: int,
) -> tuple[Design, ControlTask, str]:
    """Folds of documents, the control task, and by what the folds divide documents.

    Documents that name an entity of the questions in common are in one fold. Where none names any,
    or a fold would lack a class, the document is the unit, and the type of the control task.
    """
    mixed = cross_validation.design(len(forget), len(retain), folds, seed)
    named = mentioned([*forget, *retain], questions)
    if not any(named):
        by = "document: no text names an entity of a question"
        return mixed, control_task(np.arange(len(named)), mixed, seed), by
    groups = cross_validation.groups(named)
    place = cross_validation.whole_groups(groups, mixed.labels, folds, seed)
    if place is None:
        by = "document: a fold of whole entities would lack a class"
        return mixed, control_task(np.arange(len(named)), mixed, seed), by
    plan = cross_validation.design(len(forget), len(retain), folds, seed, place)
    return plan, control_task(groups, mixed, seed), "entity"


def task_accuracy(states: Floats, task: ControlTask, settings: Settings) -> tuple[Floats, int]:
    """Which documents a probe that was not trained on them labels as the control task does, and how
    many probes converged."""
    correct, converged = np.zeros(len(states)), 0
    for fold in np.unique(task.folds):
        test = task.folds == fold
        split = states[~test], states[test]
        labels = task.labels[~test]
        if labels.all() or not labels.any():  # one label to train on: it is what a probe predicts
            correct[test], settled = task.labels[test] == labels[0], True
        else:
            train, unseen = rotate(*(standardise(*split) if settings.standardize else split))
            probe, settled = fit(train, labels, settings)
            correct[test] = probe.predict(unseen) == task.labels[test]
        converged += settled
    return correct, converged


def probe_state(
    states: Floats, plan: Design, settings: Settings, task: ControlTask
) -> tuple[dict[str, Any], Estimate]:
    """Cells of probe_results.csv for one hidden state `[documents, d]`, and its AUC.

    Each document is tested by the probe that was not trained on it, and again with labels shuffled
    before training, and with those of the control task; its training accuracy is the share of the
    other probes that are right.
    """
    labels, folds = plan.labels, np.unique(plan.folds)
    control = shuffled_labels(plan, settings.seed)
    scores, correct, control_correct, trained = np.zeros((4, len(states)))
    converged = 0
    for fold in folds:
        test = plan.folds == fold
        split = states[~test], states[test]
        train, unseen = rotate(*(standardise(*split) if settings.standardize else split))
        probe, settled = fit(train, labels[~test], settings)
        chance, chance_settled = fit(train, control[~test], settings)
        scores[test] = probe.decision_function(unseen)
        correct[test] = (scores[test] > 0) == labels[test]
        trained[~test] += probe.predict(train) == labels[~test]
        control_correct[test] = chance.predict(unseen) == control[test]
        converged += settled + chance_settled
    auc, majority = cross_validation.auc(scores, plan), max(labels.mean(), 1 - labels.mean())
    test_correct = cross_validation.mean(correct, plan)
    by_heart, task_converged = task_accuracy(states, task, settings)
    converged += task_converged
    estimates = {
        "test_accuracy": test_correct,
        "train_accuracy": cross_validation.mean(trained / (len(folds) - 1), plan),
        "selectivity": Estimate(*(part - majority for part in test_correct)),
        "auc": auc,
        "control_accuracy": cross_validation.mean(control_correct, plan),
        "control_task_accuracy": cross_validation.mean(by_heart, plan),
        "control_task_selectivity": cross_validation.mean(correct - by_heart, plan),
    }
    # Per fold a probe with true labels, one with shuffled ones, one with those of the control task.
    row = {"majority_baseline": majority, "fits": 3 * len(folds), "fits_converged": converged}
    for name, estimate in estimates.items():
        row |= percentile_interval(*estimate).cells(name)
    return row, auc


class Probed(NamedTuple):
    """Probes of every state of one model."""

    table: pd.DataFrame
    """probe_results.csv: a row per hidden state, 0 to N."""
    resamples: pd.DataFrame
    """auc_resamples.csv."""
    residual: pd.DataFrame
    """`table` with state N before the final norm."""


def probe_tables(
    forget: NDArray[np.float32],
    retain: NDArray[np.float32],
    plan: Design,
    settings: Settings,
    task: ControlTask,
    name: str = "",
) -> Probed:
    """Probes of every last-token state, `[documents, N + 2, d]`: 0 to N, and N before the norm.

    Models that read the same documents share the draws of the resamples. `name` is for the
    progress bar.
    """
    rows, areas = [], []
    for state in progress(range(forget.shape[1]), f"probes, {name}", unit="state"):
        states = np.concatenate([forget[:, state], retain[:, state]]).astype(np.float64)
        row, auc = probe_state(states, plan, settings, task)
        rows.append(row)
        areas.append(auc.resampled)
    *before, normed, unnormed = rows
    table, residual = (
        pd.DataFrame([*before, last]).reset_index(names="layer") for last in (normed, unnormed)
    )
    for end in ("", "_low", "_high"):
        table[f"auc_residual{end}"] = residual[f"auc{end}"]
    for count in ("fits", "fits_converged"):  # in the row of state N, of both
        table.loc[len(table) - 1, count] += unnormed[count]
    hidden, stream = (pick(np.stack(areas), which, 0) for which in ("hidden", "residual"))
    layers, resamples = np.indices(hidden.shape)
    drawn = {"layer": layers, "resample": resamples, "auc": hidden, "auc_residual": stream}
    flat = pd.DataFrame({key: np.asarray(one).ravel() for key, one in drawn.items()})
    return Probed(table[[*COLUMNS]], flat, residual)


def summary(found: Probed) -> dict[str, Any]:
    """The best AUC, means over states 1 to N (before the norm), and how many fits converged."""
    table, states = found.table, found.residual[1:]
    best = table.iloc[int(table["auc"].argmax())]
    means = ("test_accuracy", "selectivity", "auc", "control_accuracy", "control_task_selectivity")
    return {
        "states": len(table),
        "best": {"layer": int(best["layer"]), "auc": best["auc"],
                 "low": best["auc_low"], "high": best["auc_high"]},
        **{f"mean_{name}": float(states[name].mean()) for name in means},
        "majority_baseline": float(table["majority_baseline"].iloc[0]),
        "fits": int(table["fits"].sum()),
        "fits_converged": int(table["fits_converged"].sum()),
    }  # fmt: skip
