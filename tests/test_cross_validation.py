"""Folds, resamples and the discriminant's parts, by hand and against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import Split
from model_diffs.stats import cross_validation, discriminant
from model_diffs.stats.cross_validation import Design
from model_diffs.stats.intervals import document_weights

# ── folds ─────────────────────────────────────────────────────────────────────────────────────────


def test_classes_are_drawn_with_the_seed_and_the_next() -> None:
    """Step 11 and its measure resample the splits so too: the draws are a contract."""
    plan = cross_validation.design(30, 40, 5, seed=9)
    np.testing.assert_array_equal(plan.forget, document_weights(30, 9))
    np.testing.assert_array_equal(plan.retain, document_weights(40, 10))
    assert plan.labels.tolist() == [True] * 30 + [False] * 40
    for members in (plan.labels, ~plan.labels):
        in_order = np.arange(members.sum()) % 5
        assert sorted(plan.folds[members]) == sorted(in_order)
        assert plan.folds[members].tolist() != in_order.tolist(), "folds are drawn"


def test_five_folds_unless_asked_otherwise() -> None:
    assert cross_validation.FOLDS == 5, "docs/separation.md and docs/probes.md say so"


def test_given_folds_are_kept_and_resamples_without_a_pair_left_out() -> None:
    place = np.array([0, 0, 1, 1, 2, 2])  # a pair can only be in fold 1
    plan = cross_validation.design(3, 3, 3, seed=0, place=place)
    np.testing.assert_array_equal(plan.folds, place)
    forget, retain = document_weights(3, 0), document_weights(3, 1)
    kept = [f[2] > 0 and r[0] > 0 for f, r in zip(forget, retain, strict=True)]
    assert 0 < sum(kept) < 1000
    np.testing.assert_array_equal(plan.forget, forget[kept])
    np.testing.assert_array_equal(plan.retain, retain[kept])


def test_too_few_documents_or_folds_are_refused() -> None:
    with pytest.raises(BadInput, match="--folds 1"):
        cross_validation.design(9, 9, 1, 0)
    assert len(cross_validation.design(2, 9, 2, 0).labels) == 11
    for sizes, name in (((2, 9), "forget split has 2"), ((9, 2), "retain split has 2")):
        with pytest.raises(BadInput, match=name):
            cross_validation.design(*sizes, 3, 0)
    splits = [Split(n, Path(n), ["text"] * size) for n, size in (("forget", 3), ("retain", 2))]
    cross_validation.check_splits(splits, 2)
    with pytest.raises(BadInput, match="retain split has 2"):
        cross_validation.check_splits(splits, 3)


def test_documents_that_share_a_thing_are_in_one_group() -> None:
    mentioned = [{"a"}, {"b"}, set(), {"c", "b"}, {"d"}, {"a", "c"}, set(), {"d"}]
    found = cross_validation.groups(mentioned).tolist()
    # 0–5–3–1 through a, c and b; 4–7 through d; 2 and 6 by themselves.
    assert found == [0, 0, 1, 0, 2, 0, 3, 2]


def test_whole_groups_are_spread_over_folds_with_both_classes() -> None:
    draw = np.random.default_rng(0)
    group = draw.integers(0, 25, 200)
    labels = draw.random(200) < 0.4
    place = cross_validation.whole_groups(group, labels, 5, seed=1)
    assert place is not None
    for one in np.unique(group):
        assert len(set(place[group == one])) == 1
    for of_class in (labels, ~labels):
        counts = np.bincount(place[of_class], minlength=5)
        share = of_class.sum() / 5
        assert counts.min() > 0.6 * share and counts.max() < 1.4 * share
    other = cross_validation.whole_groups(group, labels, 5, seed=2)
    again = cross_validation.whole_groups(group, labels, 5, seed=1)
    np.testing.assert_array_equal(place, again)
    assert other is not None and (other != place).any()
    single = np.zeros(200, dtype=np.int64)
    assert cross_validation.whole_groups(single, labels, 5, seed=1) is None


def test_groups_are_placed_as_the_greedy_rule_says() -> None:
    """Groups of equal size come in the drawn order."""
    draw = np.random.default_rng(5)
    group, labels = np.repeat(np.arange(40), 2), np.tile([True, False], 40)
    group = np.append(group, draw.integers(0, 40, 30))
    labels = np.append(labels, draw.random(30) < 0.5)
    shares = [
        [((group == one) & of).sum() / of.sum() for of in (labels, ~labels)] for one in range(40)
    ]
    order = np.random.default_rng(8).permutation(40).tolist()
    full, place = [[0.0, 0.0] for _ in range(4)], {}
    for one in sorted(order, key=lambda one: -max(shares[one])):
        after = [[f + s for f, s in zip(fold, shares[one], strict=True)] for fold in full]
        best = min(range(4), key=lambda fold: (max(after[fold]), sum(after[fold])))
        place[one], full[best] = best, after[best]
    found = cross_validation.whole_groups(group, labels, 4, seed=8)
    assert found is not None
    assert found.tolist() == [place[one] for one in group]


def test_the_largest_group_is_placed_first_and_alone() -> None:
    group = np.repeat([0, 1, 2, 3], [2, 8, 2, 4])
    labels = np.tile([True, False], 8)  # half of each group
    place = cross_validation.whole_groups(group, labels, 2, seed=0)
    assert place is not None
    folds = place[[0, 2, 10, 12]]
    assert (folds != folds[1]).sum() == 3, "eight against two, two and four"


# ── statistics of a design ────────────────────────────────────────────────────────────────────────


def small() -> Design:
    """Three forget and two retain documents in two folds, and one resample of each class."""
    return Design(
        np.array([True, True, True, False, False]),
        np.array([0, 0, 1, 0, 1]),
        np.array([[1.0, 1, 1], [3, 0, 0], [0, 1, 2]]),
        np.array([[1.0, 1], [2, 0], [1, 1]]),
    )


def test_auc_and_mean_by_hand() -> None:
    scores = np.array([2.0, 1.0, 5.0, 1.0, 6.0])
    # Fold 0: 2 > 1 right, 1 = 1 half; fold 1: 5 < 6 wrong. Pairs across folds do not count.
    found = cross_validation.auc(scores, small())
    assert found.value == pytest.approx(1.5 / 3)
    np.testing.assert_allclose(found.resampled, [1.5 / 3, 6 / 6, 0.5 / 3])
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    mean = cross_validation.mean(values, small())
    assert mean.value == pytest.approx(31 / 5)
    np.testing.assert_allclose(mean.resampled, [31 / 5, (3 + 16) / 5, (2 + 8 + 24) / 5])
    left, right = np.array([[1.0, 2], [0, 1]]), np.array([[1.0, 0, 1], [2, 1, 0]])
    matrix = np.array([[1.0, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(cross_validation.quadratic(left, matrix, right), [24.0, 13.0])


def test_folds_are_stratified_and_seeded() -> None:
    plan = cross_validation.design(23, 41, 5, seed=3)
    for members, size in ((plan.labels, 23), (~plan.labels, 41)):
        counts = np.bincount(plan.folds[members])
        assert counts.max() - counts.min() <= 1 and counts.sum() == size
    again = cross_validation.design(23, 41, 5, seed=3)
    assert all(np.array_equal(x, y) for x, y in zip(plan, again, strict=True))
    assert not np.array_equal(plan.folds, cross_validation.design(23, 41, 5, seed=4).folds)
    equal = cross_validation.design(20, 20, 5, seed=3)
    assert not np.array_equal(equal.forget, equal.retain), "the classes are drawn independently"


def test_auc_is_scikit_learns_within_folds_and_resamples_repeat_documents() -> None:
    plan = cross_validation.design(20, 30, 5, seed=0)
    draw = np.random.default_rng(1)
    scores = np.round(draw.normal(size=50) + plan.labels, 1)  # rounding makes ties
    found = cross_validation.auc(scores, plan)
    folds = [plan.folds == fold for fold in range(5)]
    expected = np.mean([roc_auc_score(plan.labels[f], scores[f]) for f in folds])
    assert found.value == pytest.approx(expected, abs=1e-12)
    for i in (0, 7, 99):
        counts = np.concatenate([plan.forget[i], plan.retain[i]])
        right = total = 0.0
        for fold in folds:
            pairs = counts[fold & plan.labels].sum() * counts[fold & ~plan.labels].sum()
            if pairs:
                area = roc_auc_score(plan.labels[fold], scores[fold], sample_weight=counts[fold])
                right, total = right + pairs * area, total + pairs
        assert found.resampled[i] == pytest.approx(right / total, abs=1e-12)


def test_leaves_out_resamples_without_a_common_fold() -> None:
    plan = cross_validation.design(2, 2, 2, seed=0)
    assert 0 < len(plan.forget) == len(plan.retain) < 1000
    assert np.isfinite(cross_validation.auc(np.arange(4.0), plan).resampled).all()


# ── the discriminant ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 30), (12, 12), (200, 3)])
def test_shrinkage_is_that_of_ledoit_and_wolf(n: int, d: int) -> None:
    draw = np.random.default_rng(n)
    for spread in (np.ones(d), np.exp(2 * draw.normal(size=d))):
        Z = draw.normal(size=(n, d)) * spread
        Z -= Z.mean(0)
        expected = ledoit_wolf_shrinkage(Z, assume_centered=True)
        assert discriminant.shrinkage(Z) == pytest.approx(expected, rel=1e-9)


def test_shrinkage_stays_between_none_and_all() -> None:
    # Two opposite documents: E is exact, nothing to shrink.
    assert discriminant.shrinkage(np.array([[1.0, 2.0], [-1.0, -2.0]])) == 0
    # E is a multiple of the identity already.
    assert discriminant.shrinkage(np.eye(4)) == 0
    # White noise: E deviates from the identity by sampling error alone.
    draw, found = np.random.default_rng(0), []
    for _ in range(20):
        Z = draw.normal(size=(20, 3))
        found.append(discriminant.shrinkage(Z))
        expected = ledoit_wolf_shrinkage(Z, assume_centered=True)
        assert found[-1] == pytest.approx(expected, rel=1e-9)
    assert max(found) == 1


@pytest.mark.parametrize(("rows", "d"), [(3, 7), (7, 3), (5, 5)])
def test_a_diagonal_plus_few_ranks_is_inverted(rows: int, d: int) -> None:
    draw = np.random.default_rng(1)
    diagonal, R, v = draw.uniform(1, 2, d), draw.normal(size=(rows, d)), draw.normal(size=d)
    found = discriminant._solve(diagonal, R, v)
    np.testing.assert_allclose(found, np.linalg.solve(np.diag(diagonal) + R.T @ R, v), rtol=1e-10)


def test_unequal_classes_move_the_threshold_by_their_log_odds() -> None:
    draw = np.random.default_rng(2)
    train = draw.normal(size=(60, 4))
    labels = np.arange(60) < 12
    train[labels] += 0.7
    test = draw.normal(size=(9, 4))
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, labels)
    found = discriminant.decision(train, labels, test)
    np.testing.assert_allclose(found, expected.decision_function(test), rtol=1e-9, atol=1e-9)
    middle = (train[labels].mean(0) + train[~labels].mean(0)) / 2
    assert discriminant.decision(train, labels, middle[None])[0] == pytest.approx(np.log(12 / 48))


def test_a_feature_that_varies_by_rounding_alone_is_constant() -> None:
    """Its scale would otherwise blow rounding up to the size of the others."""
    draw = np.random.default_rng(3)
    train, labels = draw.normal(size=(40, 3)), np.arange(40) < 20
    train[labels] += 1.0
    test = draw.normal(size=(5, 3))
    train[:, 1] = test[:, 1] = 1e6
    expected = discriminant.decision(train, labels, test)
    train[:, 1] += np.spacing(1e6) * draw.integers(0, 2, 40)
    found = discriminant.decision(train, labels, test)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_constant_and_tiny_features_are_scaled_as_scikit_learn_does() -> None:
    draw = np.random.default_rng(6)
    train, labels = draw.normal(size=(50, 6)) * np.exp(draw.normal(size=6)), np.arange(50) < 20
    train[labels, :2] += 0.5
    train[:, 3] *= 1e-7
    test = draw.normal(size=(6, 6))
    test[:, 3] *= 1e-7
    train[:, 4], train[:, 5] = 0.0, -7.0
    test[:, 4:] += 0.1  # what was constant in training is not in what is tested
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, labels)
    found = discriminant.decision(train, labels, test)
    np.testing.assert_allclose(found, expected.decision_function(test), rtol=1e-7)


def test_out_of_fold_scores_never_see_their_own_fold() -> None:
    draw = np.random.default_rng(4)
    states = draw.normal(size=(20, 3))
    plan = cross_validation.design(8, 12, 4, seed=0)
    found = discriminant.out_of_fold(states, plan)
    for fold in range(4):
        test = plan.folds == fold
        alone = discriminant.decision(states[~test], plan.labels[~test], states[test])
        np.testing.assert_array_equal(found[test], alone)


def test_a_feature_that_is_constant_in_one_class_is_scaled_as_scikit_learn_does() -> None:
    draw = np.random.default_rng(4)
    train, labels = draw.normal(size=(40, 6)), np.arange(40) < 18
    train[labels, 2] = 3.0
    test = draw.normal(size=(15, 6))
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, labels)
    found = discriminant.decision(train, labels, test)
    np.testing.assert_allclose(found, expected.decision_function(test), rtol=1e-9, atol=1e-9)
