"""Step 4's tables: norms of hidden states and of their differences, intervals over documents."""

from typing import Any

import numpy as np

from model_diffs.activations.saved import DifferenceStatistics, ModelStatistics
from model_diffs.stats.intervals import Interval, ratio_interval


def norm_rows(
    split: str,
    base: ModelStatistics,
    changed: ModelStatistics,
    difference: DifferenceStatistics,
    seed: int,
) -> list[dict[str, Any]]:
    """One row per hidden state: means over tokens, `_low` and `_high` their 95 % intervals.

    The change of a norm is resampled as one statistic, so its interval is paired: both models on
    the same resampled documents.
    """
    if not np.array_equal(base.tokens, changed.tokens):
        raise ValueError(f"{split}: the two models counted different tokens")
    plain = {
        "model_a_norm_L1": base.norm_l1,
        "model_a_norm_L2": base.norm_l2,
        "model_b_norm_L1": changed.norm_l1,
        "model_b_norm_L2": changed.norm_l2,
        "mean_dh_L1": difference.dh_l1,
        "mean_dh_L2": difference.dh_l2,
    }
    sums = plain | {
        "norm_change_L1": changed.norm_l1 - base.norm_l1,
        "norm_change_L2": changed.norm_l2 - base.norm_l2,
        "mean_dh_rel": difference.dh_rel,
        "mean_cosine": difference.cosine,
    }
    found = ratio_interval(np.stack(list(sums.values()), axis=-1), base.tokens, seed)
    rows = []
    for layer in range(base.norm_l1.shape[1]):
        cells = {
            name: Interval(*(part[layer, column] for part in found)).cells(name)
            for column, name in enumerate(sums)
        }
        row: dict[str, Any] = {"layer": layer, "split": split}
        row |= {name: cells[name].pop(name) for name in plain}  # their intervals come later
        for of_name in cells.values():
            row |= of_name
        rows.append(row | {"tokens": int(base.tokens.sum()), "texts": len(base.tokens)})
    return rows


def text_rows(split: str, difference: DifferenceStatistics) -> list[dict[str, Any]]:
    """One row per text (`text`: its position in the split), for resampling the same texts.

    `mean_dh_rel` is the mean over the text's tokens and over states 1, …, N, the outputs of the
    blocks; weighted by `tokens`, these average to the mean over texts.
    """
    moved = difference.dh_rel[:, 1:].mean(1) / difference.tokens
    return [
        {"split": split, "text": int(text), "tokens": int(tokens), "mean_dh_rel": float(mean)}
        for text, tokens, mean in zip(difference.documents, difference.tokens, moved, strict=True)
    ]
