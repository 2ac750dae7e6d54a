"""The parts of the page from a signature: the table's rows, conclusions, a panel per axis."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from model_diffs.report.axes import AXES
from model_diffs.report.cells import (
    Cell,
    absent_cell,
    number_cell,
    reference_cell,
)
from model_diffs.report.saying import Said, say
from model_diffs.report.signature import Axis, Comparison, Measure, Signature

# What a reader asks first, in words; the table has these measures under their names.
AT_A_GLANCE = {
    "hazard_accuracy": "Hazard questions answered rightly",
    "hazard_inside": "… answered when read from inside",
    "recovered_share": "Share that an attack brings back",
    "general_accuracy": "General questions answered rightly",
    "dh_forget": "How far states of forget texts moved",
    "relative_change": "Size of the change of weights",
}


class Row(NamedTuple):
    """One measure in the table: the base's cell and one per comparison."""

    measure: Measure
    base: Cell
    cells: Sequence[Cell]


class Group(NamedTuple):
    """The measures of one axis in the table."""

    axis: Axis
    rows: Sequence[Row]


class Glance(NamedTuple):
    """One row of the few numbers that a reader looks for first."""

    question: str
    measure: Measure
    base: Cell
    cells: Sequence[Cell]
    bars: Sequence[float]
    """Length of each comparison's bar, in per cent of the row's largest number."""


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
    said: Said
    pictures: Sequence[Picture]
    numbers: Sequence[NumberRow]
    absent: Sequence[tuple[str, str]]
    """Measures without a number, and why."""


class AxisView(NamedTuple):
    """One section of the page."""

    axis: Axis
    pictures: Sequence[Picture]
    """Those that show all models at once."""
    panels: Sequence[Panel]


# ── the parts of the page ─────────────────────────────────────────────────────────────────────────


def _anchor(position: int, measure: int) -> str:
    return f"n{position}-{measure}"


def _row(signature: Signature, axis: Axis, column: int) -> Row:
    measure = signature.measures[column]
    cells = []
    for position, comparison in enumerate(signature.comparisons):
        value = signature.values.get((comparison.label, measure.key))
        if value is None:
            cells.append(absent_cell(signature, comparison, measure, axis))
        else:
            anchor = _anchor(position, column)
            cells.append(number_cell(value, measure, comparison.short, anchor))
    return Row(measure, reference_cell(signature, measure), cells)


def table_groups(signature: Signature) -> list[Group]:
    """The table: a group per axis, in it a row per measure."""
    return [
        Group(
            axis,
            [
                _row(signature, axis, column)
                for column, measure in enumerate(signature.measures)
                if measure.axis == axis.key
            ],
        )
        for axis in signature.axes
    ]


def glances(signature: Signature) -> list[Glance]:
    """The first answers: of the questions in AT_A_GLANCE those that have numbers."""
    rows = {row.measure.key: row for group in table_groups(signature) for row in group.rows}
    found = []
    for key, question in AT_A_GLANCE.items():
        if key in rows:
            row = rows[key]
            numbers = [float(cell.exact or 0) for cell in row.cells]
            # Shares fill their bar at 1; other numbers where the largest of them is.
            scale = 1.0 if row.measure.unit in ("accuracy", "share") else max(map(abs, numbers))
            bars = [min(100.0, max(0.0, 100 * one / scale)) if scale else 0.0 for one in numbers]
            found.append(Glance(question, row.measure, row.base, row.cells, bars))
    return found


def _panel(
    signature: Signature, axis: Axis, position: int, pictures: Mapping[str, Picture]
) -> Panel:
    comparison = signature.comparisons[position]
    filtered = next((c for c in signature.comparisons if c.filtered), None)
    numbers, absent = [], []
    for column, measure in enumerate(signature.measures):
        if measure.axis != axis.key:
            continue
        value = signature.values.get((comparison.label, measure.key))
        if value is None:
            why = absent_cell(signature, comparison, measure, axis).tooltip
            absent.append((measure.label, why))
            continue
        other = None
        if filtered and filtered.label != comparison.label:
            theirs = signature.values.get((filtered.label, measure.key))
            anchor = _anchor(list(signature.comparisons).index(filtered), column)
            other = (
                number_cell(theirs, measure, filtered.short, anchor)
                if theirs
                else absent_cell(signature, filtered, measure, axis)
            )
        cell = number_cell(value, measure, comparison.short)
        anchor = _anchor(position, column)
        base = reference_cell(signature, measure)
        numbers.append(NumberRow(anchor, measure, base, other, cell))
    conclusions = [
        s for s in signature.sentences if s.axis == axis.key and s.comparison == comparison.label
    ]
    said = say(conclusions, comparison)
    paths = [path for path, _ in figure_paths(axis, comparison) if path in pictures]
    return Panel(position, comparison, said, [pictures[p] for p in paths], numbers, absent)


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
        whose = "all models" if everyone else ", ".join(names)
        found.append(Lacking(step, script, whose, reason))
    return found


def left_out(signature: Signature) -> list[tuple[Axis, str]]:
    """The axes that have no number, and what is missing for them."""
    found = []
    for axis in AXES:
        if axis.key not in {one.key for one in signature.axes}:
            steps = sorted({one.step for one in signature.missing} & set(axis.steps))
            names = ", ".join(map(str, steps))
            why = f"step{'s' if len(steps) > 1 else ''} {names} below" if steps else ""
            found.append((axis, why))
    return found


def file_name(path: str) -> str:
    """The last part of a path, for a link's text."""
    return PurePosixPath(path).name
