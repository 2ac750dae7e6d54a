"""Step 8: how far apart forget and retain documents lie in each hidden state.

Distances between centroids are quadratic forms of the documents' Gram matrix, so a thousand
resamples cost products of the documents' size, whatever the width of the model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model_diffs.activations.saved import Array, States, pick
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
AUC = METRICS.index("auc")
RESIDUAL = "cosine_distance_change_residual"
Floats = NDArray[np.float64]


def centroid_metrics(forget: Floats, retain: Floats, plan: Design) -> Estimate:
    """METRICS without the AUC for documents `[n, d]` and `[m, d]`: `[5]` and `[resamples, 5]`.

    With centroids c: trace of the between-class scatter nm/(n + m)·‖c_f − c_r‖², of the
    within-class scatter n·t_f + m·t_r, where t = mean ‖x‖² − ‖c‖² is the trace of a class's
    covariance. NaN where a centroid is zero (cosine) or no document differs from its centroid
    (variance ratio). On average, the squared norm of a resampled centroid exceeds ‖c‖² by t/n,
    which would push every interval above its estimate; this known excess is subtracted.
    """
    n, m = len(forget), len(retain)
    ff, rr, fr = forget @ forget.T, retain @ retain.T, forget @ retain.T

    def metrics(p: Floats, q: Floats, excess: tuple[Any, Any]) -> tuple[Floats, Floats, Floats]:
        """The metrics for weights `[k, n]` and `[k, m]`, and the traces of both covariances."""
        f2 = quadratic(p, ff, p) - excess[0]
        r2 = quadratic(q, rr, q) - excess[1]
        product = quadratic(p, fr, q)
        traces = p @ ff.diagonal() - f2, q @ rr.diagonal() - r2
        within = n * traces[0] + m * traces[1]
        f2, r2 = np.maximum(f2, 0.0), np.maximum(r2, 0.0)
        squared = np.maximum(f2 - 2 * product + r2, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = np.where((f2 > 0) & (r2 > 0), product / np.sqrt(f2 * r2), np.nan)
            ratio = np.where(within > 0, n * m / (n + m) * squared / within, np.nan)
        # Rounding, and the correction of resamples, may make a cosine slightly larger than one.
        columns = [np.maximum(1 - cosine, 0.0), np.sqrt(squared), ratio, np.sqrt(f2), np.sqrt(r2)]
        return np.stack(columns, axis=-1), *traces

    whole, *traces = metrics(np.full((1, n), 1 / n), np.full((1, m), 1 / m), (0.0, 0.0))
    excess = traces[0] / n, traces[1] / m
    return Estimate(whole[0], metrics(plan.forget / n, plan.retain / m, excess)[0])


def measure(pooled: Sequence[Array], plan: Design, name: str) -> Estimate:
    """METRICS of one model in each hidden state, `[S, 6]` and `[resamples, S, 6]`.

    `pooled`: forget and retain documents, each `[documents, S, d]`, mean-pooled over their tokens.
    `name` is for the progress bar. Raises BadInput where documents of each class are all alike.
    """
    values, resampled = [], []
    for state in progress(range(pooled[0].shape[1]), f"separation, {name}", unit="state"):
        x, y = (documents[:, state].astype(np.float64) for documents in pooled)
        centroids = centroid_metrics(x, y, plan)
        area = auc(out_of_fold(np.concatenate([x, y]), plan), plan)
        values.append(np.insert(centroids.value, AUC, area.value))
        resampled.append(np.insert(centroids.resampled, AUC, area.resampled, axis=1))
    return Estimate(np.stack(values), np.stack(resampled, axis=1))


def _table(found: Estimate, suffix: str = "") -> pd.DataFrame:
    """Per state every metric, followed by the ends of its interval; NaN where undefined."""
    interval = percentile_interval(found.value, found.resampled)
    columns = [f"{metric}{suffix}{end}" for metric in METRICS for end in ("", "_low", "_high")]
    table = pd.DataFrame(np.stack(interval, -1).reshape(len(found.value), -1), columns=columns)
    table.insert(0, "layer", range(len(table)))
    return table


def metric_table(model: str, found: Estimate) -> pd.DataFrame:
    """`separation_metrics.csv` for one model: intervals after all metrics."""
    ends = [f"{metric}_{end}" for metric in METRICS for end in ("low", "high")]
    return _table(found).assign(model=model)[["layer", "model", *METRICS, *ends]]


def change_table(a: Estimate, b: Estimate) -> pd.DataFrame:
    """`separation_changes.csv`: B − A, on the same resampled documents."""
    return _table(Estimate(b.value - a.value, b.resampled - a.resampled), "_change")


def add_residual(change: pd.DataFrame, residual: pd.DataFrame) -> pd.DataFrame:
    """The change of the cosine distance in the residual stream beside that in the hidden states."""
    found = change.copy()
    for end in ("", "_low", "_high"):
        found[f"{RESIDUAL}{end}"] = residual[f"cosine_distance_change{end}"]
    return found


def of_states(found: Estimate, which: States) -> Estimate:
    """`measure` of every state, for the chosen ones."""
    return Estimate(pick(found.value, which, 0), pick(found.resampled, which, 1))


def resampled_table(a: Estimate, b: Estimate) -> pd.DataFrame:
    """`separation_resamples.csv`: the change of the cosine distance on each resample.

    Mean over the states 1, …, N of a and b. The draws depend on the seed and the numbers of
    documents only, so rows of two comparisons with the same texts can be paired. NaN: a centroid
    is zero.
    """
    change = (b.resampled - a.resampled)[:, 1:, METRICS.index("cosine_distance")].mean(1)
    return pd.DataFrame({"resample": range(len(change)), "cosine_distance_change": change})


def summary(a: pd.DataFrame, b: pd.DataFrame, changes: pd.DataFrame) -> dict[str, Any]:
    """Per metric: means over states, the largest change, and in how many states it is significant.

    None for a metric that is undefined in all states.
    """

    def mean(values: pd.Series) -> float:
        return float(np.mean(values.dropna().to_numpy()))

    result: dict[str, Any] = dict.fromkeys(METRICS)
    for metric in METRICS:
        names = [f"{metric}_change{end}" for end in ("", "_low", "_high")]
        rows = changes[["layer", *names]].dropna(subset=names[0])
        rows.columns = ["layer", "change", "low", "high"]
        if len(rows):
            largest = rows.to_dict("records")[rows["change"].abs().argmax()]
            result[metric] = {
                "mean_a": mean(a[metric]),
                "mean_b": mean(b[metric]),
                "mean_change": mean(rows["change"]),
                # An interval is undefined where a resample's centroid is zero.
                "largest_change": {
                    name: None if pd.isna(value) else value for name, value in largest.items()
                },
                "states_with_interval_off_zero": int(((rows.low > 0) | (rows.high < 0)).sum()),
                "states": len(rows),
            }
    return result
