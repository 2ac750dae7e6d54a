"""Single numbers as the page shows them: text, interval, tooltip, and where they come from."""

from typing import NamedTuple
from urllib.parse import quote

from model_diffs.report import formatting
from model_diffs.report.signature import Axis, Comparison, Measure, Signature, Source, Value


class SourceLink(NamedTuple):
    """A table to open and the cell to look for."""

    name: str
    href: str
    cell: str


class Cell(NamedTuple):
    """One number."""

    text: str
    interval: str
    exact: str
    """As sorted by; empty where there is no number."""
    tooltip: str
    anchor: str
    """Id of its row among the axis's numbers; empty where it has none."""
    source: SourceLink | None


def link(path: str) -> str:
    """A file under the outroot, seen from the report's folder beside it."""
    return "../" + quote(path)


def source_link(source: Source) -> SourceLink:
    """A source as a link and the words for its cell."""
    cell = source.column + (f", {source.rows}" if source.rows else "")
    return SourceLink(source.path, link(source.path), cell)


def number_cell(value: Value, measure: Measure, name: str, anchor: str = "") -> Cell:
    """A value as text; its tooltip has all digits and the source."""
    text, interval = formatting.number(value.value, measure.unit, value.low, value.high)
    tooltip = f"{name}, {measure.label}: {formatting.exact(value.value)}"
    if value.low is not None and value.high is not None:
        ends = formatting.exact(value.low), formatting.exact(value.high)
        tooltip += f" (95 % interval {ends[0]} to {ends[1]})"
    tooltip += f"\n{value.source}"
    exact = formatting.exact(value.value)
    return Cell(text, interval, exact, tooltip, anchor, source_link(value.source))


def reference_cell(signature: Signature, measure: Measure) -> Cell:
    """What the base has: its own value, or what an unchanged model would show."""
    own = signature.base_values.get(measure.key)
    if own is not None:
        return number_cell(own, measure, signature.base)
    if measure.unchanged is None:
        return Cell(formatting.NO_VALUE, "", "", "not defined for an unchanged model", "", None)
    text, _ = formatting.number(measure.unchanged, measure.unit)
    tooltip = f"{text} by definition: a model that is identical to the base"
    return Cell(text, "", formatting.exact(measure.unchanged), tooltip, "", None)


def absent_cell(
    signature: Signature, comparison: Comparison, measure: Measure, axis: Axis | None
) -> Cell:
    """An empty cell that says why."""
    why = signature.reasons.get((comparison.label, measure.key))
    why = why or absence(signature, comparison, axis) or "not in the tables"
    return Cell(formatting.NO_VALUE, "", "", why, "", None)


def absence(signature: Signature, comparison: Comparison, axis: Axis | None) -> str:
    """Why an axis has nothing on a comparison, as far as the list of what is missing knows."""
    steps = axis.steps if axis else ()
    reasons = [
        f"step {m.step} ({m.script}): {m.reason}"
        for m in signature.missing
        if m.step in steps and m.comparison in ("", comparison.label)
    ]
    return "; ".join(dict.fromkeys(reasons))
