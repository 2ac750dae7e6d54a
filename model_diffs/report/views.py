"""A signature as the page shows it: every number as text, with where it can be looked up."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import quote

from model_diffs.report import formatting
from model_diffs.report.signature import (
    Axis,
    Comparison,
    Measure,
    Sentence,
    Signature,
    Source,
    Value,
)


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


class Row(NamedTuple):
    """One comparison in the table."""

    position: int
    comparison: Comparison
    cells: Sequence[Cell]


class SentenceView(NamedTuple):
    """A conclusion with its rule and the cells that it was drawn from."""

    text: str
    rule: str
    sources: Sequence[SourceLink]


class Picture(NamedTuple):
    """A figure in its place: embedded where `uri` is not empty, else linked."""

    uri: str
    width: int | None
    height: int | None
    href: str
    caption: str
    alternative: str


class NumberRow(NamedTuple):
    """One measure among an axis's numbers, for one comparison."""

    anchor: str
    measure: Measure
    base: Cell
    filtered: Cell | None
    cell: Cell


class Panel(NamedTuple):
    """What an axis has to say on one comparison."""

    position: int
    comparison: Comparison
    sentences: Sequence[SentenceView]
    pictures: Sequence[Picture]
    numbers: Sequence[NumberRow]
    absent: str
    """Why there are no numbers."""


class AxisView(NamedTuple):
    """One section of the page."""

    axis: Axis
    pictures: Sequence[Picture]
    """Those that show all models at once."""
    panels: Sequence[Panel]


class Verdict(NamedTuple):
    """The conclusions on one comparison."""

    position: int
    comparison: Comparison
    sentences: Sequence[SentenceView]


# ── links and numbers ─────────────────────────────────────────────────────────────────────────────


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


def absent_cell(signature: Signature, comparison: Comparison, axis: Axis | None) -> Cell:
    """An empty cell that says why."""
    why = absence(signature, comparison, axis) or "not in the tables"
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


def sentence_view(sentence: Sentence) -> SentenceView:
    """A conclusion with links."""
    sources = [source_link(source) for source in dict.fromkeys(sentence.sources)]
    return SentenceView(sentence.text, sentence.rule, sources)


# ── the parts of the page ─────────────────────────────────────────────────────────────────────────


def _anchor(position: int, measure: int) -> str:
    return f"n{position}-{measure}"


def table_rows(signature: Signature) -> list[Row]:
    """One row per comparison, one cell per measure."""
    axes = {axis.key: axis for axis in signature.axes}
    rows = []
    for position, comparison in enumerate(signature.comparisons):
        cells = []
        for column, measure in enumerate(signature.measures):
            value = signature.values.get((comparison.label, measure.key))
            if value is None:
                cells.append(absent_cell(signature, comparison, axes.get(measure.axis)))
            else:
                anchor = _anchor(position, column)
                cells.append(number_cell(value, measure, comparison.short, anchor))
        rows.append(Row(position, comparison, cells))
    return rows


def verdicts(signature: Signature) -> list[Verdict]:
    """The conclusions by comparison: those that belong to no axis, where there are such."""
    axes = [axis.key for axis in signature.axes]
    found = []
    for position, comparison in enumerate(signature.comparisons):
        mine = [s for s in signature.sentences if s.comparison == comparison.label]
        summary = [s for s in mine if s.axis not in axes]
        chosen = [sentence_view(sentence) for sentence in summary or mine]
        found.append(Verdict(position, comparison, chosen))
    return found


def _panel(
    signature: Signature, axis: Axis, position: int, pictures: Mapping[str, Picture]
) -> Panel:
    comparison = signature.comparisons[position]
    filtered = next((c for c in signature.comparisons if c.filtered), None)
    numbers = []
    for column, measure in enumerate(signature.measures):
        value = signature.values.get((comparison.label, measure.key))
        if measure.axis != axis.key or value is None:
            continue
        other = None
        if filtered and filtered.label != comparison.label:
            theirs = signature.values.get((filtered.label, measure.key))
            anchor = _anchor(list(signature.comparisons).index(filtered), column)
            other = (
                number_cell(theirs, measure, filtered.short, anchor)
                if theirs
                else absent_cell(signature, filtered, axis)
            )
        cell = number_cell(value, measure, comparison.short)
        anchor = _anchor(position, column)
        base = reference_cell(signature, measure)
        numbers.append(NumberRow(anchor, measure, base, other, cell))
    sentences = [
        sentence_view(s)
        for s in signature.sentences
        if s.axis == axis.key and s.comparison == comparison.label
    ]
    paths = [path for path, _ in figure_paths(axis, comparison) if path in pictures]
    absent = "" if numbers else absence(signature, comparison, axis) or "not in the tables"
    return Panel(position, comparison, sentences, [pictures[p] for p in paths], numbers, absent)


def is_shared(path: str) -> bool:
    """Whether a figure is of all models rather than one."""
    return "{comparison}" not in path and "{model}" not in path


def figure_paths(axis: Axis, comparison: Comparison | None) -> list[tuple[str, str]]:
    """Path and caption of an axis's figures: of one comparison, or the shared ones for None."""
    found = []
    for figure in axis.figures:
        if is_shared(figure.path) == (comparison is None):
            path = figure.path
            if comparison:
                path = path.replace("{comparison}", comparison.label)
                path = path.replace("{model}", comparison.changed)
            found.append((path, figure.caption))
    return found


def axis_views(signature: Signature, pictures: Mapping[str, Picture]) -> list[AxisView]:
    """Every axis with a panel per comparison. `pictures`: by path relative to the outroot."""
    return [
        AxisView(
            axis,
            [pictures[path] for path, _ in figure_paths(axis, None) if path in pictures],
            [_panel(signature, axis, i, pictures) for i in range(len(signature.comparisons))],
        )
        for axis in signature.axes
    ]


class Lacking(NamedTuple):
    """What one step lacks for one reason, and for which models."""

    step: int
    script: str
    whose: str
    reason: str


def lacking(signature: Signature) -> list[Lacking]:
    """What is missing or failed, equal reasons together."""
    short = {comparison.label: comparison.short for comparison in signature.comparisons}
    grouped: dict[tuple[int, str, str], list[str]] = {}
    for one in signature.missing:
        whose = short.get(one.comparison, one.comparison)
        grouped.setdefault((one.step, one.script, one.reason), []).append(whose)
    found = []
    for (step, script, reason), owners in grouped.items():
        names = [owner for owner in dict.fromkeys(owners) if owner]
        everyone = len(names) > 1 and set(names) == set(short.values())
        found.append(Lacking(step, script, "all" if everyone else ", ".join(names), reason))
    return found


def file_name(path: str) -> str:
    """The last part of a path, for a link's text."""
    return PurePosixPath(path).name
