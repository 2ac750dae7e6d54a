"""The registered analysis on planted data, and against computations of its own."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from model_diffs.brittleness import analysis, choosing, measures, placing, power, tables
from model_diffs.brittleness.analysis import Settings
from model_diffs.brittleness.table import TARGET
from model_diffs.core.errors import BadInput

P0 = ("start_accuracy", "forget_nll", "rate_sum", "relative_change")
SETTINGS = Settings(("a", "b", "c"), P0, resamples=300, permutations=999)


def planted(kind: str, seed: int = 0, families: int = 12, noise: float = 0.3) -> pd.DataFrame:
    """Eight worlds; the target follows the signature, the strength, or neither, and the world."""
    draw, rows = np.random.default_rng(seed), []
    for world, family in itertools.product(range(1, 9), range(families)):
        signature, strength = draw.normal(size=3), draw.normal(size=4)
        strength[2:] = np.exp(strength[2:])  # sizes
        follows = {
            "signature": signature[0] - 0.5 * signature[1],
            "strength": strength[0],
            "nothing": draw.normal(),
        }[kind]
        row: dict[str, Any] = {"world": world, "part": "development" if world < 4 else "locked"}
        row |= {"model": f"f{family}", "role": "removal", "status": "attacked"}
        row |= dict(zip("abc", signature, strict=True)) | dict(zip(P0, strength, strict=True))
        rows.append(row | {TARGET: follows + noise * draw.normal() + 2 * world})
    return pd.DataFrame(rows)


def result(kind: str) -> analysis.Primary:
    rows = planted(kind)
    new = rows["part"] == "locked"
    return analysis.primary(rows[~new], rows[new], SETTINGS)


def test_a_signature_that_works_is_confirmed() -> None:
    found = result("signature")
    assert found.confirmed and found.rho.value > 0.75 and found.p == 0.001
    assert found.rho.low < found.rho.value < found.rho.high
    assert (found.worlds, found.models) == (5, 60)


def test_strength_that_works_refutes_the_signature() -> None:
    found = result("strength")
    assert not found.confirmed and found.gain.high < 0 and found.baseline.value > 0.75


def test_where_nothing_works_nothing_is_confirmed() -> None:
    assert not any(
        analysis.primary(rows[rows.world < 4], rows[rows.world > 3], SETTINGS).confirmed
        for rows in (planted("nothing", seed) for seed in range(3))
    )


def test_what_differs_between_worlds_alone_counts_for_nothing() -> None:
    """A predictor that is the number of the world knows all differences between worlds."""
    rows = planted("nothing").assign(a=lambda rows: rows["world"].astype(float))
    new = rows["part"] == "locked"
    only = SETTINGS._replace(predictors=("a",))
    assert analysis.primary(rows[~new], rows[new], only).rho.value == 0


def test_no_fit_sees_the_family_that_it_predicts() -> None:
    """A family whose targets are far off elsewhere leaves predictions of itself untouched."""
    rows = planted("signature")
    known, new = rows[rows["world"] < 4], rows[rows["world"] > 3]
    wrong = known.assign(**{TARGET: known[TARGET].where(known["model"] != "f3", 1e6)})
    own = (new["model"] == "f3").to_numpy()
    sides = [analysis.out_of_family(one, new, ("a", "b"), 1.0) for one in (known, wrong)]
    np.testing.assert_allclose(sides[0][own], sides[1][own])
    assert not np.allclose(sides[0][~own], sides[1][~own])


def test_ridge_is_the_closed_form_with_a_level_per_world() -> None:
    """Columns for the worlds that cost nothing give the same slopes."""
    rows = planted("signature")
    X, y = rows[["a", "b", "c"]].to_numpy(), rows[TARGET].to_numpy()
    Z = np.hstack([(X - X.mean(0)) / X.std(0), np.eye(8)[rows["world"] - 1]])
    penalty = np.diag([2.5] * 3 + [0.0] * 8)
    slopes = np.linalg.solve(Z.T @ Z + penalty, Z.T @ y)[:3]
    found = analysis.fit(rows, ("a", "b", "c"), 2.5)
    np.testing.assert_allclose(found.slopes, slopes)
    np.testing.assert_allclose(found.predict(rows).mean(), y.mean())


def test_sizes_of_a_change_enter_as_logarithms() -> None:
    """A target that follows the logarithm is predicted exactly where sizes span five orders."""
    draw = np.random.default_rng(0)
    rows = planted("nothing").assign(rate_sum=lambda rows: 10 ** draw.uniform(-4, 1, len(rows)))
    rows[TARGET] = np.log(rows["rate_sum"])
    found = analysis.fit(rows, ("rate_sum",), 1e-9)
    assert np.ptp(found.score(rows) - rows[TARGET]) < 1e-6


@pytest.mark.parametrize("levels", [3, 1000])
def test_rank_correlation_is_scipy_s(levels: int) -> None:
    draw = np.random.default_rng(levels)
    for _ in range(20):
        a, b = draw.integers(0, levels, 9).astype(float), draw.normal(size=9)
        assert analysis.spearman(a, b) == pytest.approx(spearmanr(a, b)[0], abs=1e-12)


def test_partial_rank_correlation_is_that_of_residuals() -> None:
    draw = np.random.default_rng(3)
    x, y, z = draw.normal(size=(3, 40))
    y = y + z
    ranks = [pd.Series(one).rank().to_numpy() for one in (x, y, z)]
    residuals = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    found = analysis.partial_rho(x, y, z, np.zeros(40, int))
    assert found == pytest.approx(np.corrcoef(residuals)[0, 1])


def test_what_a_family_repeats_in_every_world_counts_once() -> None:
    """Four families ordered alike in six worlds: of 24 orders of families one is the observed one,
    though that it is so in all worlds by chance is far rarer."""
    x, worlds = np.tile(np.arange(4.0), 6), np.repeat(np.arange(6), 4)
    families = np.tile(np.array(list("abcd")), 6)
    found = analysis.family_p(x, x, worlds, families, 5_000, 0)
    assert found == pytest.approx(1 / 24, abs=0.01)
    assert analysis.permutation_p(x, x, worlds, 5_000, 0) < 0.001


def test_families_without_a_partner_in_a_world_are_left_out_of_its_permutation() -> None:
    rng = np.random.default_rng(0)
    worlds, families = np.repeat([1, 2], 6), np.array([*"abcdef", *"abcdeg"])
    x = rng.normal(size=12)
    assert 0.2 < analysis.family_p(x, rng.normal(size=12), worlds, families, 500, 0) <= 1


def test_given_strength_a_signature_that_repeats_it_has_nothing_left() -> None:
    """The signature is a noisy copy of a strength that orders all; another adds to it."""
    rows = planted("strength", noise=0.5)
    copy = np.random.default_rng(1).normal(size=len(rows))
    own = (rows[TARGET] - 2 * rows["world"] - rows[P0[0]]).to_numpy()
    rows = rows.assign(a=rows[P0[0]] + 0.5 * copy, b=copy, c=own + 0.02 * copy)
    new = rows["part"] == "locked"
    for predictors, adds in ((("a", "b"), False), (("c",), True)):
        found = analysis.primary(
            rows[~new], rows[new], SETTINGS._replace(predictors=predictors, baseline=P0[:1])
        )
        assert (found.partial.low > 0) == adds, predictors
        assert (found.both_gain.value > 0.05) == adds, predictors
        assert found.both_gain.value == pytest.approx(found.both.value - found.baseline.value)


def test_a_measure_is_given_the_score_of_strength_and_not_its_level() -> None:
    """A family's level, left out of its own fit, would order families against their targets."""
    rows = planted("nothing", families=6)
    lifts = {f"f{i}": float(i) for i in range(6)}
    rows[TARGET] = rows["model"].map(lifts) + 2 * rows["world"]
    known, new = (rows[rows["part"] == part] for part in ("development", "locked"))
    found = tables.measures_table(known, new, SETTINGS).set_index("measure")
    strength = analysis.scores(known, new, P0, SETTINGS.ridge)
    expected = analysis.partial_rho(
        new["a"].to_numpy(), new[TARGET].to_numpy(), strength, new["world"].to_numpy()
    )
    assert found.loc["a", "partial_rho"] == pytest.approx(expected)


