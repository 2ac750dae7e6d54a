"""Estimates from some texts with a number known of all, against the regression estimator."""

import numpy as np
import pytest

from model_diffs.stats.intervals import mean_interval
from model_diffs.stats.subsample import asked, drawn, estimated


def population(seed: int, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A number, and one beside it that tells most of it."""
    draw = np.random.default_rng(seed)
    beside = draw.gamma(4.0, size=count)
    return 2 * beside + draw.normal(size=count) + 5, beside


def only(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    found = np.full_like(values, np.nan)
    found[kept] = values[kept]
    return found


def test_mean_is_that_of_the_line_through_what_was_measured() -> None:
    values, beside = population(0)
    kept = np.arange(3, 64, 5)
    line = np.polyfit(beside[kept], values[kept], 1)
    found = estimated(only(values, kept), beside)
    assert found.mean() == pytest.approx(np.polyval(line, beside.mean()))


def test_all_or_one_measured_value_stays_as_it_is() -> None:
    values, beside = population(1)
    np.testing.assert_array_equal(estimated(values, beside), values)
    one = only(values, np.arange(1))
    np.testing.assert_array_equal(estimated(one, beside), one)


def test_few_measured_values_give_their_mean() -> None:
    values, beside = population(1)
    found = estimated(only(values, np.arange(3)), beside)
    assert found.mean() == pytest.approx(values[:3].mean())
    assert len({*found.tolist()}) == 4, "and their spread"


def test_a_number_that_says_nothing_leaves_the_mean_of_what_was_measured() -> None:
    values, _ = population(2)
    kept = np.arange(0, 64, 4)
    found = estimated(only(values, kept), np.ones(64))
    assert found.mean() == pytest.approx(values[kept].mean())


def test_an_exact_relation_needs_no_more_texts() -> None:
    _, beside = population(3)
    kept = np.arange(0, 64, 8)
    np.testing.assert_allclose(estimated(only(3 * beside + 1, kept), beside), 3 * beside + 1)


def test_intervals_cover_the_mean_of_all_texts() -> None:
    """12 of 64 texts, 200 times: nearly all 95 % intervals hold the mean over the 64, and they are
    narrower than those of the 12 alone."""
    covered, widths = 0, []
    for seed in range(200):
        values, beside = population(seed)
        kept = np.random.default_rng(seed).permutation(64)[:12]
        low, high = mean_interval(estimated(only(values, kept), beside), seed)[1:]
        plain = mean_interval(values[kept], seed)
        covered += bool(low <= values.mean() <= high)
        widths.append((high - low) / (plain.high - plain.low))
    assert covered >= 185
    assert np.median(widths) < 0.8


@pytest.mark.parametrize(
    ("texts", "count", "expected"),
    [(64, None, 12), (10, None, 10), (40, None, 12), (200, None, 40), (500, None, 64),
     (64, 0, 64), (64, 5, 5), (4, 5, 4)],
)  # fmt: skip
def test_derivatives_are_of_a_fifth_drawn_at_random_unless_told(
    texts: int, count: int | None, expected: int
) -> None:
    found = [drawn(texts, count, seed) for seed in (1, 1, 2)]
    assert asked(texts, count) == expected == len(set(found[0]))
    assert found[0] == found[1] == sorted(found[0]) and set(found[0]) <= {*range(texts)}
    assert (found[0] == found[2]) == (expected == texts)
