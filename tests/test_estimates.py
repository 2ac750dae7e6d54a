"""A number with its resamples, and how two numbers differ: by hand, and draw by draw."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from model_diffs.core.tables import Absent, Source
from model_diffs.stats import estimates
from model_diffs.stats.estimates import Difference, Estimate, Sample
from model_diffs.stats.intervals import document_weights
from model_diffs.stats.seeds import over_seeds

SOURCE = Source("folder/table.csv", "column", "")
DRAWS = np.linspace(0.0, 40.0, 41)  # percentiles 2.5 and 97.5 are 1 and 39


def with_draws(value: float, draws: Any, identity: str = "same") -> Estimate:
    return Estimate(value, SOURCE, 0.0, 0.0, Sample(np.asarray(draws, float), identity, "texts"))


def test_the_interval_of_a_number_is_the_number_where_an_end_is_missing() -> None:
    assert Estimate(3.0, SOURCE).ends == (3.0, 3.0)
    assert Estimate(3.0, SOURCE, 1.0).ends == Estimate(3.0, SOURCE, high=4.0).ends == (3.0, 3.0)
    assert Estimate(3.0, SOURCE, 1.0, 4.0).ends == (1.0, 4.0)


def test_an_interval_off_the_neutral_value_by_more_than_rounding_has_a_direction() -> None:
    for neutral in (0.0, 1.0):
        for low, high, direction in (
            (2e-9, 1.0, 1),
            (0.5, 1.0, 1),
            (5e-10, 1.0, 0),
            (-1.0, 1.0, 0),
            (-1.0, -5e-10, 0),
            (-1.0, -2e-9, -1),
            (0.0, 0.0, 0),
        ):
            found = Difference(0.0, neutral + low, neutral + high, neutral).direction
            assert found == direction, (neutral, low, high)
    assert Difference(0.0, 1e-9, 1.0, 0.0).direction == 0, "as much as rounding may be"
    assert Difference(0.0, -1.0, -1e-9, 0.0).direction == 0


def test_fewer_than_ten_units_are_not_resampled() -> None:
    with pytest.raises(Absent, match="9 are too few"):
        estimates.weights(9, 0)
    np.testing.assert_array_equal(estimates.weights(10, 5), document_weights(10, 5))


def test_sums_are_followed_by_those_of_each_resample() -> None:
    draw = np.random.default_rng(0)
    values, weight = draw.normal(size=12), draw.uniform(size=12)
    drawn = document_weights(12, 3)
    sums, counts = estimates.resampled_sums(values, weight, 3)
    assert len(sums) == len(counts) == 1001
    for row, times in ((0, np.ones(12)), (1, drawn[0]), (1000, drawn[999])):
        assert sums[row] == pytest.approx((times * weight * values).sum())
        assert counts[row] == pytest.approx((times * weight).sum())
    sums, counts = estimates.resampled_sums(values, None, 3)
    np.testing.assert_array_equal(counts, np.full(1001, 12.0))
    np.testing.assert_allclose(sums, [values.sum(), *(drawn @ values)])


@pytest.mark.parametrize(
    ("value", "again", "paired"),
    [
        (1.0, 1.0 + 5e-7, True),
        (1.0, 1.0 + 2e-6, False),
        (0.0, 5e-10, True),
        (0.0, 2e-9, False),
        (1e3, 1e3 + 5e-4, True),
    ],
)
def test_resamples_count_where_they_give_the_number_of_the_table(
    value: float, again: float, paired: bool
) -> None:
    found = estimates.resampled(value, SOURCE, "texts", lambda: (again, DRAWS, "name"))
    assert found.value == value and found.source == SOURCE
    if paired:
        assert (found.low, found.high) == pytest.approx((1.0, 39.0)) and not found.unpaired
        assert found.sample == Sample(DRAWS, "name", "texts")
        assert found.sample is not None and found.sample.resampled is DRAWS
    else:
        assert found.sample is found.low is found.high is None
        assert "do not give the number of folder/table.csv" in found.unpaired


def test_samples_are_equal_where_the_same_was_drawn() -> None:
    one = Sample(DRAWS, "draws", "texts")
    assert one == Sample(DRAWS + 1, "draws", "texts") != Sample(DRAWS, "others", "texts")


def test_without_resamples_a_number_says_why() -> None:
    def absent() -> Any:
        raise Absent("no values per text")

    found = estimates.resampled(2.0, SOURCE, "texts", absent)
    assert (found.value, found.sample, found.unpaired) == (2.0, None, "no values per text")
    undefined = np.append(DRAWS, np.nan)
    found = estimates.resampled(2.0, SOURCE, "texts", lambda: (2.0, undefined, "name"))
    assert found.sample is None and found.unpaired == "undefined on some resamples"


def test_a_difference_is_taken_draw_by_draw() -> None:
    a, b = with_draws(7.0, DRAWS[::-1] / 2), with_draws(10.0, DRAWS)
    found = estimates.difference(b, a)
    expected = np.percentile(DRAWS - DRAWS[::-1] / 2, [2.5, 97.5])
    assert found == pytest.approx((3.0, *expected, 0.0))
    found = estimates.difference(b, 4.0)
    assert found == pytest.approx((6.0, -3.0, 35.0, 0.0))
    found = estimates.difference(with_draws(10.0, DRAWS + 1), with_draws(5.0, DRAWS + 2), True)
    expected = np.percentile((DRAWS + 1) / (DRAWS + 2), [2.5, 97.5])
    assert found == pytest.approx((2.0, *expected, 1.0))
    found = estimates.difference(with_draws(8.0, DRAWS), 4.0, True)
    assert found == pytest.approx((2.0, 0.25, 9.75, 1.0))


def test_what_cannot_be_paired_has_no_difference() -> None:
    single, paired = Estimate(1.0, SOURCE), with_draws(1.0, DRAWS)
    assert estimates.difference(single, paired) is None
    assert estimates.difference(paired, single) is None
    assert estimates.difference(paired, with_draws(1.0, DRAWS, "other texts")) is None
    assert estimates.difference(paired, with_draws(1.0, DRAWS)) is not None
    # A ratio needs a positive number below, on every resample.
    assert estimates.difference(paired, with_draws(1.0, DRAWS), True) is None
    assert estimates.difference(paired, with_draws(0.0, DRAWS + 1), True) is None
    assert estimates.difference(paired, 0.0, True) is None
    assert estimates.difference(paired, with_draws(0.5, DRAWS + 0.5), True) is not None
    assert estimates.difference(paired, with_draws(0.0, DRAWS)) is not None


# ── over training seeds ───────────────────────────────────────────────────────────────────────────


def test_entries_with_two_seeds_have_mean_and_standard_deviation() -> None:
    columns = ["comparison", "base", "changed", "method", "depth", "depth_low", "depth_high"]
    rows = [
        ("a", "base", "base__npo__seed1", "npo", 1.0, 0.0, 9.0),
        ("b", "base", "base__npo__seed12", "npo", 4.0, 0.0, 9.0),
        ("c", "base", "base__npo", "npo", 100.0, 0.0, 9.0),
        ("d", "base", "base__rmu__seed1", "rmu", 5.0, 0.0, 9.0),
        ("e", "other", "base__npo__seed3", "npo", 7.0, 0.0, 9.0),
    ]
    table = pd.DataFrame(rows, columns=columns)
    found = over_seeds(table)
    assert found.columns.tolist() == ["base", "changed", "seeds", "depth_mean", "depth_std"]
    (row,) = found.to_dict("records")
    assert (row["base"], row["changed"], row["seeds"]) == ("base", "base__npo", 2)
    assert row["depth_mean"] == 2.5 and row["depth_std"] == pytest.approx(3 / 2**0.5)
    without = over_seeds(table[columns[:4]])
    assert without.empty and "seeds" in without
