"""Gather the signature of a study from the tables under its outroot. No model and no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_diffs.core.step import Script
from model_diffs.core.tables import NOT_RUN, Absent, Place, Tables
from model_diffs.report import conclusions, reductions, verdicts
from model_diffs.report.axes import Declared, declared_by
from model_diffs.report.conclusions import Numbers
from model_diffs.report.signature import Comparison, Missing, Signature
from model_diffs.stats.estimates import Estimate

Lacking = dict[tuple[str, str], Absent]
"""By comparison label (empty: the base's own number) and measure key."""


def _gather(
    outroot: Path, comparisons: Sequence[Comparison], declared: Sequence[Declared], seed: int
) -> tuple[Numbers, Lacking]:
    """Every number that the tables give, and why the others are absent."""
    tables, base = Tables(outroot), comparisons[0].base
    found: dict[tuple[str, str], Estimate] = {}
    absent: Lacking = {}
    for script, measure in declared:
        pair = script.step.scope == "comparison"
        owners = [(one.label, one.label if pair else one.changed, one.changed)
                  for one in comparisons]  # fmt: skip
        for label, owner, changed in owners + ([("", base, base)] if measure.of_base else []):
            place = Place(tables, f"{owner}/{script.step.folder}", base, changed, seed)
            try:
                found[label, measure.key] = reductions.read(measure, place)
            except Absent as why:
                absent[label, measure.key] = why
    return found, absent


def _defects(
    found: Numbers,
    absent: Lacking,
    known: Sequence[Missing],
    comparisons: Sequence[Comparison],
    declared: Sequence[Declared],
) -> list[Missing]:
    """Damaged tables, and numbers without resamples, as lines for the list of what is missing.

    A result that the list has already is not named twice.
    """
    lines = {at: why.reason for at, why in absent.items() if why.defect}
    lines |= {at: one.unpaired for at, one in found.items() if one.unpaired}
    listed = {(one.step, one.comparison) for one in known}
    changed = {one.label: one.changed for one in comparisons} | {"": comparisons[0].base}
    scripts = {one.measure.key: one.script for one in declared}
    new = []
    for (label, key), reason in lines.items():
        step, name = scripts[key].step.number, scripts[key].name
        if (step, label) not in listed:
            # The list names the model beside the reason: equal reasons of many models read alike.
            for folder in filter(None, (label, changed[label])):
                reason = reason.replace(f"{folder}/", "")
            new.append(Missing(step, name, label, reason if label else f"{changed['']}: {reason}"))
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
    found, absent = _gather(outroot, comparisons, declared, seed)
    keys = {key for label, key in found if label}
    kept = [one for one in declared if one.measure.key in keys]
    sentences, unpaired, notes = conclusions.draw(found, comparisons, kept)
    told = verdicts.verdicts([one.measure for one in kept], found, comparisons)
    if not any(one.role == "control" for one in comparisons):
        notes.append(verdicts.NO_CONTROL)
    defects = _defects(found, absent, missing, comparisons, declared)
    return Signature(
        base=base,
        comparisons=comparisons,
        axes=axes,
        measures=[one.measure for one in kept],
        values={at: one for at, one in found.items() if at[0]},
        base_values={key: found["", key] for key in keys if ("", key) in found},
        sentences=sentences,
        missing=[*missing, *defects, *unpaired],
        reasons={at: why.reason for at, why in absent.items() if at[0] and why.reason != NOT_RUN},
        notes=notes,
        verdicts=told,
    )


def signature_rows(signature: Signature) -> list[dict[str, Any]]:
    """Rows of signature.csv: one per comparison, a column per measure.

    A measure with an interval anywhere has `<key>_low` and `<key>_high`; one that the base has too,
    `<key>_base`. What is absent is empty.
    """
    bounded = {key for (_, key), one in signature.values.items() if one.low is not None}
    rows = []
    for comparison in signature.comparisons:
        label, base, changed, *_ = comparison
        row: dict[str, Any] = {"comparison": label, "base": base, "changed": changed}
        row["filtered"] = comparison.role == "filtered"
        for key in (measure.key for measure in signature.measures):
            cells = [(key, signature.values.get((label, key)), key in bounded)]
            if own := signature.base_values.get(key):
                cells.append((f"{key}_base", own, own.low is not None))
            for column, one, interval in cells:
                row[column] = one and one.value
                if interval:
                    row |= {f"{column}_low": one and one.low, f"{column}_high": one and one.high}
        rows.append(row)
    return rows
