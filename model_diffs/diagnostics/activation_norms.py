"""Step 4's table: norms of hidden states, and how far they moved, with intervals over documents."""

from typing import Any, NamedTuple

import numpy as np

from model_diffs.activations.store import DifferenceStatistics, ModelStatistics
from model_diffs.stats.intervals import Interval, ratio_interval


class Row(NamedTuple):
    """One hidden state of one split. Means are over tokens; `_low`, `_high` are 95 % intervals."""

    layer: int
    split: str
    model_a_norm_L1: float
    model_a_norm_L2: float
    model_b_norm_L1: float
    model_b_norm_L2: float
    mean_dh_L1: float
    mean_dh_L2: float
    model_a_norm_L1_low: float
    model_a_norm_L1_high: float
    model_a_norm_L2_low: float
    model_a_norm_L2_high: float
    model_b_norm_L1_low: float
    model_b_norm_L1_high: float
    model_b_norm_L2_low: float
    model_b_norm_L2_high: float
    mean_dh_L1_low: float
    mean_dh_L1_high: float
    mean_dh_L2_low: float
    mean_dh_L2_high: float
    norm_change_L1: float
    norm_change_L1_low: float
    norm_change_L1_high: float
    norm_change_L2: float
    norm_change_L2_low: float
    norm_change_L2_high: float
    mean_dh_rel: float
    mean_dh_rel_low: float
    mean_dh_rel_high: float
    mean_cosine: float
    mean_cosine_low: float
    mean_cosine_high: float
    tokens: int
    texts: int


class TextRow(NamedTuple):
    """One text: how far its states moved, for comparisons that resample the same texts."""

    split: str
    text: int
    """Its position in the split."""
    tokens: int
    mean_dh_rel: float
    """Mean over its tokens and over the hidden states 1, …, N, the outputs of the blocks."""


def norm_rows(
    split: str,
    base: ModelStatistics,
    changed: ModelStatistics,
    difference: DifferenceStatistics,
    seed: int,
) -> list[Row]:
    """One row per hidden state.

    The change of a norm is resampled as one statistic, so its interval is paired: both models on
    the same resampled documents.
    """
    if not np.array_equal(base.tokens, changed.tokens):
        raise ValueError(f"{split}: the two models counted different tokens")
    sums = {
        "model_a_norm_L1": base.norm_l1,
        "model_a_norm_L2": base.norm_l2,
        "model_b_norm_L1": changed.norm_l1,
        "model_b_norm_L2": changed.norm_l2,
        "mean_dh_L1": difference.dh_l1,
        "mean_dh_L2": difference.dh_l2,
        "norm_change_L1": changed.norm_l1 - base.norm_l1,
        "norm_change_L2": changed.norm_l2 - base.norm_l2,
        "mean_dh_rel": difference.dh_rel,
        "mean_cosine": difference.cosine,
    }
    found = ratio_interval(np.stack(list(sums.values()), axis=-1), base.tokens, seed)
    rows = []
    for layer in range(base.norm_l1.shape[1]):
        values: dict[str, Any] = {}
        for column, name in enumerate(sums):
            values |= _named(name, Interval(*(part[layer, column] for part in found)))
        values |= {"tokens": int(base.tokens.sum()), "texts": len(base.tokens)}
        rows.append(Row(layer=layer, split=split, **values))
    return rows


def text_rows(split: str, difference: DifferenceStatistics) -> list[TextRow]:
    """One row per text. Their means, each by its tokens, give the mean of `mean_dh_rel` over
    states 1, …, N.
    """
    moved = difference.dh_rel[:, 1:].mean(1) / difference.tokens
    return [
        TextRow(split, int(text), int(tokens), float(mean))
        for text, tokens, mean in zip(difference.documents, difference.tokens, moved, strict=True)
    ]


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {
        name: float(interval.mean),
        f"{name}_low": float(interval.low),
        f"{name}_high": float(interval.high),
    }
