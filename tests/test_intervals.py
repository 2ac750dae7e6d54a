"""Bootstrap intervals: coverage on planted truths, pairing, agreement with scipy."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from model_diffs.stats import intervals
from model_diffs.stats.intervals import document_weights, mean_interval, ratio_interval


def test_weights_count_draws_of_documents() -> None:
    weights = document_weights(7, seed=3)
    assert weights.shape == (1000, 7) and (weights.sum(1) == 7).all()
    assert (weights == document_weights(7, seed=3)).all()
    assert not (weights == document_weights(7, seed=4)).all()


def test_equals_a_loop_that_resamples_documents_with_their_tokens() -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 30, 12)
    documents = [generator.normal(size=n) for n in counts]
    sums = np.array([d.sum() for d in documents])
    found = ratio_interval(sums, counts, seed=5)
    means = [
        np.concatenate([documents[i] for i in np.repeat(np.arange(12), w.astype(int))]).mean()
        for w in document_weights(12, 5)
    ]
    assert found.mean == pytest.approx(np.concatenate(documents).mean())
    assert found.low == pytest.approx(np.percentile(means, 2.5))
    assert found.high == pytest.approx(np.percentile(means, 97.5))


def test_agrees_with_scipy_up_to_resampling_noise() -> None:
    values = np.random.default_rng(1).exponential(size=200)
    found = mean_interval(values, seed=0)
    reference = bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = reference.high - reference.low
    assert found.low == pytest.approx(reference.low, abs=0.1 * width)
    assert found.high == pytest.approx(reference.high, abs=0.1 * width)


def test_coverage_of_the_95_percent_interval() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for trial in range(300):
        found = mean_interval(generator.normal(1.0, 2.0, size=60), seed=trial)
        hits += bool(found.low <= 1.0 <= found.high)
    # 95 % of 300 is 285 with a standard deviation of 4; percentile intervals run a little short.
    assert 270 <= hits <= 297


def test_paired_difference_of_equal_samples_is_exactly_zero() -> None:
    sums = np.random.default_rng(3).normal(size=(20, 4))
    found = ratio_interval(sums - sums, np.ones(20), seed=0)
    assert not np.any(found.mean) and not np.any(found.low) and not np.any(found.high)


def test_refuses_a_document_without_tokens() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        ratio_interval([1.0], [0.0], seed=0)


# ── answers of entities ───────────────────────────────────────────────────────────────────────────


def test_the_ends_of_wilson_solve_its_equation() -> None:
    # Brown, Cai & DasGupta 2001: the ends solve (p̂ − p)² = z² p (1 − p) / n.
    z = norm.ppf(0.975)
    for successes, trials in ((0, 7), (3, 10), (25, 25)):
        for end in intervals.wilson(successes, trials):
            distance = (successes / trials - end) ** 2
            assert distance == pytest.approx(z**2 * end * (1 - end) / trials, abs=1e-12)


def test_answers_of_one_entity_stand_and_fall_together() -> None:
    entities = [f"e{i}" for i in range(40) for _ in range(5)]
    correct = np.repeat(np.arange(40) % 2, 5)  # all five answers of an entity alike
    clustered = intervals.entity_interval(correct, entities, 0)
    single = intervals.mean_interval(correct, 0)
    widths = [float(one.high - one.low) for one in (clustered, single)]
    assert widths[0] == pytest.approx(widths[1] * 5**0.5, rel=0.1)  # 40 draws instead of 200
    # The same as resampling the entities' means, since all have five questions.
    means = intervals.mean_interval(np.arange(40) % 2, 0)
    np.testing.assert_allclose(clustered, means)


def test_an_interval_where_all_answers_are_alike() -> None:
    for value in (0, 1):
        found = intervals.entity_interval([value] * 50, [f"e{i // 5}" for i in range(50)], 0)
        low, high = intervals.wilson(10 * value, 10)
        np.testing.assert_allclose(found, (value, low, high), atol=1e-12)


# ── shapes and precision ──────────────────────────────────────────────────────────────────────────


def test_every_cell_has_the_interval_that_it_has_alone() -> None:
    draw = np.random.default_rng(4)
    sums, counts = draw.normal(size=(15, 2, 3)), draw.integers(1, 9, 15)
    found = ratio_interval(sums, counts, seed=1)
    assert found.mean.shape == found.low.shape == found.high.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        alone = ratio_interval(sums[:, i, j], counts, seed=1)
        np.testing.assert_allclose([one[i, j] for one in found], alone, rtol=1e-12)
    assert intervals.percentile_interval(3, [1, 2]).mean.dtype == np.float64


def test_cells_of_an_interval_have_the_names_of_its_column() -> None:
    found = intervals.percentile_interval(3, np.linspace(0, 40, 41)).cells("x")
    assert found == pytest.approx({"x": 3.0, "x_low": 1.0, "x_high": 39.0})
    assert all(type(value) is float for value in found.values())


def test_totals_of_single_precision_are_added_in_double() -> None:
    large = np.float32([2**24, 1, 1, 1])  # in fp32 2²⁴ + 1 is 2²⁴
    ones = np.ones(4, dtype=np.float32)
    assert ratio_interval(large, ones, 0).mean == (2**24 + 3) / 4
    assert ratio_interval(ones, large, 0).mean == 4 / (2**24 + 3)
    assert mean_interval(large, 0).mean == (2**24 + 3) / 4
    assert ratio_interval([1, 2], [0.5, 0.25], 0).mean == 4  # less than one token is no mistake


@pytest.mark.parametrize(("sums", "counts"), [([], []), ([1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0])])
def test_refuses_sums_without_their_counts(sums: list[float], counts: list[float]) -> None:
    with pytest.raises(ValueError, match="sums for"):
        ratio_interval(sums, counts, seed=0)


def test_weights_that_are_kept_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        intervals.document_weights(5, 1)[0, 0] = 7
