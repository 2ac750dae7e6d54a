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
from model_diffs.stats.estimates import Estimate, difference

ALIKE = "not told apart from controls"
BOTH_SIDES = "on both sides of the controls"
RULES = (
    f"A number is {ALIKE} unless the 95 % intervals of its paired differences from all controls "
    "made by harmless training lie on one side of zero; without intervals, where it is within 1 % "
    "of the range of two or more controls. A measure separates where each unlearned model with a "
    "number is told apart, all on the same side."
)
NO_CONTROL = "No control is among the comparisons: no measure is known to tell unlearning apart."
COLUMNS = ("measure", "verdict", "refuted_by", "evidence")  # of measures.csv


class _Told(NamedTuple):
    """Where one number lies."""

    side: int | None
    """1 above all controls, -1 below them, 0 not told apart, None: not known."""
    why: str
    refuted_by: tuple[str, ...] = ()
    """Controls that it is not told apart from, or lies between."""


def harmless_of(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The controls made by harmless training; where none is known as such, all controls."""
    controls = [one for one in comparisons if one.role == "control"]
    return [one for one in controls if one.harmless] or controls


def _in_range(mine: Estimate, controls: Mapping[str, Estimate], unit: str) -> _Told:
    """A number without interval, beside the lowest and the highest of the controls."""
    ordered = sorted(controls, key=lambda one: controls[one].value)
    low, high = (controls[one].value for one in (ordered[0], ordered[-1]))
    slack = 0.01 * max(abs(low), abs(high))  # `noise` has the size of its model by construction
    side = int(mine.value > high + slack) - int(mine.value < low - slack)
    text, *both = (number(one, unit)[0] for one in (mine.value, low, high))
    why = f"{text}, {'out' if side else 'in'}side the controls' {' to '.join(both)}"
    return _Told(side, why, () if side else (ordered[0], ordered[-1]))


def _told(
    measure: Measure, mine: Estimate, controls: Mapping[str, Estimate], harmless: Sequence[str]
) -> _Told:
    """Whether a number is told apart from the controls', and why."""
    if mine.sample is None and not mine.unpaired:
        if len(controls) < 2:
            return _Told(None, "fewer than two controls have a number")
        return _in_range(mine, controls, measure.unit)
    parts, sides, lacking = [], {}, ""
    for name in harmless:
        gap = name in controls and difference(mine, controls[name], measure.logarithmic)
        if gap:
            parts.append(f"{ends(gap, 'ratio' if gap.neutral else 'change')} against {name}")
            sides[name] = gap.direction
        else:
            lacking = f"{name} has no number that pairs with it"
            parts.append(lacking)
    why, met = ", ".join(parts), {*sides.values()}
    if 0 in met:
        return _Told(0, why, tuple(name for name, side in sides.items() if not side))
    if len(met) > 1:
        return _Told(0, why, (*sides,))
    return _Told(None if lacking else met.pop(), why)


def _verdict(measure: Measure, numbers: Numbers, comparisons: Sequence[Comparison]) -> Verdict:
    harmless = [one.short for one in harmless_of(comparisons)]
    if not harmless:
        return Verdict("unknown", "no control is among the comparisons")
    found = {one: numbers.get((one.label, measure.key)) for one in comparisons}
    controls = {one.short: own for one, own in found.items() if own and one.role == "control"}
    unlearned = {one: own for one, own in found.items() if own and one.role == "unlearned"}
    told = {one: _told(measure, own, controls, harmless) for one, own in unlearned.items()}
    if not told:
        return Verdict("unknown", "no unlearned model has a number")
    alike = {one.label: where.refuted_by for one, where in told.items() if where.side == 0}
    sides = {where.side for where in told.values()}
    both = {1, -1} <= sides
    evidence = "; ".join(f"{one.short}: {where.why}" for one, where in told.items())
    if both:
        evidence = f"{BOTH_SIDES}; {evidence}"
    separates: Literal["yes", "no", "unknown"] = (
        "no" if alike or both else "unknown" if None in sides else "yes"
    )
    return Verdict(separates, evidence, alike, len(alike) == len(told), both)


def verdicts(
    measures: Iterable[Measure], numbers: Numbers, comparisons: Sequence[Comparison]
) -> dict[str, Verdict]:
    """By measure key: whether it separates the unlearned models from harmless training."""
    return {one.key: _verdict(one, numbers, comparisons) for one in measures}


def refuters(verdict: Verdict) -> str:
    """The controls that unlearned models are not told apart from."""
    return ", ".join(sorted({name for names in verdict.alike.values() for name in names}))


def verdict_rows(signature: Signature) -> list[dict[str, Any]]:
    """Rows of measures.csv."""
    return [
        dict(zip(COLUMNS, (key, one.separates, refuters(one), one.evidence), strict=True))
        for key, one in signature.verdicts.items()
    ]


def in_words(signature: Signature, key: str) -> str:
    """What is said beside a measure that does not separate; empty for the others."""
    found = signature.verdicts.get(key)
    if found is None or not (found.alike or found.both_sides):
        return ""
    if found.all_alike:
        return f"{ALIKE} ({refuters(found)})"
    short = {one.label: one.short for one in signature.comparisons}
    own = [f"{short[one]} ({', '.join(names)})" for one, names in found.alike.items()]
    return f"{ALIKE}: {', '.join(own)}" if own else BOTH_SIDES
