"""Step 8: how far apart forget and retain documents lie in each hidden state.

Distances between centroids are quadratic forms of the documents' Gram matrix, so a thousand
resamples cost products of the documents' size, whatever the width of the model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.activations.store import ModelStatistics
from model_diffs.core.progress import progress
from model_diffs.stats.cross_validation import Design, Estimate, auc, quadratic
from model_diffs.stats.discriminant import out_of_fold
from model_diffs.stats.intervals import percentile_interval

METRICS = (
    "cosine_distance",
    "euclidean_distance",
    "auc",
    "variance_ratio",
    "forget_centroid_norm",
    "retain_centroid_norm",
)
Floats = NDArray[np.float64]


def metric_columns() -> list[str]:
    """Columns of `separation_metrics.csv`, in order."""
    ends = [f"{metric}_{end}" for metric in METRICS for end in ("low", "high")]
    return ["layer", "model", *METRICS, *ends]


def change_columns() -> list[str]:
    """Columns of `separation_changes.csv`, in order."""
    parts = [[f"{metric}_change{end}" for end in ("", "_low", "_high")] for metric in METRICS]
    return ["layer", *(column for part in parts for column in part)]


class Moments(NamedTuple):
    """Of both classes' documents, for one or many weightings of them."""

    forget: Floats
    """‖c_f‖², squared norm of the centroid."""
    retain: Floats
    product: Floats
    """c_f · c_r."""
    forget_square: Floats
    """Mean ‖x‖² of the documents."""
    retain_square: Floats

    def traces(self) -> tuple[Floats, Floats]:
        """Trace of each class's covariance: mean ‖x‖² − ‖c‖²."""
        return self.forget_square - self.forget, self.retain_square - self.retain

    def metrics(self, sizes: tuple[int, int]) -> Floats:
        """`[…, 5]`: METRICS without the AUC, of classes of these sizes.

        Trace of the between-class scatter is n_f n_r/(n_f + n_r)·‖c_f − c_r‖², that of the
        within-class scatter the sum of n·trace. NaN where a centroid is zero (cosine) or no
        document differs from its centroid (variance ratio).
        """
        n, m = sizes
        forget, retain = np.maximum(self.forget, 0.0), np.maximum(self.retain, 0.0)
        squared = np.maximum(self.forget - 2 * self.product + self.retain, 0.0)
        between = n * m / (n + m) * squared
        within = n * self.traces()[0] + m * self.traces()[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            directed = (forget > 0) & (retain > 0)
            cosine = np.where(directed, self.product / np.sqrt(forget * retain), np.nan)
            ratio = np.where(within > 0, between / within, np.nan)
        # Rounding, and the correction of resamples, may pass a cosine of one by a little.
        distance = np.maximum(1 - cosine, 0.0)
        norms = np.sqrt(forget), np.sqrt(retain)
        return np.stack([distance, np.sqrt(squared), ratio, *norms], axis=-1)


def centroid_metrics(forget: Floats, retain: Floats, plan: Design) -> Estimate:
    """METRICS without the AUC for documents `[n, d]` and `[m, d]`: `[5]` and `[resamples, 5]`.

    A resampled centroid has noise of its own, which lengthens its square by trace/n on average
    and would push every interval above its estimate; that known excess is taken off.
    """
    n, m = len(forget), len(retain)
    ff, rr, fr = forget @ forget.T, retain @ retain.T, forget @ retain.T

    def moments(p: Floats, q: Floats) -> Moments:
        forms = quadratic(p, ff, p), quadratic(q, rr, q), quadratic(p, fr, q)
        return Moments(*forms, p @ ff.diagonal(), q @ rr.diagonal())

    whole = moments(np.full((1, n), 1 / n), np.full((1, m), 1 / m))
    resampled = moments(plan.forget / n, plan.retain / m)
    excess = whole.traces()[0] / n, whole.traces()[1] / m
    resampled = resampled._replace(
        forget=resampled.forget - excess[0], retain=resampled.retain - excess[1]
    )
    return Estimate(whole.metrics((n, m))[0], resampled.metrics((n, m)))


def measure(forget: ModelStatistics, retain: ModelStatistics, plan: Design, name: str) -> Estimate:
    """METRICS of one model in each hidden state, `[S, 6]` and `[resamples, S, 6]`.

    Documents are mean-pooled over their tokens (`pooled` `[documents, S, d]`). `name` is for the
    progress bar. Raises BadInput where the documents within each class are all alike.
    """
    states = []
    for state in progress(range(forget.pooled.shape[1]), f"separation, {name}", unit="state"):
        x, y = (one.pooled[:, state].astype(np.float64) for one in (forget, retain))
        centroids = centroid_metrics(x, y, plan)
        found = auc(out_of_fold(np.concatenate([x, y]), plan), plan)
        place = METRICS.index("auc")
        states.append(
            Estimate(
                np.insert(centroids.value, place, found.value),
                np.insert(centroids.resampled, place, found.resampled, axis=1),
            )
        )
    values, resampled = zip(*states, strict=True)
    return Estimate(np.stack(values), np.stack(resampled, axis=1))


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _cells(found: Estimate, suffix: str = "") -> list[dict[str, Any]]:
    """Per state every metric with the ends of its interval; None where it is undefined."""
    interval = percentile_interval(found.value, found.resampled)
    rows: list[dict[str, Any]] = []
    for layer in range(len(found.value)):
        row: dict[str, Any] = {"layer": layer}
        for i, metric in enumerate(METRICS):
            for end, values in zip(("", "_low", "_high"), interval, strict=True):
                row[f"{metric}{suffix}{end}"] = _defined(values[layer, i])
        rows.append(row)
    return rows


def metric_rows(model: str, found: Estimate) -> list[dict[str, Any]]:
    """Rows of `separation_metrics.csv` for one model."""
    return [{**row, "model": model} for row in _cells(found)]


def change_rows(a: Estimate, b: Estimate) -> list[dict[str, Any]]:
    """Rows of `separation_changes.csv`: B − A, on the same resampled documents."""
    return _cells(Estimate(b.value - a.value, b.resampled - a.resampled), "_change")


def resampled_rows(a: Estimate, b: Estimate) -> list[dict[str, Any]]:
    """Rows of `separation_resamples.csv`: the change of the cosine distance on each resample.

    Mean over the hidden states 1, …, N. The draws depend on the seed and the numbers of documents
    only, so the lines of two comparisons with the same texts belong together. Empty where a
    centroid is zero.
    """
    change = (b.resampled - a.resampled)[:, 1:, METRICS.index("cosine_distance")].mean(1)
    return [
        {"resample": draw, "cosine_distance_change": _defined(value)}
        for draw, value in enumerate(change)
    ]


def summary(
    a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], changes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Per metric: means over states, the largest change and in how many states it is clear."""
    result: dict[str, Any] = {}
    for metric in METRICS:
        column = f"{metric}_change"
        rows = [row for row in changes if row[column] is not None]
        if not rows:
            result[metric] = None
            continue
        largest = max(rows, key=lambda row: abs(row[column]))
        clear = [r for r in rows if r[f"{column}_low"] > 0 or r[f"{column}_high"] < 0]
        result[metric] = {
            "mean_a": float(np.mean([row[metric] for row in a if row[metric] is not None])),
            "mean_b": float(np.mean([row[metric] for row in b if row[metric] is not None])),
            "mean_change": float(np.mean([row[column] for row in rows])),
            "largest_change": {
                "layer": largest["layer"],
                "change": largest[column],
                "low": largest[f"{column}_low"],
                "high": largest[f"{column}_high"],
            },
            "states_with_interval_off_zero": len(clear),
            "states": len(rows),
        }
    return result
