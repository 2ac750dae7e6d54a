"""Gather the signature of a study from the tables under its outroot. No model and no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_diffs.report import conclusions
from model_diffs.report.axes import AXES
from model_diffs.report.conclusions import Found
from model_diffs.report.estimates import Estimate
from model_diffs.report.measures import MEASURES
from model_diffs.report.readers import READERS
from model_diffs.report.reading import NOT_RUN, Absent, Tables
from model_diffs.report.signature import Comparison, Missing, Signature, Value

Why = dict[tuple[str, str], Absent]


def _gather(
    tables: Tables, base: str, comparisons: Sequence[Comparison], seed: int
) -> tuple[Found, Why]:
    """Every estimate that the tables give, and by label and key why the others are absent."""
    found: dict[tuple[str, str], Estimate] = {}
    own: dict[str, Estimate] = {}
    absent: Why = {}
    for key, reader in READERS.items():
        for comparison in comparisons:
            try:
                found[comparison.label, key] = reader.read(tables, comparison, seed)
            except Absent as why:
                absent[comparison.label, key] = why
        if reader.read_model:
            try:
                own[key] = reader.read_model(tables, base, seed)
            except Absent as why:
                absent["", key] = why
    return Found(found, own), absent


def _defects(
    found: Found,
    absent: Why,
    known: Sequence[Missing],
    base: str,
    comparisons: Sequence[Comparison],
) -> list[Missing]:
    """Damaged tables, and values that nothing can be concluded from: lines for the list.

    A result that the list has already is not named twice.
    """
    lines = [(at, why.reason) for at, why in absent.items() if why.defect]
    lines += [(at, one.unpaired) for at, one in found.estimates.items() if one.unpaired]
    lines += [(("", key), one.unpaired) for key, one in found.base.items() if one.unpaired]
    said = {(one.step, one.comparison) for one in known}
    changed = {comparison.label: comparison.changed for comparison in comparisons}
    new = []
    for (label, key), reason in lines:
        if (READERS[key].step, label) in said:
            continue
        # The list names the model beside the reason: a reason that many have reads the same.
        for folder in filter(None, (label, changed.get(label))):
            reason = reason.replace(f"{folder}/", "")
        if not label:
            reason = f"{base}: {reason.replace(f'{base}/', '')}"
        new.append(Missing(READERS[key].step, READERS[key].script, label, reason))
    return list(dict.fromkeys(new))


def assemble(
    outroot: Path,
    base: str,
    comparisons: Sequence[Comparison],
    missing: Sequence[Missing],
    seed: int,
) -> Signature:
    """Values, intervals and conclusions of all comparisons with one base.

    Tables that are not there leave their measures out; so do damaged ones, which `missing` then
    names. `seed`: of the resamples; with the steps' seed, intervals are those of their tables.
    """
    found, absent = _gather(Tables(outroot), base, comparisons, seed)
    keys = {key for _, key in found.estimates}
    measures = [measure for measure in MEASURES if measure.key in keys]
    axes = [axis for axis in AXES if any(measure.axis == axis.key for measure in measures)]
    drawn = conclusions.draw(found, base, comparisons, measures)
    return Signature(
        base,
        comparisons,
        axes,
        measures,
        {at: one.as_value() for at, one in found.estimates.items()},
        {key: one.as_value() for key, one in found.base.items() if key in keys},
        drawn.sentences,
        [*missing, *_defects(found, absent, missing, base, comparisons), *drawn.unpaired],
        {at: why.reason for at, why in absent.items() if at[0] and why.reason != NOT_RUN},
        drawn.notes,
    )


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
