"""Which measures tell unlearned models from harmless training: the null that controls give.

A control is trained, or changed, without unlearning anything. What its number does, any change of
that strength does; a measure that lies there says nothing about unlearning.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from model_diffs.core.step import Measure
from model_diffs.report.conclusions import Numbers, ends
from model_diffs.report.formatting import number
from model_diffs.report.signature import Comparison, Signature, Verdict
from model_diffs.stats.estimates import ROUNDING, Estimate, difference

BENIGN = "benign"
"""In the short name of the control that harmless training made; without one, every control is."""
ALIKE = "not told apart from harmless training"
RULES = (
    f"A number is {ALIKE} where the 95 % interval of its paired difference from the benign "
    "control's does not exclude zero; without intervals, where it lies in the range of the "
    "controls' numbers, of which there are at least two. A measure separates where every unlearned "
    "model with a number is told apart."
)
NO_CONTROL = "No control is among the comparisons: no measure is known to tell unlearning apart."


COLUMNS = ("measure", "verdict", "evidence")
"""Of measures.csv."""


class Told(NamedTuple):
    """One unlearned model beside the controls."""

    comparison: Comparison
    apart: bool | None
    """None where it is not known."""
    evidence: str


def benign_of(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The controls made by harmless training."""
    controls = [one for one in comparisons if one.role == "control"]
    return [one for one in controls if BENIGN in one.short] or controls


def _in_range(mine: Estimate, controls: Mapping[str, Estimate], unit: str) -> tuple[bool, str]:
    """Whether a number without interval is outside those of the controls."""
    values = [one.value for one in controls.values()]
    low, high = min(values), max(values)
    apart = not low - ROUNDING <= mine.value <= high + ROUNDING
    shown = [number(one, unit)[0] for one in (mine.value, low, high)]
    where = "outside" if apart else "inside"
    return apart, f"{shown[0]}, {where} the controls' {shown[1]} to {shown[2]}"


def _told(
    measure: Measure, one: Comparison, numbers: Numbers, comparisons: Sequence[Comparison]
) -> Told:
    """An unlearned model, which has a number, beside the controls."""
    mine = numbers[one.label, measure.key]
    controls = {
        other.short: found
        for other in comparisons
        if other.role == "control" and (found := numbers.get((other.label, measure.key)))
    }
    if mine.sample is None and not mine.unpaired:
        if len(controls) < 2:
            return Told(one, None, "fewer than two controls have a number")
        return Told(one, *_in_range(mine, controls, measure.unit))
    parts, apart = [], True
    for other in benign_of(comparisons):
        if other.short not in controls:
            return Told(one, None, f"{other.short} has no number")
        gap = difference(mine, controls[other.short], measure.logarithmic)
        if gap is None:
            return Told(one, None, f"not paired with {other.short}")
        apart &= gap.direction != 0
        what = "ratio" if gap.neutral else "change"
        parts.append(f"{ends(gap, what)} against {other.short}")
    return Told(one, apart, ", ".join(parts))


def _verdict(measure: Measure, numbers: Numbers, comparisons: Sequence[Comparison]) -> Verdict:
    if not any(one.role == "control" for one in comparisons):
        return Verdict("unknown", "no control is among the comparisons")
    told = [
        _told(measure, one, numbers, comparisons)
        for one in comparisons
        if one.role == "unlearned" and (one.label, measure.key) in numbers
    ]
    if not told:
        return Verdict("unknown", "no unlearned model has a number")
    alike = tuple(one.comparison.label for one in told if one.apart is False)
    unknown = any(one.apart is None for one in told)
    found: Literal["yes", "no", "unknown"] = "no" if alike else "unknown" if unknown else "yes"
    evidence = "; ".join(f"{one.comparison.short}: {one.evidence}" for one in told)
    return Verdict(found, evidence, alike, len(alike) == len(told))


def verdicts(
    measures: Iterable[Measure], numbers: Numbers, comparisons: Sequence[Comparison]
) -> dict[str, Verdict]:
    """By measure key: whether it separates the unlearned models from harmless training."""
    return {one.key: _verdict(one, numbers, comparisons) for one in measures}


def verdict_rows(signature: Signature) -> list[dict[str, Any]]:
    """Rows of measures.csv."""
    found = ((one.key, signature.verdicts[one.key]) for one in signature.measures)
    rows = ((key, one.separates, one.evidence) for key, one in found)
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def in_words(signature: Signature, key: str) -> str:
    """What is said beside a measure that does not separate; empty for the others."""
    found = signature.verdicts.get(key)
    if found is None or not found.alike:
        return ""
    short = {one.label: one.short for one in signature.comparisons}
    return ALIKE if found.all_alike else f"{ALIKE}: {', '.join(short[x] for x in found.alike)}"
