"""Figures: deterministic, never empty, colours that stay with what they stand for."""

import itertools
import math
from pathlib import Path

import pandas as pd
import pytest

from model_diffs.core import figures, results
from model_diffs.core.figures import Line, Panel
from model_diffs.core.methods import METHODS


def test_colour_depends_on_method_or_filtering() -> None:
    assert figures.model_colour("base__npo") == METHODS["npo"].colour
    assert figures.model_colour("npo__seed1") == METHODS["npo"].colour
    assert figures.model_colour("base__cb_lat__seed1337") == METHODS["cb_lat"].colour
    assert figures.model_colour("EleutherAI_deep-ignorance-unfiltered-cb-lat") == (
        METHODS["cb_lat"].colour
    )
    assert figures.model_colour("EleutherAI_deep-ignorance-e2e-strong-filter") == figures.FILTERED
    assert figures.model_colour("models/miniature-filtered") == figures.FILTERED
    for word, grey in figures.CONTROLS.items():
        red, green, blue = (int(grey[i : i + 2], 16) for i in (1, 3, 5))
        assert red == green == blue and grey != figures.BASE
        assert figures.model_colour(f"models/miniature-{word}") == grey
        assert figures.model_colour(f"base__{word}__seed7") == grey
    assert figures.model_colour("base__denoised") not in figures.CONTROLS.values()
    others = ["x", "y", "z"]
    assert len({figures.model_colour(label, others) for label in others}) == 3


def test_leaves_out_empty_panels_and_refuses_an_empty_figure() -> None:
    line = Line("a", [0, 1], [1.0, 2.0], figures.BASE)
    figure = figures.layer_figure("t", [Panel("p", "y", [line]), Panel("q", "y", [])])
    assert len(figure.axes) == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.layer_figure("t", [Panel("q", "y", [])])


def test_undefined_cells_are_gaps_in_a_line() -> None:
    table = pd.DataFrame({"layer": [0, 1, 2], "v": [1.0, None, 3.0], "v_low": 0.0, "v_high": 4.0})
    line = figures.column_line(table, "v", "v", figures.BASE)
    assert line.x == [0, 1, 2] and math.isnan(line.y[1])
    empty = figures.column_line(table.assign(v=None), "v", "v", figures.BASE)
    assert empty.x == [] and empty.y == []


@pytest.mark.parametrize(
    "extension", ["png", *(pytest.param(x, marks=pytest.mark.study) for x in ("pdf", "svg"))]
)
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, extension: str) -> None:
    found = []
    for name in "ab":
        planned = results.PlannedRun(tmp_path / name, "", {"format": extension})
        line = Line("a", [0, 1], [1.0, 2.0], figures.BASE, low=[0.5, 1.5], high=[1.5, 2.5])
        with results.open_run(planned) as run:
            run.figure("f", figures.layer_figure("t", [Panel("p", "y", [line], 0.0, "zero")]))
        found.append((tmp_path / name / f"f.{extension}").read_bytes())
    assert found[0] == found[1]


def test_labels_of_steps_do_not_touch() -> None:
    steps = [0, 5, 10, 20, 40, 70, 100]
    line = Line("a", steps, [0.5] * len(steps), figures.BASE)
    figure = figures.layer_figure("t", [Panel("p", "y", [line], log_steps=True)] * 6, columns=3)
    figure.draw_without_rendering()
    for axes in figure.axes[:6]:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert len(boxes) > 3 and axes.get_xticklabels()[-1].get_text() == "100"
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
