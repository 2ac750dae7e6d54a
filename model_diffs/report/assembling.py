"""Gather the signature of a study from the tables under its outroot. No model and no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_diffs.core.step import Script
from model_diffs.core.tables import NOT_RUN, Absent, Place, Tables
from model_diffs.report import conclusions, reductions
from model_diffs.report.axes import Declared, declared_by
from model_diffs.report.conclusions import Found
from model_diffs.report.signature import Comparison, Missing, Signature
from model_diffs.stats.estimates import Estimate


def _gather(
    outroot: Path,
    base: str,
    comparisons: Sequence[Comparison],
    declared: Sequence[Declared],
    seed: int,
) -> tuple[Found, dict[tuple[str, str], Absent]]:
    """All numbers, and by label (base: none) and key why others are absent."""
    tables = Tables(outroot)
    found: dict[tuple[str, str], Estimate] = {}
    absent: dict[tuple[str, str], Absent] = {}
    for script, measure in declared:
        owners = {c.label: (c.label if script.step.scope == "comparison" else c.changed, c.changed)
                  for c in comparisons}  # fmt: skip
        if measure.of_base:
            owners[""] = (base, base)
        for label, (owner, changed) in owners.items():
            place = Place(tables, f"{owner}/{script.step.folder}", base, changed, seed)
            try:
                found[label, measure.key] = reductions.read(measure, place)
            except Absent as why:
                absent[label, measure.key] = why
    own = {key: one for (label, key), one in found.items() if not label}
    return Found({at: one for at, one in found.items() if at[0]}, own), absent


def _defects(
    found: Found,
    absent: dict[tuple[str, str], Absent],
    known: Sequence[Missing],
    base: str,
    comparisons: Sequence[Comparison],
    declared: Sequence[Declared],
) -> list[Missing]:
    """Damaged tables, and numbers without resamples, as lines for the list of what is missing.

    A result that the list has already is not named twice.
    """
    lines = [(at, why.reason) for at, why in absent.items() if why.defect]
    lines += [(at, one.unpaired) for at, one in found.estimates.items() if one.unpaired]
    lines += [(("", key), one.unpaired) for key, one in found.base.items() if one.unpaired]
    listed = {(one.step, one.comparison) for one in known}
    changed = {one.label: one.changed for one in comparisons} | {"": base}
    scripts = {one.measure.key: one.script for one in declared}
    new = []
    for (label, key), reason in lines:
        script = scripts[key]
        if (script.step.number, label) in listed:
            continue
        # The list names the model beside the reason: equal reasons of many models read the same.
        for folder in filter(None, (label, changed[label])):
            reason = reason.replace(f"{folder}/", "")
        reason = reason if label else f"{base}: {reason}"
        new.append(Missing(script.step.number, script.name, label, reason))
    return list(dict.fromkeys(new))


def assemble(
    outroot: Path,
    comparisons: Sequence[Comparison],
    missing: Sequence[Missing],
    seed: int,
    scripts: Sequence[Script],
) -> Signature:
    """Numbers, intervals and conclusions of comparisons, at least one, with one base.

    Tables that are not there leave their measures out; so do damaged ones, which `missing` then
    names. `seed`: of the resamples; with the steps' seed, intervals are those of their tables.
    """
    base = comparisons[0].base
    axes, declared = declared_by(scripts, base)
    found, absent = _gather(outroot, base, comparisons, declared, seed)
    keys = {key for _, key in found.estimates}
    kept = [one for one in declared if one.measure.key in keys]
    drawn = conclusions.draw(found, base, comparisons, kept)
    defects = _defects(found, absent, missing, base, comparisons, declared)
    return Signature(
        base=base,
        comparisons=comparisons,
        axes=axes,
        measures=[one.measure for one in kept],
        values=found.estimates,
        base_values={key: one for key, one in found.base.items() if key in keys},
        sentences=drawn.sentences,
        missing=[*missing, *defects, *drawn.unpaired],
        reasons={at: why.reason for at, why in absent.items() if at[0] and why.reason != NOT_RUN},
        notes=drawn.notes,
    )


def _cells(column: str, one: Estimate | None, interval: bool) -> dict[str, float | None]:
    value, low, high = (one.value, one.low, one.high) if one else (None, None, None)
    ends = {f"{column}_low": low, f"{column}_high": high} if interval else {}
    return {column: value, **ends}


def signature_rows(signature: Signature) -> list[dict[str, Any]]:
    """Rows of signature.csv: one per comparison, a column per measure.

    A measure with an interval anywhere has `<key>_low` and `<key>_high`; one that the base has too,
    `<key>_base`. What is absent is empty.
    """
    bounded = {key for (_, key), one in signature.values.items() if one.low is not None}
    rows = []
    for comparison in signature.comparisons:
        label, base, changed, _, role = comparison
        row: dict[str, Any] = {"comparison": label, "base": base, "changed": changed}
        row["filtered"] = role == "filtered"
        for measure in signature.measures:
            key = measure.key
            row |= _cells(key, signature.values.get((label, key)), key in bounded)
            if own := signature.base_values.get(key):
                row |= _cells(f"{key}_base", own, own.low is not None)
        rows.append(row)
    return rows
