"""How the rows of a step's table become one number and its resamples, on tables written here."""

from pathlib import Path

import pytest
from planted_outroot import FOLDER, MATRICES, Outroot, absent


@pytest.fixture
def out(tmp_path: Path) -> Outroot:
    return Outroot(tmp_path)


def test_numbers_of_matrices_by_hand(out: Outroot) -> None:
    out.table("t", MATRICES)
    for measure, expected, rows in (
        ({}, 5.25, "mean over 4 rows"),
        ({"layers": "blocks"}, 11 / 3, "mean over 3 rows of blocks"),
        ({"where": {"group": "mlp"}}, 4.0, "mean over 2 rows, group=mlp"),
        ({"where": {"name": "d"}}, 6.0, "mean over 1 row, name=d"),
        ({"weights": ("w",)}, (10 + 4 + 18) / 6, "mean over 3 rows, weighted by w"),
        ({"weights": ("w", "w")}, (10 + 8 + 54) / 14, "mean over 3 rows, weighted by w²"),
        ({"weights": ("w", "y")}, (10 + 16 + 144) / 33, "mean over 3 rows, weighted by w · y"),
        ({"relative_to": "y", "norm": True}, (149 / 106) ** 0.5, "√(Σ x² / Σ y²) over 4 rows"),
        ({"relative_to": "y", "weights": ("w",)}, 32 / 33, "Σ x · w / Σ y · w over 3 rows"),
        ({"where": {"group": "mlp"}, "over": {"group": "mlp"}}, 1.0, None),
    ):  # fmt: skip
        found = out.read(**measure)
        assert found.value == pytest.approx(expected), measure
        assert found.sample is None and found.ends == (found.value, found.value)
        assert (found.source.path, found.source.column) == (f"{FOLDER}/t.csv", "x")
        if rows:
            assert found.source.rows == rows


def test_weights_of_another_table_are_joined_by_name(out: Outroot) -> None:
    out.table("t", MATRICES)
    out.table("sizes", {"name": ["d", "c", "b", "a"], "s": [1, 2, 3, 4]}, "base__to__npo/other")
    found = out.read(weights=("s",), weights_from="other/sizes")
    assert found.value == pytest.approx((40 + 6 + 6 + 6) / 10)
    assert found.source.rows == "mean over 4 rows, weighted by s of other/sizes.csv"
    out.table("sizes", {"name": ["d", "c"], "s": [1, 2]}, "base__to__npo/other")
    assert absent(out, "name other matrices", weights=("s",), weights_from="other/sizes").defect


STATES = {"layer": [3, 1, 0, 2], "x": [4.0, 2.0, 100.0, 3.0], "x_low": 1.0, "x_high": 9.0}


def test_hidden_states_are_chosen_by_depth(out: Outroot) -> None:
    out.table("t", STATES)
    for layers, expected, rows in (
        ("states", 3.0, "mean over layer 1-3"),
        ("last", 4.0, "layer=3"),
        ("early", 2.0, "mean over layer=1"),
        ("middle", 3.0, "mean over layer=2"),
        ("late", 4.0, "mean over layer=3"),
    ):
        found = out.read(layers=layers)
        assert (found.value, found.source.rows) == (expected, rows)


def test_one_side_over_the_other(out: Outroot) -> None:
    rows = {"model": ["base", "npo"] * 2, "text": [0, 0, 1, 1], "x": [1.0, 3.0, 3.0, 5.0]}
    out.table("t", rows)
    sides = {"where": {"model": "{changed}"}, "over": {"model": "{base}"}, "paired_by": "text"}
    found = out.read(**sides)
    assert found.value == 2.0
    assert found.source.rows == "mean over 2 rows, model=npo over base"
    assert "2 are too few" in found.unpaired
    # A model against itself: the base's rows come first.
    out.table("t", {**rows, "model": ["base"] * 4}, "base__to__base/step")
    assert out.read("base__to__base/step", changed="base", **sides).value == 2.0
    out.table("t", {**rows, "x": [0.2, 0.1, 0.2, 0.1]})
    assert out.read(**sides).value == 0.5
    out.table("t", {**rows, "x": [0.0, 1.0, 0.0, 1.0]})
    assert absent(out, "x is zero: there is no ratio", **sides)
    out.table("t", {**rows, "text": [0, 0, 1, 2]})
    assert absent(out, "other texts on its two sides", **sides).defect


def test_what_the_tables_lack_is_said(out: Outroot) -> None:
    out.table("t", {**MATRICES, "y": 0.0, "w": 0.0, "e": [1.0, None, 2.0, 3.0]})
    assert absent(out, "no row with group=none", where={"group": "none"}).defect
    assert not absent(out, "^nothing$", where={"group": "none"}, undefined="nothing").defect
    assert not absent(out, "^y is zero$", relative_to="y").defect
    assert absent(out, "^undefined$", relative_to="y", undefined="undefined")
    assert absent(out, "has no row", weights=("w",)).defect
    assert not absent(out, "^no weight$", weights=("w",), undefined="no weight").defect
    empty = {"column": "e", "may_be_empty": True, "undefined": "a cell is empty"}
    assert not absent(out, "^a cell is empty$", **empty).defect
    out.table("t", {**MATRICES, "e": [1.0, None, 2.0, 3.0]})
    assert absent(out, "an empty cell in e", **empty, weights=("y",)).defect
    out.table("t", MATRICES, questions=None)
    for paired in ("question", "entity"):
        assert absent(out, "without --questions", paired_by=paired)


def test_an_empty_cell_of_weight_zero_does_not_count(out: Outroot) -> None:
    out.table("t", {**MATRICES, "x": [10.0, 2.0, None, 6.0]})
    assert out.read(weights=("w",), may_be_empty=True).value == pytest.approx(32 / 6)
