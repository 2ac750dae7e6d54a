"""Step 13: linear probes of the last token's state, forget against retain."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from model_diffs.activations.saved import pick
from model_diffs.data.questions import Question, mentioned
from model_diffs.models.devices import wide_home
from model_diffs.stats import cross_validation, logistic
from model_diffs.stats.cross_validation import Design, Estimate
from model_diffs.stats.intervals import percentile_interval

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
CPU = torch.device("cpu")


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


class Answers(NamedTuple):
    """What probes say of documents, per state S and label set L."""

    scores: Floats
    """`[S, L, documents]` log-odds by the probe that was not trained on the document."""
    correct: Floats
    """`[S, L, documents]` 1 where that is right."""
    trained: Floats
    """`[S, L, documents]` share of the other probes that are right."""
    converged: NDArray[np.int64]
    """`[S, L]` number of probes."""


def answers(
    states: Floats,
    folds: NDArray[np.int64],
    labels: Labels,
    settings: Settings,
    device: torch.device = CPU,
) -> Answers:
    """Probes of states `[S, documents, d]` for each label set `[L, documents]`, out of fold."""
    place, numbers = np.unique(folds, return_inverse=True)
    home = wide_home(device)
    fits = logistic.fit_folds(
        torch.from_numpy(states).to(home, torch.float64),
        torch.from_numpy(numbers).to(home),
        torch.from_numpy(labels).to(home),
        settings.C,
        settings.max_iter,
        settings.standardize,
    )
    shape = (len(states), len(place), len(labels))
    every = fits.scores.cpu().numpy().reshape(*shape, -1)  # [S, folds, L, documents]
    right = (every > 0) == labels
    own = numbers == np.arange(len(place))[:, None]  # [folds, documents]
    trained = (right & ~own[:, None]).sum(1) / (len(place) - 1)
    scores = np.take_along_axis(every, numbers[None, None, None], 1)[:, 0]
    correct = ((scores > 0) == labels).astype(np.float64)
    settled = fits.converged.cpu().numpy().reshape(shape).sum(1)
    return Answers(scores, correct, trained, settled)


def probe_states(
    states: Floats, plan: Design, settings: Settings, task: ControlTask, device: torch.device = CPU
) -> list[tuple[dict[str, Any], Estimate]]:
    """Cells of probe_results.csv for each hidden state of `[S, documents, d]`, and its AUC.

    Each document is tested by the probe that was not trained on it, and again with labels shuffled
    before training, and with those of the control task.
    """
    both = np.stack([plan.labels, shuffled_labels(plan, settings.seed)])
    if np.array_equal(task.folds, plan.folds):
        found = answers(states, plan.folds, np.stack([*both, task.labels]), settings, device)
        by_heart, settled = found.correct[:, 2], found.converged.sum(1)
    else:
        found = answers(states, plan.folds, both, settings, device)
        other = answers(states, task.folds, task.labels[None], settings, device)
        by_heart = other.correct[:, 0]
        settled = found.converged.sum(1) + other.converged.sum(1)
    fits = 2 * len(np.unique(plan.folds)) + len(np.unique(task.folds))
    majority, rows = max(plan.labels.mean(), 1 - plan.labels.mean()), []
    for state, told in enumerate(by_heart):
        auc = cross_validation.auc(found.scores[state, 0], plan)
        correct, chance = found.correct[state, 0], found.correct[state, 1]
        right = cross_validation.mean(correct, plan)
        estimates = {
            "test_accuracy": right,
            "train_accuracy": cross_validation.mean(found.trained[state, 0], plan),
            "selectivity": Estimate(*(part - majority for part in right)),
            "auc": auc,
            "control_accuracy": cross_validation.mean(chance, plan),
            "control_task_accuracy": cross_validation.mean(told, plan),
            "control_task_selectivity": cross_validation.mean(correct - told, plan),
        }
        # Per fold a probe with true labels, one with shuffled ones, one with the control task's.
        row = {"majority_baseline": majority, "fits": fits, "fits_converged": int(settled[state])}
        for name, estimate in estimates.items():
            row |= percentile_interval(*estimate).cells(name)
        rows.append((row, auc))
    return rows


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
    device: torch.device = CPU,
) -> Probed:
    """Probes of every last-token state, `[documents, N + 2, d]`: 0 to N, and N before the norm.

    Models that read the same documents share the draws of the resamples.
    """
    states = np.concatenate([forget, retain]).swapaxes(0, 1)
    found = probe_states(states, plan, settings, task, device)
    areas = [auc.resampled for _, auc in found]
    *before, normed, unnormed = (row for row, _ in found)
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
