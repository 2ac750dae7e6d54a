"""The signature as one figure: a row per measure, a mark per model, between base and filtered."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_diffs.core.figures import BASE, FILTERED, WIDTH_INCHES, plt
from model_diffs.report import placing
from model_diffs.report.formatting import number
from model_diffs.report.page import model_colours
from model_diffs.report.placing import Row
from model_diffs.report.signature import Axis, Comparison, Signature

MARKERS = "osD^vP*Xph"
INK = "#222222"
FAINT = "#777777"
# Inches.
MARGIN, LINE, TITLE, PAD = 0.15, 0.15, 0.36, 0.11
LABELS, NUMBERS = 2.2, 0.62
COLUMN = WIDTH_INCHES / 2


class _Model(NamedTuple):
    """How one comparison is drawn."""

    comparison: Comparison
    colour: str
    marker: str


class _Place(NamedTuple):
    """Where a column's plots lie, in inches from the left."""

    left: float

    @property
    def plot(self) -> tuple[float, float]:
        return self.left + MARGIN + LABELS, self.left + COLUMN - MARGIN - NUMBERS

    def x(self, share: float) -> float:
        first, last = self.plot
        return first + share * (last - first)


def _models(signature: Signature) -> list[_Model]:
    """The comparisons that get marks; those of one colour get different markers."""
    comparisons, _ = placing.shown(signature)
    colours = dict(
        zip([c.label for c in signature.comparisons], model_colours(signature), strict=True)
    )
    seen: dict[str, int] = {}
    found = []
    for comparison in comparisons:
        colour = colours[comparison.label]
        marker = MARKERS[seen.get(colour, 0) % len(MARKERS)]
        seen[colour] = seen.get(colour, 0) + 1
        found.append(_Model(comparison, colour, marker))
    return found


def _height(models: int) -> float:
    """Of one row: a line per model, and room for the two lines of its label."""
    return max(2, models) * LINE + PAD


def _columns(signature: Signature, height: float) -> list[list[Axis]]:
    """The axes in two columns of about the same height, none of them parted."""
    counts = [
        TITLE + height * sum(m.axis == axis.key for m in signature.measures)
        for axis in signature.axes
    ]
    cut = min(range(1, len(counts) + 1), key=lambda i: (max(sum(counts[:i]), sum(counts[i:])), -i))
    return [list(signature.axes[:cut]), list(signature.axes[cut:])]


def _references(axes: Axes, row: Row, place: _Place, top: float, bottom: float) -> None:
    """Base and filtered model as lines through a row, the zone between them shaded."""
    if row.between:
        axes.fill_between([place.x(1 / 3), place.x(2 / 3)], top, bottom, color="#f3f4f6", lw=0)
    if row.filtered:
        low, high = place.x(row.filtered.low), place.x(row.filtered.high)
        axes.fill_between([low, high], top, bottom, color=FILTERED, alpha=0.18, lw=0)
    if row.alike is not None:
        axes.vlines(place.x(row.alike), top, bottom, color=FAINT, lw=0.8, linestyles=":")
    for mark, colour in ((row.base, BASE), (row.filtered, FILTERED)):
        if mark:
            axes.vlines(place.x(mark.at), top, bottom, color=colour, lw=1.4)


def _label(axes: Axes, signature: Signature, row: Row, place: _Place, top: float) -> None:
    """A measure's name, and below it what its lines stand for."""
    _, reference = placing.shown(signature)
    x = place.left + MARGIN
    axes.text(x, top + 0.02, row.measure.label, fontsize=9, color=INK, va="top")
    base = placing.base_value(signature, row.measure)
    filtered = reference and signature.values.get((reference.label, row.measure.key))
    parts = [
        (f"{name} {number(value.value, row.measure.unit)[0]}", colour)
        for name, value, colour in (("base", base, BASE), ("filtered", filtered, FILTERED))
        if value is not None
    ]
    if not row.between:
        first, last = (f"{end:.3g}".replace("-", "−") for end in row.scale)
        parts.append((f"scale {first} to {last}", FAINT))
    for text, colour in parts:
        axes.text(x, top + 0.19, text, fontsize=7.5, color=colour, va="top")
        x += 0.062 * len(text) + 0.08


