"""The signature as one figure: a panel per measure, in it a mark per model with its interval."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from model_diffs.core.figures import BASE, DASHED, FILTERED, WIDTH_INCHES, plt
from model_diffs.core.step import Measure
from model_diffs.report.formatting import NO_VALUE, number
from model_diffs.report.page import model_colours
from model_diffs.report.signature import Signature

MARKERS = "osD^vP*Xph"
COLUMNS = 5
SOFT = "#757575"
# What a panel shows at least, so that a negligible difference does not fill it.
ONE, TEN = (0.0, 1.0), (1.0, 10.0)
LEAST = {"share": ONE, "accuracy": ONE, "rank": TEN, "steps": TEN, "change": (-0.1, 0.1)}


def limits(measure: Measure, shown: Sequence[float]) -> tuple[float, float]:
    """First and last number of a panel that shows these numbers."""
    default = (0.5, 2.0) if measure.logarithmic else (0.0, max(map(abs, shown)) or 1.0)
    low, high = LEAST.get(measure.unit, default)
    return min(low, *shown), max(high, *shown)


def _panel(axes: Axes, signature: Signature, measure: Measure, marks: Sequence[str]) -> None:
    """The models as rows, with their numbers at the right; base and filtered model as lines."""
    values = [signature.values.get((one.label, measure.key)) for one in signature.comparisons]
    own = signature.base_values.get(measure.key)
    base = own.value if own else measure.unchanged
    shown = [end for one in values if one for end in one.ends]
    both = limits(measure, shown if base is None else [*shown, base])
    axes.scatter(both, [0, 0], alpha=0)
    logarithmic = measure.logarithmic and both[0] > 0
    axes.set_xscale("log" if logarithmic else "linear")
    ticks = LogLocator(subs=(1, 2, 5), numticks=5) if logarithmic else MaxNLocator(4)
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}".replace("-", "−"))
    if base is not None:
        axes.axvline(base, color=BASE, lw=1.4)
    rows = range(len(values))
    for row, one, colour, mark in zip(rows, values, model_colours(signature), marks, strict=True):
        if one is None:
            continue
        model = signature.comparisons[row]
        if model == signature.filtered:
            axes.axvspan(*one.ends, color=FILTERED, alpha=0.18, lw=0)
            axes.axvline(one.value, color=FILTERED, lw=1.4)
        # What is not told apart from controls stands back.
        seen = 0.25 if signature.alike(model.label, measure.key) else 1.0
        style = DASHED if model.role == "control" else "-"
        axes.hlines(row, *one.ends, color=colour, lw=2.2, alpha=0.55 * seen, linestyle=style)
        axes.plot(one.value, row, mark, color=colour, ms=5, mec="white", mew=0.5, alpha=seen)
    numbers = [number(one.value, measure.unit)[0] if one else NO_VALUE for one in values]
    axes.set_yticks(rows, labels=numbers)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.yaxis.tick_right()
    axes.spines.left.set_visible(False)
    axes.tick_params(labelsize=8, length=0)
    axis = next(one.title for one in signature.axes if one.key == measure.axis)
    alike = measure.key in signature.verdicts and signature.verdicts[measure.key].all_alike
    title = f"{axis}\n{measure.heading}" + "\nlike controls" * alike
    axes.set_title(title, loc="left", fontsize=9, color=SOFT if alike else "black")


def draw(signature: Signature) -> Figure:
    """All measures, 1,200 pixels wide. The signature has at least one measure."""
    colours = model_colours(signature)
    # Models of one colour (seeds of one method) have different marks.
    marks = [MARKERS[colours[:i].count(colours[i]) % len(MARKERS)] for i in range(len(colours))]
    rows = -(-len(signature.measures) // COLUMNS)
    size = WIDTH_INCHES, 0.9 + rows * (0.95 + 0.14 * len(colours))
    figure, grid = plt.subplots(rows, COLUMNS, figsize=size, layout="constrained", squeeze=False)
    for axes, measure in zip(grid.flat, signature.measures, strict=False):
        _panel(axes, signature, measure, marks)
    for axes in grid.flat[len(signature.measures) :]:
        axes.axis("off")
    named = zip(marks, colours, signature.comparisons, strict=True)
    handles = [
        Line2D([], [], marker=mark, color=colour, linestyle="", label=one.short)
        for mark, colour, one in named
    ]
    handles.append(Line2D([], [], color=BASE, label="base, or a model identical to it"))
    if signature.filtered:
        handles.append(Line2D([], [], color=FILTERED, label="filtered model and its interval"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), 150 // (longest + 6)))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    return figure
