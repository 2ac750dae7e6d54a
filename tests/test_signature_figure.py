"""The signature's figure: a panel per measure, with its numbers and references."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from planted_tables import MEASURES, Study

from model_diffs.report import signature_figure
from model_diffs.report.signature_figure import limits


def test_panels_have_the_numbers_and_references(tmp_path: Path) -> None:
    signature = Study(tmp_path).everything().read()
    figure = signature_figure.draw(signature)
    panels = dict(zip((m.key for m in signature.measures), figure.axes, strict=False))
    moved = panels["dh_forget"]
    marks = {float(line.get_xdata()[0]): line.get_ydata()[0] for line in moved.lines
             if line.get_marker() != "None"}  # fmt: skip
    assert marks == {
        signature.values[one.label, "dh_forget"].value: row
        for row, one in enumerate(signature.comparisons)
    }
    lines = [float(line.get_xdata()[0]) for line in moved.lines if line.get_marker() == "None"]
    filtered = signature.values["base__to__filtered", "dh_forget"].value
    assert lines == [0.0, filtered], "the base, then the filtered model"
    absent = [tick.get_text() for tick in panels["steps_to_half"].get_yticklabels()]
    assert absent == ["–", "10"]
    assert panels["lipschitz_forget"].get_xscale() == "log"
    plt.close(figure)


def test_negligible_differences_do_not_fill_a_panel() -> None:
    assert limits(MEASURES["general_accuracy"], [0.99, 1.0]) == (0.0, 1.0)
    assert limits(MEASURES["probe_late"], [0.001, 0.002]) == (-0.1, 0.1)
    assert limits(MEASURES["effect_selectivity"], [1.0, 1.01]) == (0.5, 2.0)
    assert limits(MEASURES["relative_change"], [0.2, 0.4]) == (0.0, 0.4)


@pytest.mark.parametrize(
    "models",
    [("npo",), pytest.param(("filtered", *"abcdefghi"), marks=pytest.mark.study)],
)
def test_texts_do_not_overlap(tmp_path: Path, models: tuple[str, ...]) -> None:
    sizes = {name: 0.5 + 0.2 * i for i, name in enumerate("abcdefghi")}
    found = Study(tmp_path, models, **sizes).everything().read()
    figure = signature_figure.draw(found)
    figure.canvas.draw()
    assert figure.bbox.width == 1200
    boxes = []
    for axes in figure.axes[: len(found.measures)]:
        ticks = [*axes.get_yticklabels(), axes.title, axes._left_title]
        boxes += [t.get_window_extent() for t in ticks if t.get_text()]
    boxes += [t.get_window_extent() for t in figure.legends[0].get_texts()]
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= 1200 and box.y0 >= 0 and box.y1 <= figure.bbox.height
    overlaps = [
        (a, b) for a, b in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 3
    ]  # fmt: skip
    assert not overlaps
    plt.close(figure)