def test_permutations_give_the_exact_share_of_a_small_case() -> None:
    """One world of four: of 24 orders one is the observed one, so that p is near 1/24."""
    x, worlds = np.arange(4.0), np.zeros(4, int)
    assert analysis.permutation_p(x, x, worlds, 20_000, 0) == pytest.approx(1 / 24, abs=0.005)


def test_auroc_counts_pairs() -> None:
    assert measures.auroc(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == 3.5 / 4


def test_deep_models_are_told_from_shallow_and_harmless_ones_within_worlds() -> None:
    rows = pd.DataFrame([
        {"world": world, "model": model, "role": role, "m": value + 100 * world}
        for world in (1, 2)
        for model, role, value in (
            ("miniature-filtered", "deep", 5.0), ("miniature-scrambled", "deep", 4.0),
            ("npo", "removal", 1.0), ("benign", "control", 2.0), ("noise", "control", 9.0),
        )
    ])  # fmt: skip
    assert measures.deep_auroc(rows, "m") == 1.0


def test_the_planted_three_are_chosen() -> None:
    rows = planted("signature")
    known = rows[rows["part"] == "development"].assign(
        **{f"noise{i}": np.random.default_rng(i).normal(size=36) for i in range(3)}
    )
    found = choosing.choose(known, ["a", "b", "c", "noise0", "noise1", "noise2"], 1.0)
    best = found[found["size"] == 3].iloc[0]
    assert {"a", "b"} <= set(best["predictors"].split())
    assert found.iloc[0]["predictors"] == "a"


def test_of_measures_of_strength_one_is_in_a_triple() -> None:
    rows = planted("strength").assign(start_margin=lambda rows: rows["start_accuracy"] * 2)
    known = rows[rows["part"] == "development"]
    found = choosing.choose(known, ["a", "b", "c", "start_margin", *P0], 1.0)
    threes = [{*one.split()} for one in found.loc[found["size"] == 3, "predictors"]]
    assert threes and all(len(one & choosing.STRENGTH) <= 1 for one in threes)
    assert {"start_accuracy", "start_margin"} & threes[0]


def test_a_candidate_that_some_model_lacks_is_not_used() -> None:
    rows = planted("signature")
    rows.loc[0, "a"] = np.nan
    assert choosing.usable(rows, ["a", "b"]) == ["b"]


def test_power_grows_with_the_truth_and_is_small_without_one() -> None:
    found = [
        power.simulate(power.Assumed(rho, 0.0, family=0.0), 5, 12, 30, 100, 0) for rho in (0.0, 0.9)
    ]
    assert found[0]["confirmed"] <= 0.1 and found[1]["confirmed"] >= 0.9


# ── a model of one's own ──────────────────────────────────────────────────────────────────────────


def test_a_placed_model_s_interval_covers_new_families() -> None:
    """Of 100 models of families that no fit saw, about 95 % lie within."""
    rows = planted("signature", families=24).assign(
        **{TARGET: lambda rows: rows[TARGET] - 2 * rows["world"]}
    )
    known = rows[rows["part"] == "development"]
    new = planted("signature", seed=9, families=40).assign(
        **{TARGET: lambda rows: rows[TARGET] - 2 * rows["world"]}
    )
    found = placing.place(known, new.iloc[[0]], SETTINGS)
    predicted = analysis.fit(known, SETTINGS.predictors, SETTINGS.ridge).predict(new)
    assert found.predicted == pytest.approx(predicted[0])
    inside = np.abs(predicted - new[TARGET]) <= found.high - found.predicted
    assert 0.9 <= np.mean(inside) <= 1.0


def test_with_few_models_the_interval_is_infinite() -> None:
    """Of 18 errors none is large enough for 95 %; of 19 the largest is."""
    rows = planted("signature", families=6)
    known = rows[rows["part"] == "development"]
    assert placing.place(known, known.iloc[[0]], SETTINGS).high == np.inf
    more = planted("signature", families=7)
    more = more[more["part"] == "development"].iloc[:19]
    found = placing.place(more, more.iloc[[0]], SETTINGS)
    assert found.high - found.predicted == pytest.approx(placing.errors(more, SETTINGS).max())


def test_a_model_is_not_placed_among_families_or_worlds_that_nothing_else_predicts() -> None:
    rows = planted("signature", families=6)
    known = rows[rows["part"] == "development"]
    for few in (known[known["world"] == 1], known[known["model"] == "f3"], known.iloc[:0]):
        with pytest.raises(BadInput, match="another family in another world"):
            placing.place(few, known.iloc[[0]], SETTINGS)


def test_errors_are_of_fits_that_saw_neither_family_nor_world() -> None:
    rows = planted("signature", families=5)
    known = rows[rows["part"] == "development"].reset_index(drop=True)
    wrong = known.copy()
    seen = (known["world"] == 2) | (known["model"] == "f3")
    wrong.loc[seen & ~((known["world"] == 2) & (known["model"] == "f3")), TARGET] = 1e6
    own = ((known["world"] == 2) & (known["model"] == "f3")).to_numpy()
    before, after = (placing.errors(one, SETTINGS) for one in (known, wrong))
    assert before[own] == pytest.approx(after[own])
    assert not np.allclose(before[~own], after[~own])


def test_a_model_beyond_those_fitted_is_said_to_be() -> None:
    rows = planted("signature")
    known = rows[rows["part"] == "development"]
    like, unlike = known.iloc[[0]], known.iloc[[0]].assign(b=50.0)
    assert placing.place(known, like, SETTINGS).within
    found = placing.place(known, unlike, SETTINGS)
    assert found.outside == ("b",) and not found.within
