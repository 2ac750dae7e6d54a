"""The signature's figure: where marks stand, and that nothing lies on anything."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from planted_tables import Study

from model_diffs.report import placing, signature_figure


def test_squeezing_keeps_order_and_the_two_ends() -> None:
    places = [placing.squeeze(p) for p in np.linspace(-20, 20, 401)]
    assert placing.squeeze(0) == 0 and placing.squeeze(1) == 1 and placing.squeeze(0.5) == 0.5
    assert (np.diff(places) > 0).all() and places[0] > -1 and places[-1] < 2


def test_rows_run_from_the_base_to_the_filtered_model(tmp_path: Path) -> None:
    signature = Study(tmp_path).everything().read()
    rows = {m.key: placing.row_of(signature, m) for m in signature.measures}
    moved = rows["dh_forget"]
    assert moved.between and moved.base.at == pytest.approx(1 / 3)
    assert moved.filtered.at == pytest.approx(2 / 3)
    assert moved.marks[0].at == pytest.approx((placing.squeeze(2.0) + 1) / 3)
    # General accuracy is the base's in both: nothing lies between them.
    assert not rows["general_accuracy"].between
    assert rows["general_accuracy"].scale == (0.0, 1.0)
    assert not rows["stable_rank"].between and rows["stable_rank"].base is None


@pytest.mark.parametrize("models", [("filtered",), ("npo",), ("filtered", "npo"),
                                    ("filtered", *"abcdefghi")])  # fmt: skip
def test_the_figure_has_room_for_its_texts(tmp_path: Path, models: tuple[str, ...]) -> None:
    sizes = {name: 0.5 + 0.2 * i for i, name in enumerate("abcdefghi")}
    found = Study(tmp_path, models, **sizes).everything().read()
    figure = signature_figure.draw(found)
    figure.canvas.draw()
    assert figure.bbox.width == 1200
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text()]
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= 1200 and box.y0 >= 0 and box.y1 <= figure.bbox.height
    overlaps = [
        (a, b) for a, b in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 3
    ]  # fmt: skip
    assert not overlaps
    plt.close(figure)
