"""Single numbers as the page shows them: text, interval, tooltip, and where they come from."""

from typing import NamedTuple

from model_diffs.core.step import Measure
from model_diffs.core.tables import Source
from model_diffs.report import formatting
from model_diffs.report.signature import Comparison, Signature
from model_diffs.stats.estimates import Estimate


class Cell(NamedTuple):
    """One number, or the reason why there is none."""

    text: str
    interval: str = ""
    exact: str = ""
    """All digits, as sorted by; empty where there is no number."""
    tooltip: str = ""
    anchor: str = ""
    """Id of its row among the axis's numbers; empty where it has none."""
    source: Source | None = None


def number_cell(one: Estimate, measure: Measure, name: str, anchor: str = "") -> Cell:
    """A number as text; its tooltip has all digits and the source."""
    text, interval = formatting.number(one.value, measure.unit, one.low, one.high)
    exact = formatting.exact(one.value)
    tooltip = f"{name}, {measure.heading}: {exact}"
    if one.low is not None and one.high is not None:
        low, high = formatting.exact(one.low), formatting.exact(one.high)
        tooltip += f" (95 % interval {low} to {high})"
    return Cell(text, interval, exact, f"{tooltip}\n{one.source}", anchor, one.source)


def base_cell(signature: Signature, measure: Measure) -> Cell:
    """What the base has: its own number, or that of a model identical to it."""
    own = signature.base_values.get(measure.key)
    if own is not None:
        return number_cell(own, measure, signature.base)
    if measure.unchanged is None:
        return Cell(formatting.NO_VALUE, tooltip="not defined for an unchanged model")
    text, _ = formatting.number(measure.unchanged, measure.unit)
    tooltip = f"{text} by definition: a model identical to the base"
    return Cell(text, exact=formatting.exact(measure.unchanged), tooltip=tooltip)


def model_cell(signature: Signature, position: int, column: int) -> Cell:
    """The number of one comparison and measure, both by position, or why there is none."""
    comparison, measure = signature.comparisons[position], signature.measures[column]
    at = comparison.label, measure.key
    if at in signature.values:
        anchor = f"n{position}-{column}"
        return number_cell(signature.values[at], measure, comparison.short, anchor)
    why = signature.reasons.get(at) or _missing(signature, comparison, measure.axis)
    return Cell(formatting.NO_VALUE, tooltip=why or "not in the tables")


def _missing(signature: Signature, comparison: Comparison, axis: str) -> str:
    steps = next((one.steps for one in signature.axes if one.key == axis), ())
    reasons = [
        f"step {one.step} ({one.script}): {one.reason}"
        for one in signature.missing
        if one.step in steps and one.comparison in ("", comparison.label)
    ]
    return "; ".join(dict.fromkeys(reasons))
