"""Step 11's table: how far inputs lie where a change reads, with intervals over documents."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from model_diffs.diagnostics.row_space import EFFECT, EFFECT_TOKENS, NORM, RATIO, TOKENS, Target
from model_diffs.stats.intervals import (
    Interval,
    document_weights,
    percentile_interval,
    ratio_interval,
)

Totals = Mapping[tuple[str, str], np.ndarray]


class Row(NamedTuple):
    """One MLP matrix of one comparison. Means over tokens; `_low`, `_high` are 95 % intervals.

    None where no token of a split has an input other than zero.
    """

    layer: int
    weight_type: str
    forget_proj_ratio: float | None
    retain_proj_ratio: float | None
    forget_proj_norm: float | None
    retain_proj_norm: float | None
    projection_diff: float | None
    selectivity_ratio: float | None
    random_proj_ratio: float
    """√(k/d), of an input in no particular direction."""
    forget_effect: float | None
    """Mean ‖dW x‖ / ‖W x‖."""
    retain_effect: float | None
    effect_selectivity: float | None
    k: int
    name: str
    forget_proj_ratio_low: float | None
    forget_proj_ratio_high: float | None
    retain_proj_ratio_low: float | None
    retain_proj_ratio_high: float | None
    forget_proj_norm_low: float | None
    forget_proj_norm_high: float | None
    retain_proj_norm_low: float | None
    retain_proj_norm_high: float | None
    projection_diff_low: float | None
    projection_diff_high: float | None
    selectivity_ratio_low: float | None
    selectivity_ratio_high: float | None
    forget_effect_low: float | None
    forget_effect_high: float | None
    retain_effect_low: float | None
    retain_effect_high: float | None
    effect_selectivity_low: float | None
    effect_selectivity_high: float | None
    forget_tokens: int
    """Tokens whose input to this matrix is not zero."""
    retain_tokens: int


class TextRow(NamedTuple):
    """One text and one matrix: sums over its tokens, for comparisons that resample texts."""

    split: str
    text: int
    """Its position in the split."""
    name: str
    proj_ratio_sum: float
    """Σ ‖P x‖/‖x‖."""
    tokens: int
    """With x ≠ 0."""
    effect_sum: float
    """Σ ‖ΔW x‖/‖W x‖."""
    effect_tokens: int
    """With W x ≠ 0."""


def text_rows(
    targets: Sequence[Target],
    changed: str,
    totals: Mapping[str, Totals],
    documents: Mapping[str, Iterable[int]],
) -> list[TextRow]:
    """Rows of per_text.csv; `totals` and the texts' positions by split."""
    return [
        TextRow(
            split,
            int(text),
            target.matrix.name,
            float(line[RATIO]),
            int(line[TOKENS]),
            float(line[EFFECT]),
            int(line[EFFECT_TOKENS]),
        )
        for split, found in totals.items()
        for target in targets
        if changed in target.reads
        for text, line in zip(documents[split], found[target.matrix.name, changed], strict=True)
    ]


def rows_of(
    targets: Sequence[Target], changed: str, forget: Totals, retain: Totals, seed: int
) -> list[Row]:
    """One row per matrix that `changed` changed."""
    return [
        _row(target, changed, forget, retain, seed) for target in targets if changed in target.reads
    ]


def _row(target: Target, changed: str, forget: Totals, retain: Totals, seed: int) -> Row:
    name, k = target.matrix.name, target.reads[changed].k
    # The splits are independent samples: documents of one are not paired with those of the other.
    sides = {"forget": (forget[name, changed], seed), "retain": (retain[name, changed], seed + 1)}
    found: dict[str, float | None] = {}
    for split, (sums, own_seed) in sides.items():
        for label, column, count in (
            ("proj_ratio", RATIO, TOKENS),
            ("proj_norm", NORM, TOKENS),
            ("effect", EFFECT, EFFECT_TOKENS),
        ):
            used = sums[sums[:, count] > 0]
            mean = ratio_interval(used[:, column], used[:, count], own_seed) if len(used) else None
            _put(found, f"{split}_{label}", mean)
    ratios, effects = (
        [_resampled(sums, column, count, own_seed) for sums, own_seed in sides.values()]
        for column, count in ((RATIO, TOKENS), (EFFECT, EFFECT_TOKENS))
    )
    _put(found, "projection_diff", _difference(*ratios))
    _put(found, "selectivity_ratio", _quotient(*ratios))
    _put(found, "effect_selectivity", _quotient(*effects))
    return Row(
        layer=target.matrix.layer,
        weight_type=target.matrix.component,
        random_proj_ratio=(k / target.matrix.shape[1]) ** 0.5,
        k=k,
        name=name,
        forget_tokens=int(forget[name, changed][:, TOKENS].sum()),
        retain_tokens=int(retain[name, changed][:, TOKENS].sum()),
        **found,
    )


def _put(found: dict[str, float | None], column: str, interval: Interval | None) -> None:
    ends = (None, None, None) if interval is None else tuple(float(v) for v in interval)
    for name, value in zip((column, f"{column}_low", f"{column}_high"), ends, strict=True):
        found[name] = value


class _Mean(NamedTuple):
    value: float
    resampled: np.ndarray


def _resampled(sums: np.ndarray, column: int, count: int, seed: int) -> _Mean | None:
    """A mean over tokens, and the same on each resample of documents."""
    used = sums[sums[:, count] > 0]
    if not len(used):
        return None
    weights = document_weights(len(used), seed)
    resampled = (weights @ used[:, column]) / (weights @ used[:, count])
    return _Mean(float(used[:, column].sum() / used[:, count].sum()), resampled)


def _difference(forget: _Mean | None, retain: _Mean | None) -> Interval | None:
    if forget is None or retain is None:
        return None
    return percentile_interval(forget.value - retain.value, forget.resampled - retain.resampled)


def _quotient(forget: _Mean | None, retain: _Mean | None) -> Interval | None:
    """Forget over retain; None where retain is zero somewhere among the resamples."""
    if forget is None or retain is None or not (retain.resampled > 0).all() or not retain.value:
        return None
    return percentile_interval(forget.value / retain.value, forget.resampled / retain.resampled)
