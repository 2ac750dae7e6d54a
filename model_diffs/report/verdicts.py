"""Which measures tell unlearned models from harmless training: the null that controls give.

A control is trained, or changed, without unlearning anything. What its number does, any change of
that strength does; a measure that lies there says nothing about unlearning.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from model_diffs.core.step import Measure
from model_diffs.report.conclusions import Numbers, ends
from model_diffs.report.formatting import number
from model_diffs.report.signature import Comparison, Signature, Verdict
from model_diffs.stats.estimates import Estimate, difference

BENIGN = "benign"
"""In the short name of the control that harmless training made; without one, every control is."""
ALIKE = "not told apart from harmless training"
RULES = (
    f"A number is {ALIKE} where the 95 % interval of its paired difference from the benign "
    "control's does not exclude zero; without intervals, where it is within 1 % of the range of "
    "two or more controls. A measure separates where each unlearned model with a number does."
)
NO_CONTROL = "No control is among the comparisons: no measure is known to tell unlearning apart."
COLUMNS = ("measure", "verdict", "evidence")  # of measures.csv


def benign_of(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The controls made by harmless training."""
    controls = [one for one in comparisons if one.role == "control"]
    return [one for one in controls if BENIGN in one.short] or controls


def _in_range(mine: Estimate, controls: Mapping[str, Estimate], unit: str) -> tuple[bool, str]:
    """Whether a number without interval is outside those of the controls."""
    low, high = (pick(one.value for one in controls.values()) for pick in (min, max))
    slack = 0.01 * max(abs(low), abs(high))  # `noise` has the size of its model by construction
    apart = not low - slack <= mine.value <= high + slack
    text, *both = (number(one, unit)[0] for one in (mine.value, low, high))
    return apart, f"{text}, {'out' if apart else 'in'}side the controls' {' to '.join(both)}"


def _told(
    measure: Measure, mine: Estimate, controls: Mapping[str, Estimate], benign: Sequence[str]
) -> tuple[bool | None, str]:
    """Whether a number is told apart from the controls', None where it is not known, and why."""
    if mine.sample is None and not mine.unpaired:
        few = len(controls) < 2
        none = None, "fewer than two controls have a number"
        return none if few else _in_range(mine, controls, measure.unit)
    parts, apart = [], True
    for name in benign:
        gap = name in controls and difference(mine, controls[name], measure.logarithmic)
        if not gap:
            return None, f"{name} has no number that pairs with it"
        apart &= gap.direction != 0
        parts.append(f"{ends(gap, 'ratio' if gap.neutral else 'change')} against {name}")
    return apart, ", ".join(parts)


def _verdict(measure: Measure, numbers: Numbers, comparisons: Sequence[Comparison]) -> Verdict:
    benign = [one.short for one in benign_of(comparisons)]
    if not benign:
        return Verdict("unknown", "no control is among the comparisons")
    found = {one: numbers.get((one.label, measure.key)) for one in comparisons}
    controls = {one.short: own for one, own in found.items() if own and one.role == "control"}
    unlearned = {one: own for one, own in found.items() if own and one.role == "unlearned"}
    told = {one: _told(measure, own, controls, benign) for one, own in unlearned.items()}
    if not told:
        return Verdict("unknown", "no unlearned model has a number")
    alike = tuple(one.label for one, (apart, _) in told.items() if apart is False)
    known = all(apart is not None for apart, _ in told.values())
    separates: Literal["yes", "no", "unknown"] = "no" if alike else "yes" if known else "unknown"
    evidence = "; ".join(f"{one.short}: {why}" for one, (_, why) in told.items())
    return Verdict(separates, evidence, alike, len(alike) == len(told))


def verdicts(
    measures: Iterable[Measure], numbers: Numbers, comparisons: Sequence[Comparison]
) -> dict[str, Verdict]:
    """By measure key: whether it separates the unlearned models from harmless training."""
    return {one.key: _verdict(one, numbers, comparisons) for one in measures}


def verdict_rows(signature: Signature) -> list[dict[str, Any]]:
    """Rows of measures.csv."""
    found = signature.verdicts.items()
    return [
        dict(zip(COLUMNS, (key, one.separates, one.evidence), strict=True)) for key, one in found
    ]


def in_words(signature: Signature, key: str) -> str:
    """What is said beside a measure that does not separate; empty for the others."""
    found = signature.verdicts.get(key)
    if found is None or not found.alike:
        return ""
    short = {one.label: one.short for one in signature.comparisons}
    return ALIKE if found.all_alike else f"{ALIKE}: {', '.join(short[x] for x in found.alike)}"
