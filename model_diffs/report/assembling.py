"""Gather the signature of a study from the tables under its outroot. No model and no torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_diffs.report import from_weights
from model_diffs.report.axes import AXES
from model_diffs.report.estimates import Estimate
from model_diffs.report.measures import MEASURES
from model_diffs.report.reading import NOT_RUN, Absent, Tables
from model_diffs.report.signature import Comparison, Missing, Signature, Value

Reader = Callable[[Tables, Comparison], Estimate]

READERS: Mapping[str, Reader] = {
    **{
        name: getattr(from_weights, name)
        for name in (
            *("relative_change", "changed_share", "mlp_attention_ratio", "half_depth"),
            *("stable_rank", "effective_rank", "top10_share", "subspace_alignment"),
            "nullspace_ratio",
        )
    },
}


def assemble(
    outroot: Path,
    base: str,
    comparisons: Sequence[Comparison],
    missing: Sequence[Missing],
    seed: int,
) -> Signature:
    """Values, intervals and conclusions of all comparisons with one base.

    Tables that are not there leave their measures out; damaged ones too, and `missing` says so.
    """
    tables = Tables(outroot)
    found: dict[tuple[str, str], Estimate] = {}
    reasons: dict[tuple[str, str], str] = {}
    for comparison in comparisons:
        for key, read in READERS.items():
            try:
                found[comparison.label, key] = read(tables, comparison)
            except Absent as absent:
                if absent.reason != NOT_RUN:
                    reasons[comparison.label, key] = absent.reason
    values: dict[tuple[str, str], Value] = {at: one.as_value() for at, one in found.items()}
    measures = [m for m in MEASURES if any(key == m.key for _, key in values)]
    axes = [axis for axis in AXES if any(m.axis == axis.key for m in measures)]
    return Signature(base, comparisons, axes, measures, values, {}, [], missing, reasons=reasons)


def signature_rows(signature: Signature) -> list[dict[str, Any]]:
    """Rows of signature.csv: one per comparison, a column per measure.

    A measure with an interval anywhere has `<key>_low` and `<key>_high`; one that the base has
    too, `<key>_base`. What is not there is empty.
    """
    rows = []
    for comparison in signature.comparisons:
        row: dict[str, Any] = {
            "comparison": comparison.label,
            "base": comparison.base,
            "changed": comparison.changed,
            "filtered": comparison.filtered,
        }
        for measure in signature.measures:
            value = signature.values.get((comparison.label, measure.key))
            row |= _cells(measure.key, value, _has_interval(signature, measure.key))
            if measure.key in signature.base_values:
                own = signature.base_values[measure.key]
                row |= _cells(f"{measure.key}_base", own, own.low is not None)
        rows.append(row)
    return rows


def _has_interval(signature: Signature, key: str) -> bool:
    return any(at[1] == key and v.low is not None for at, v in signature.values.items())


def _cells(column: str, value: Value | None, interval: bool) -> dict[str, float | None]:
    cells = {column: value.value if value else None}
    if interval:
        cells[f"{column}_low"] = value.low if value else None
        cells[f"{column}_high"] = value.high if value else None
    return cells
