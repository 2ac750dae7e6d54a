"""Step 11's tables: how far inputs lie where a change reads, with intervals over documents."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from model_diffs.diagnostics.row_space import (
    EFFECT,
    EFFECT_TOKENS,
    NORM,
    RATIO,
    TOKENS,
    Changes,
    Target,
    Totals,
)
from model_diffs.stats.cross_validation import Estimate
from model_diffs.stats.intervals import document_weights, percentile_interval

# Quantity → columns of its sum and of its number of tokens.
MEANS = {
    "proj_ratio": (RATIO, TOKENS),
    "proj_norm": (NORM, TOKENS),
    "effect": (EFFECT, EFFECT_TOKENS),
}
_PROJECTIONS = (
    *("forget_proj_ratio", "retain_proj_ratio", "forget_proj_norm", "retain_proj_norm"),
    *("projection_diff", "selectivity_ratio"),
)
_EFFECTS = ("forget_effect", "retain_effect", "effect_selectivity")
COLUMNS = (
    *("layer", "weight_type", *_PROJECTIONS, "random_proj_ratio", *_EFFECTS, "k", "name"),
    *(f"{name}_{end}" for name in (*_PROJECTIONS, *_EFFECTS) for end in ("low", "high")),
    *("forget_tokens", "retain_tokens"),
)
"""Of projection_metrics.csv; docs/row_space.md defines them."""
TEXT_COLUMNS = ("split", "text", "name", "proj_ratio_sum", "tokens", "effect_sum", "effect_tokens")
"""Of per_text.csv: Σ ‖P x‖/‖x‖, tokens with x ≠ 0, Σ ‖ΔW x‖/‖W x‖, tokens with W x ≠ 0."""
_SUMMARISED = (
    *("forget_proj_ratio", "retain_proj_ratio", "random_proj_ratio", "selectivity_ratio"),
    *_EFFECTS,
)


def text_rows(
    targets: Sequence[Target],
    changed: str,
    totals: Mapping[str, Totals],
    documents: Mapping[str, Iterable[int]],
) -> list[dict[str, Any]]:
    """Rows of per_text.csv: sums over the tokens of a text, so that texts can be resampled.

    `totals` and the positions of the texts by split.
    """
    return [
        {
            "split": split,
            "text": int(text),
            "name": target.matrix.name,
            "proj_ratio_sum": float(line[RATIO]),
            "tokens": int(line[TOKENS]),
            "effect_sum": float(line[EFFECT]),
            "effect_tokens": int(line[EFFECT_TOKENS]),
        }
        for split, found in totals.items()
        for target in targets
        if changed in target.reads
        for text, line in zip(documents[split], found[target.matrix.name, changed], strict=True)
    ]


def metric_rows(
    targets: Sequence[Target], changed: str, totals: Mapping[str, Totals], seed: int
) -> list[dict[str, Any]]:
    """Rows of projection_metrics.csv: one per matrix that `changed` changed.

    None where no token of a split has an input other than zero.
    """
    return [_row(target, changed, totals, seed) for target in targets if changed in target.reads]


def _row(target: Target, changed: str, totals: Mapping[str, Totals], seed: int) -> dict[str, Any]:
    name, k = target.matrix.name, target.reads[changed].k
    found: dict[str, Estimate | None] = {}
    row = {
        "layer": target.matrix.layer,
        "weight_type": target.matrix.component,
        "random_proj_ratio": (k / target.matrix.shape[1]) ** 0.5,
        "k": k,
        "name": name,
    }
    # The splits are independent samples: documents of one are not paired with those of the other.
    for own_seed, split in enumerate(("forget", "retain"), start=seed):
        sums = totals[split][name, changed]
        row[f"{split}_tokens"] = int(sums[:, TOKENS].sum())
        for quantity, columns in MEANS.items():
            found[f"{split}_{quantity}"] = _token_mean(sums, *columns, own_seed)
    forget, retain = found["forget_proj_ratio"], found["retain_proj_ratio"]
    found["projection_diff"] = None
    if forget and retain:
        found["projection_diff"] = Estimate(
            forget.value - retain.value, forget.resampled - retain.resampled
        )
    found["selectivity_ratio"] = _quotient(forget, retain)
    found["effect_selectivity"] = _quotient(found["forget_effect"], found["retain_effect"])
    for column, one in found.items():
        row |= percentile_interval(*one).cells(column) if one else {column: None}
    return row


def _token_mean(sums: np.ndarray, column: int, count: int, seed: int) -> Estimate | None:
    """A mean over tokens, and the same on each resample of the documents that have some."""
    used = sums[sums[:, count] > 0]
    if not len(used):
        return None
    weights = document_weights(len(used), seed)
    resampled = (weights @ used[:, column]) / (weights @ used[:, count])
    return Estimate(used[:, column].sum() / used[:, count].sum(), resampled)


def _quotient(forget: Estimate | None, retain: Estimate | None) -> Estimate | None:
    """Forget over retain; None where retain is zero on some resample."""
    if not forget or not retain or not (retain.resampled > 0).all() or not retain.value:
        return None
    return Estimate(forget.value / retain.value, forget.resampled / retain.resampled)


def summary(table: pd.DataFrame, changes: Changes, changed: str) -> dict[str, Any]:
    """Counts, and means over the changed matrices, in total and by type."""

    def means(rows: pd.DataFrame) -> dict[str, Any]:
        found = rows[list(_SUMMARISED)].astype(float).mean().dropna()
        return {"matrices": len(rows), **{str(k): float(v) for k, v in found.items()}}

    kinds = [str(kind) for kind in table["weight_type"].unique()]
    return {
        "matrices_changed": len(table),
        "matrices_unchanged": changes.unchanged[changed],
        "expert_output_matrices_left_out": changes.expert_outputs_left_out,
        "means_over_changed_matrices": means(table) if len(table) else {},
        "by_weight_type": {kind: means(table[table["weight_type"] == kind]) for kind in kinds},
    }