def _marks(
    axes: Axes, signature: Signature, row: Row, models: Sequence[_Model], place: _Place, top: float
) -> None:
    """A mark with its interval per model, and its number at the right."""
    first, last = place.plot
    shift = PAD / 2 + LINE * (1.0 if len(models) == 1 else 0.5)
    lines = [top + shift + LINE * i for i in range(len(models))]
    axes.hlines(lines, first, last, color="#e6e6e6", lw=0.6, zorder=0)
    drawn = [
        (y, model, mark) for y, model, mark in zip(lines, models, row.marks, strict=True) if mark
    ]
    ends = [(y, place.x(m.low), place.x(m.high), one.colour) for y, one, m in drawn]
    if ends:
        ys, lows, highs, colours = zip(*ends, strict=True)
        axes.hlines(ys, lows, highs, colors=colours, lw=2.2, alpha=0.55)
    for y, model, mark in drawn:
        x = place.x(mark.at)
        axes.plot(x, y, model.marker, color=model.colour, ms=5, mec="white", mew=0.5)
    for y, model in zip(lines, models, strict=True):
        value = signature.values.get((model.comparison.label, row.measure.key))
        text = "–" if value is None else number(value.value, row.measure.unit)[0]
        colour = FAINT if value is None else INK
        axes.text(last + NUMBERS, y, text, fontsize=8, color=colour, ha="right", va="center")


def _scale(axes: Axes, place: _Place, top: float) -> None:
    """What the two lines mean that most rows share."""
    for at, text, colour in (
        (1 / 3, "as the base", BASE),
        (2 / 3, "as the filtered model", FILTERED),
    ):
        align, shift = ("right", 0.1) if at < 0.5 else ("left", -0.1)
        x = place.x(at) + shift
        axes.text(x, top, text, fontsize=8.5, color=colour, ha=align, va="bottom")


def _column(
    axes: Axes,
    signature: Signature,
    chosen: Sequence[Axis],
    models: Sequence[_Model],
    place: _Place,
    top: float,
) -> None:
    height, scaled = _height(len(models)), False
    for axis in chosen:
        top += TITLE
        axes.text(
            *(place.left + MARGIN, top - 0.08, axis.title),
            fontsize=10.5,
            fontweight="bold",
            color=INK,
            va="bottom",
        )
        for measure in signature.measures:
            if measure.axis != axis.key:
                continue
            row = placing.row_of(signature, measure)
            if row.between and not scaled:
                _scale(axes, place, top - 0.08)
                scaled = True
            _references(axes, row, place, top, top + height - 0.03)
            _label(axes, signature, row, place, top)
            _marks(axes, signature, row, models, place, top)
            top += height


def _legend(figure: Figure, axes: Axes, models: Sequence[_Model]) -> None:
    handles = [
        axes.plot([], [], model.marker, color=model.colour, ms=6, label=model.comparison.short)[0]
        for model in models
    ]
    longest = max(len(model.comparison.short) for model in models)
    columns = max(1, min(len(models), int(130 / (longest + 6))))
    figure.legend(handles=handles, loc="upper left", ncols=columns, bbox_to_anchor=(0.0, 0.0, 1, 1))


def draw(signature: Signature) -> Figure:
    """All measures, 1,200 pixels wide. The signature has at least one measure."""
    models = _models(signature)
    height = _height(len(models))
    columns = _columns(signature, height)
    longest = max(len(model.comparison.short) for model in models)
    head = 0.15 + 0.24 * -(-len(models) // max(1, int(130 / (longest + 6))))
    tallest = max(
        sum(TITLE + height * sum(m.axis == a.key for m in signature.measures) for a in part)
        for part in columns
    )
    total = head + tallest + 0.5
    figure = plt.figure(figsize=(WIDTH_INCHES, total))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH_INCHES)
    axes.set_ylim(total, 0)
    axes.axis("off")
    for left, chosen in zip((0.0, COLUMN), columns, strict=True):
        _column(axes, signature, chosen, models, _Place(left), head)
    _legend(figure, axes, models)
    axes.text(
        *(MARGIN, total - 0.12, _caption(signature)),
        fontsize=8,
        color=FAINT,
        va="bottom",
    )
    return figure


def _caption(signature: Signature) -> str:
    _, reference = placing.shown(signature)
    text = f"Against {signature.base}. Bars are 95 % intervals where there are such. "
    if reference is None:
        return text + "The grey line is the base, a dotted line a ratio of one."
    return text + (
        "Rows run from the base (grey line) to the filtered model (blue line, its interval a "
        "band);\nwhat lies beyond either is squeezed. Rows with a scale: the base has no such "
        "number, or the filtered model's is not told apart from it. Dotted: a ratio of one."
    )
