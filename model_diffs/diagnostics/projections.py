"""Step 11's tables: how far inputs lie where a change reads, with intervals over documents."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model_diffs.activations.passes import SplitPass
from model_diffs.diagnostics import row_space, weight_results
from model_diffs.diagnostics.row_space import Changes, Shared, Target, Totals
from model_diffs.stats.intervals import RESAMPLES, document_weights, percentile_interval

Floats = NDArray[np.float64]
# Quantity → columns of its sum and of its number of tokens.
MEANS = {
    "proj_ratio": (row_space.RATIO, row_space.TOKENS),
    "proj_norm": (row_space.NORM, row_space.TOKENS),
    "effect": (row_space.EFFECT, row_space.EFFECT_TOKENS),
}
_PROJECTIONS = (
    *("forget_proj_ratio", "retain_proj_ratio", "forget_proj_norm", "retain_proj_norm"),
    *("projection_diff", "selectivity_ratio"),
)
_EFFECTS = ("forget_effect", "retain_effect", "effect_selectivity")
COLUMNS = (
    *("layer", "weight_type", *_PROJECTIONS, "random_proj_ratio", *_EFFECTS, "k", "name"),
    *(f"{name}_{end}" for name in (*_PROJECTIONS, *_EFFECTS) for end in ("low", "high")),
    *("forget_tokens", "retain_tokens", "forget_effect_tokens", "retain_effect_tokens"),
)
"""Of projection_metrics.csv; docs/row_space.md defines them."""
TEXT_COLUMNS = ("split", "text", "name", "proj_ratio_sum", "tokens", "effect_sum", "effect_tokens")
"""Of per_text.csv: Σ ‖P x‖/‖x‖, tokens with x ≠ 0, and over tokens whose
prefix is in this split only Σ ‖ΔW x‖/‖W x‖, those with W x ≠ 0."""
_SUMMARISED = (
    *("forget_proj_ratio", "retain_proj_ratio", "random_proj_ratio", "selectivity_ratio"),
    *_EFFECTS,
)


def text_table(
    names: Sequence[str], changed: str, totals: Totals, passes: Sequence[SplitPass]
) -> pd.DataFrame:
    """per_text.csv: sums over the tokens of a text, for the matrices `names`."""
    rows = []
    for one in passes:
        split, documents = one.split.name, one.tokens.documents.tolist()
        for name in names:
            lines = totals[split, name, changed].tolist()
            for text, (ratio, _, tokens, effect, moved) in zip(documents, lines, strict=True):
                rows.append((split, text, name, ratio, int(tokens), effect, int(moved)))
    return pd.DataFrame(rows, columns=[*TEXT_COLUMNS])


def metric_row(target: Target, changed: str, totals: Totals, seed: int) -> dict[str, Any]:
    """Row of projection_metrics.csv for one matrix that `changed` changed.

    Without cells where no token of a split has an input other than zero.
    """
    name, k = target.matrix.name, len(target.reads[changed].V_k)
    row = {
        "layer": target.matrix.layer,
        "weight_type": target.matrix.component,
        "random_proj_ratio": (k / target.matrix.shape[1]) ** 0.5,
        "k": k,
        "name": name,
    }
    found: dict[str, Floats] = {}
    # The splits are independent samples: documents of one are not paired with those of the other.
    for own_seed, split in enumerate(("forget", "retain"), start=seed):
        sums = totals[split, name, changed]
        row[f"{split}_tokens"] = int(sums[:, row_space.TOKENS].sum())
        row[f"{split}_effect_tokens"] = int(sums[:, row_space.EFFECT_TOKENS].sum())
        for quantity, columns in MEANS.items():
            found[f"{split}_{quantity}"] = _token_mean(sums, *columns, own_seed)
    forget, retain = found["forget_proj_ratio"], found["retain_proj_ratio"]
    found["projection_diff"] = forget - retain
    found["selectivity_ratio"] = _quotient(forget, retain)
    found["effect_selectivity"] = _quotient(found["forget_effect"], found["retain_effect"])
    for column, values in found.items():
        if np.isfinite(values[0]):
            row |= percentile_interval(values[0], values[1:]).cells(column)
    return row


def _token_mean(sums: Floats, column: int, count: int, seed: int) -> Floats:
    """A mean over tokens, and the same on each resample of the documents that have some.

    `[1 + resamples]`, NaN where no document has any.
    """
    used = sums[sums[:, count] > 0]
    if not len(used):
        return np.full(1 + RESAMPLES, np.nan)
    values, counts = used[:, column], used[:, count]
    weights = document_weights(len(used), seed)
    return np.append(values.sum() / counts.sum(), (weights @ values) / (weights @ counts))


def _quotient(forget: Floats, retain: Floats) -> Floats:
    """Forget over retain; NaN where retain is zero on some resample."""
    return forget / retain if (retain > 0).all() else np.full_like(forget, np.nan)


def summary(
    table: pd.DataFrame, changes: Changes, passes: Sequence[SplitPass], shared: Shared
) -> dict[str, Any]:
    """Counts, and means over the changed matrices, in total and by type."""
    left_out = {
        one.split.name: {
            "tokens": int(one.tokens.counts.sum()),
            "left_out": int((shared[one.split.name] - one.tokens.starts).clip(0).sum()),
        }
        for one in passes
    }
    return weight_results.summary(table, _SUMMARISED, "k", "weight_type") | {
        "matrices": changes.measured,
        "matrices_unchanged": changes.measured - len(table),
        "expert_output_matrices_left_out": changes.expert_outputs_left_out,
        "effect_positions_with_prefix_in_the_other_split": left_out,
    }
