"""Separation of forget and retain documents: planted truths and independent computations."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_study
from scipy.spatial.distance import cosine
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from model_diffs.activations import collecting
from model_diffs.core.errors import BadInput
from model_diffs.diagnostics import separation
from model_diffs.stats import cross_validation, discriminant

SCRIPT = "activation_separation_analysis.py"


def clouds(n: int, m: int, d: int, seed: int = 0, shift: float = 1.0) -> tuple:
    """Two classes with unequal scales per dimension and a large common mean."""
    draw = np.random.default_rng(seed)
    scale, common = np.exp(draw.normal(size=d)), 5 * draw.normal(size=d)
    offset = np.zeros(d)
    offset[:3] = shift
    return (
        (draw.normal(size=(n, d)) + offset) * scale + common,
        draw.normal(size=(m, d)) * scale + common,
    )


# ── discriminant analysis ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 6), (60, 20, 200), (8, 9, 40), (300, 200, 5)])
def test_scores_equal_scikit_learn(n: int, m: int, d: int) -> None:
    x, y = clouds(n, m, d)
    train, labels = np.concatenate([x, y]), np.arange(n + m) < n
    train[:, 4] = 0.1  # a constant feature
    test = np.concatenate(clouds(10, 10, d, seed=1))
    test[:, 4] = 0.1
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(train, labels)
    found = discriminant.decision(train, labels, test)
    np.testing.assert_allclose(found, expected.decision_function(test), rtol=1e-5, atol=1e-5)


def test_refuses_documents_that_are_all_alike() -> None:
    train = np.repeat([[1.0, 2.0], [3.0, 1.0]], 4, axis=0)
    with pytest.raises(BadInput, match="no spread"):
        discriminant.decision(train, np.arange(8) < 4, train)


def test_gaussian_classes_have_the_auc_of_their_distance() -> None:
    distance, d, n = 1.2, 6, 2000
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2 * n, d))
    x[:n, 0] += distance
    plan = cross_validation.design(n, n, 5, seed=0)
    plan = plan._replace(forget=plan.forget[:50], retain=plan.retain[:50])  # enough here
    found = cross_validation.auc(discriminant.out_of_fold(x, plan), plan)
    assert found.value == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.015)
    assert found.resampled.std() == pytest.approx(0.0064, abs=0.002)  # Hanley & McNeil 1982


def test_auc_of_noise_in_many_dimensions_is_one_half() -> None:
    """In 400 dimensions 60 documents can always be split: only unseen ones tell the truth."""
    aucs = []
    for seed in range(8):
        x, y = clouds(30, 30, 400, seed, shift=0.0)
        plan = cross_validation.design(30, 30, 5, seed)
        states = np.concatenate([x, y])
        aucs.append(cross_validation.auc(discriminant.out_of_fold(states, plan), plan).value)
        seen = discriminant.decision(states, plan.labels, states)
        assert (seen[plan.labels].min() > seen[~plan.labels].max()).all()
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.08)


# ── centroids ─────────────────────────────────────────────────────────────────────────────────────


def direct(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """METRICS without the AUC, by their definitions."""
    c, e, n, m = x.mean(0), y.mean(0), len(x), len(y)
    whole = np.concatenate([x, y]).mean(0)
    between = n * np.sum((c - whole) ** 2) + m * np.sum((e - whole) ** 2)
    within = np.sum((x - c) ** 2) + np.sum((y - e) ** 2)
    norms = np.linalg.norm(c), np.linalg.norm(e)
    return np.array([cosine(c, e), np.linalg.norm(c - e), between / within, *norms])


def test_centroid_metrics_equal_their_definitions() -> None:
    x, y = clouds(25, 35, 12)
    plan = cross_validation.design(25, 35, 5, seed=0)
    found = separation.centroid_metrics(x, y, plan)
    np.testing.assert_allclose(found.value, direct(x, y), rtol=1e-9)


def test_metrics_of_states_of_any_size() -> None:
    x, y = clouds(25, 35, 12)
    plan = cross_validation.design(25, 35, 5, seed=0)
    for scale in (1e-4, 1e4):
        found = separation.centroid_metrics(scale * x, scale * y, plan)
        np.testing.assert_allclose(found.value, direct(scale * x, scale * y), rtol=1e-7)


def test_a_resampled_centroid_within_its_excess_has_no_direction(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """One class is centred at zero: less the excess, about half of its centroids have no length."""
    draw = np.random.default_rng(0)
    noise, far = draw.normal(size=(20, 30)), 5 + draw.normal(size=(24, 30))
    noise -= noise.mean(0)
    for x, y, column in ((noise, far, 3), (far, noise, 4)):
        plan = cross_validation.design(len(x), len(y), 5, seed=0)
        found = separation.centroid_metrics(x, y, plan).resampled
        none = found[:, column] == 0
        assert 0 < none.sum() < len(none)
        np.testing.assert_array_equal(np.isnan(found[:, 0]), none)
    assert not recwarn.list


def test_resampled_metrics_equal_repeated_documents_minus_the_known_excess() -> None:
    x, y = clouds(25, 35, 12)
    plan = cross_validation.design(25, 35, 5, seed=0)
    found = separation.centroid_metrics(x, y, plan)
    excess = x.var(0).sum() / 25, y.var(0).sum() / 35
    for i in (0, 500):
        a = np.repeat(x, plan.forget[i].astype(int), axis=0).mean(0)
        b = np.repeat(y, plan.retain[i].astype(int), axis=0).mean(0)
        squares = a @ a - excess[0], b @ b - excess[1]
        expected = [
            1 - a @ b / np.sqrt(squares[0] * squares[1]),
            np.sqrt(squares[0] - 2 * a @ b + squares[1]),
            *np.sqrt(squares),
        ]
        np.testing.assert_allclose(found.resampled[i, [0, 1, 3, 4]], expected, rtol=1e-7)
    assert np.mean(found.resampled[:, 1] ** 2) == pytest.approx(found.value[1] ** 2, rel=0.05)


def test_intervals_contain_the_estimate_for_pure_noise() -> None:
    x, y = clouds(30, 30, 300, shift=0.0)
    plan = cross_validation.design(30, 30, 5, seed=0)
    found = separation.measure([x[:, None], y[:, None]], plan, "m")
    row = separation.metric_table("m", found).iloc[0]
    for metric in separation.METRICS:
        assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]


def test_scaling_the_states_changes_only_distances() -> None:
    x, y = clouds(20, 20, 50)
    plan = cross_validation.design(20, 20, 5, seed=0)
    a, b = (separation.measure([k * x[:, None], k * y[:, None]], plan, "m") for k in (1.0, 4.0))
    row = separation.change_table(a, b).iloc[0]
    for metric in ("cosine_distance", "auc", "variance_ratio"):
        assert row[f"{metric}_change"] == pytest.approx(0.0, abs=1e-9)
    assert row["euclidean_distance_change"] == pytest.approx(3 * a.value[0, 1])


def test_cosine_of_a_zero_centroid_is_undefined() -> None:
    x = np.array([[1.0, 0], [-1, 0]] * 5)
    found = separation.centroid_metrics(x, x + 1, cross_validation.design(10, 10, 5, seed=0))
    assert np.isnan(found.value[0]), "a centroid at zero has no direction"
    value = np.insert(found.value, 2, 0.5)[None]
    resampled = np.insert(found.resampled, 2, 0.5, axis=1)[:, None]
    row = separation.metric_table("m", cross_validation.Estimate(value, resampled)).iloc[0]
    assert np.isnan(row["cosine_distance"]) and np.isfinite(row["variance_ratio"])


def estimates_of(seed: int, states: int = 4, draws: int = 40) -> cross_validation.Estimate:
    draw = np.random.default_rng(seed)
    shape = (states, len(separation.METRICS))
    return cross_validation.Estimate(draw.normal(size=shape), draw.normal(size=(draws, *shape)))


def test_tables_of_estimates_by_hand() -> None:
    a, b = estimates_of(0), estimates_of(1)
    table = separation.metric_table("m", a)
    assert table["layer"].tolist() == [0, 1, 2, 3] and (table["model"] == "m").all()
    changes = separation.change_table(a, b)
    assert changes.columns[0] == "layer" and changes["layer"].tolist() == [0, 1, 2, 3]
    for i, metric in enumerate(separation.METRICS):
        np.testing.assert_allclose(table[metric], a.value[:, i])
        np.testing.assert_allclose(changes[f"{metric}_change"], (b.value - a.value)[:, i])
        for end, percent in (("low", 2.5), ("high", 97.5)):
            expected = np.percentile(a.resampled[:, :, i], percent, axis=0)
            np.testing.assert_allclose(table[f"{metric}_{end}"], expected)
            expected = np.percentile((b.resampled - a.resampled)[:, :, i], percent, axis=0)
            np.testing.assert_allclose(changes[f"{metric}_change_{end}"], expected)
    kept = separation.resampled_table(a, b)
    assert kept["resample"].tolist() == list(range(40))
    expected = (b.resampled - a.resampled)[:, 1:, 0].mean(1)  # the first state is the embedding
    np.testing.assert_allclose(kept["cosine_distance_change"], expected)


def test_states_are_chosen_in_values_and_resamples() -> None:
    """The last state is there twice: after the final norm, and before it."""
    every = estimates_of(2, states=5)
    for which, states in (("hidden", [0, 1, 2, 3]), ("residual", [0, 1, 2, 4])):
        found = separation.of_states(every, which)
        np.testing.assert_array_equal(found.value, every.value[states])
        np.testing.assert_array_equal(found.resampled, every.resampled[:, states])


def test_summary_by_hand() -> None:
    a, b = (separation.metric_table(n, estimates_of(i)) for i, n in enumerate("ab"))
    ends = {f"{m}_change{end}": 0.0 for m in separation.METRICS for end in ("", "_low", "_high")}
    changes = pd.DataFrame([{"layer": layer, **ends} for layer in range(4)])
    changes["auc_change"] = [0.1, -0.4, 0.3, 0.2]
    changes["auc_change_low"] = [0.0, -0.5, 0.1, -0.1]
    changes["auc_change_high"] = [0.2, -0.1, 0.4, 0.0]
    changes.loc[[0, 1], "cosine_distance_change"] = np.nan
    changes["variance_ratio_change"] = np.nan
    a.loc[0, "cosine_distance"] = np.nan
    found = separation.summary(a, b, changes)
    assert [*found] == [*separation.METRICS] and found["variance_ratio"] is None
    assert found["auc"] == {
        "mean_a": pytest.approx(a["auc"].mean()),
        "mean_b": pytest.approx(b["auc"].mean()),
        "mean_change": pytest.approx(0.05),
        "largest_change": {"layer": 1, "change": -0.4, "low": -0.5, "high": -0.1},
        "states_with_interval_off_zero": 2,
        "states": 4,
    }
    assert found["cosine_distance"]["states"] == 2
    assert found["cosine_distance"]["mean_a"] == pytest.approx(a["cosine_distance"][1:].mean())


def test_variance_ratio_without_spread_is_undefined(recwarn: pytest.WarningsRecorder) -> None:
    plan = cross_validation.design(5, 6, 5, seed=0)
    x, y = np.tile([1.0, 2.0], (5, 1)), np.tile([2.0, 1.0], (6, 1))
    found = separation.centroid_metrics(x, y, plan).value
    assert np.isnan(found[2]) and found[1] == pytest.approx(2**0.5)
    assert found[0] == pytest.approx(1 - 4 / 5)
    assert found[3] == found[4] == pytest.approx(5**0.5)
    same = separation.centroid_metrics(x, x[:1].repeat(6, 0), plan).value
    assert same[0] == pytest.approx(0, abs=1e-12) and same[1] == 0
    nothing = separation.centroid_metrics(0 * x, 0 * y, plan).value
    assert np.isnan(nothing[[0, 2]]).all() and not recwarn.list


# ── the script ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    made = tiny_study.make(tmp_path_factory.mktemp("separation"))
    made.compare(SCRIPT)
    return made


def folder_of(study: tiny_study.Study) -> Path:
    return study.root / "outputs/base__to__base__rmu/activation_separation"


def test_tables_equal_an_independent_computation(study: tiny_study.Study) -> None:
    """From transformers' own states, text by text without padding, and scikit-learn."""
    table = pd.read_csv(folder_of(study) / "separation_metrics.csv")
    assert table.columns[:8].tolist() == [
        "layer",
        "model",
        "cosine_distance",
        "euclidean_distance",
        "auc",
        "variance_ratio",
        "forget_centroid_norm",
        "retain_centroid_norm",
    ]
    names = ["cosine_distance", "euclidean_distance", "variance_ratio"]
    names += ["forget_centroid_norm", "retain_centroid_norm"]
    plan = cross_validation.design(21, 24, 5, seed=42)
    for model in (study.model_a, study.model_b):
        rows = table[table["model"] == Path(model).name].reset_index()
        pooled = [
            np.stack([h.mean(1) for h in tiny_study.states(model, split)])
            for split in ("forget", "retain")
        ]
        assert len(rows) == pooled[0].shape[1] == 4
        for layer in range(4):
            x, y = pooled[0][:, layer], pooled[1][:, layer]
            expected = direct(x, y)
            own = rows.loc[layer, names].astype(float)
            np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-5)
            states, areas = np.concatenate([x, y]), []
            for fold in range(5):
                test = plan.folds == fold
                lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
                scores = lda.fit(states[~test], plan.labels[~test]).decision_function(states[test])
                pairs = plan.labels[test].sum() * (~plan.labels[test]).sum()
                areas.append((roc_auc_score(plan.labels[test], scores) * pairs, pairs))
            assert rows.loc[layer, "auc"] == pytest.approx(
                sum(a for a, _ in areas) / sum(p for _, p in areas), abs=1e-5
            )


def test_changes_are_the_difference_of_the_models(study: tiny_study.Study) -> None:
    table = pd.read_csv(folder_of(study) / "separation_metrics.csv")
    changes = pd.read_csv(folder_of(study) / "separation_changes.csv")
    a, b = (table[table["model"] == name].reset_index() for name in ("base", "base__rmu"))
    for metric in separation.METRICS:
        change = changes[f"{metric}_change"]
        np.testing.assert_allclose(change, b[metric] - a[metric], atol=1e-9)
        inside = (changes[f"{metric}_change_low"] <= change) & (
            change <= changes[f"{metric}_change_high"]
        )
        assert inside.all()
    # The resamples that are kept are those of the base and the changed model, draw by draw.
    kept = pd.read_csv(folder_of(study) / "separation_resamples.csv")["cosine_distance_change"]
    residual = "cosine_distance_change_residual"
    ends = changes.loc[1:, f"{residual}_low"], changes[residual][1:]
    assert len(kept) == 1000 and ends[0].mean() < kept.median()
    assert kept.mean() == pytest.approx(ends[1].mean(), abs=4 * kept.std())
    summary = json.loads((folder_of(study) / "summary.json").read_text())
    assert summary["documents"] == {"forget": 21, "retain": 24}
    mean = summary["metrics"]["cosine_distance"]["mean_change"]
    assert mean == pytest.approx(changes[residual].mean())


def test_averages_read_the_last_state_before_the_final_norm(study: tiny_study.Study) -> None:
    """The last block's own output, text by text, in place of transformers' last hidden state."""
    changes = pd.read_csv(folder_of(study) / "separation_changes.csv")
    distances = []
    for model in (study.model_a, study.model_b):
        x, y = (
            np.stack([h[-1].mean(0) for h in tiny_study.states(model, split, residual=True)])
            for split in ("forget", "retain")
        )
        distances.append(direct(x, y)[0])
    after, before = (changes[f"cosine_distance_change{end}"].iloc[-1] for end in ("", "_residual"))
    assert before == pytest.approx(distances[1] - distances[0], abs=1e-6)
    assert abs(before - after) > 2e-5, "otherwise the test could not fail"
    hidden = changes["cosine_distance_change"]
    assert hidden[:-1].equals(changes["cosine_distance_change_residual"][:-1].rename(hidden.name))


def test_a_model_against_itself_changes_nothing(study: tiny_study.Study) -> None:
    study.compare(SCRIPT, b=study.model_a)
    changes = pd.read_csv(
        study.root / "outputs/base__to__base/activation_separation/separation_changes.csv"
    )
    assert (changes.drop(columns="layer") == 0).all(axis=None)


def test_complete_runs_are_skipped_and_repeated_ones_are_equal(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_pass(*_: object) -> None:
        raise AssertionError("a forward pass, though all statistics are saved")

    monkeypatch.setattr(collecting, "collect", no_pass)
    study.compare(SCRIPT)
    assert "complete, skipped" in capsys.readouterr().out
    files = sorted(folder_of(study).glob("*.[cjp]*"))
    before = {f.name: f.read_bytes() for f in files if f.name != "run.json"}
    assert len(before) == 5
    (folder_of(study) / "run.json").write_text("")  # what is not recorded is not complete
    study.compare(SCRIPT)
    assert before == {name: (folder_of(study) / name).read_bytes() for name in before}
    assert (folder_of(study) / "run.json").exists()


def test_a_moved_and_renamed_model_needs_no_new_pass(
    study: tiny_study.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pass(*_: object) -> None:
        raise AssertionError("a forward pass, though all statistics are saved")

    monkeypatch.setattr(collecting, "collect", no_pass)
    moved = Path(study.model_b).rename(tmp_path / "renamed")
    try:
        study.compare(SCRIPT, b=str(moved))
    finally:
        moved.rename(study.model_b)
    folder = study.root / "outputs/base__to__renamed/activation_separation"
    for name in ("separation_changes.csv", "separation_resamples.csv"):
        assert (folder / name).read_bytes() == (folder_of(study) / name).read_bytes()
    record = json.loads((folder / "run.json").read_text())
    assert record["models"][str(moved)]["model"] == str(moved)
    assert any(entry["path"].endswith("renamed/config.json") for entry in record["inputs"])


def test_refuses_too_few_documents_before_any_model_is_read(study: tiny_study.Study) -> None:
    with pytest.raises(BadInput, match=r"forget split has 4 documents.*more texts"):
        study.compare(SCRIPT, "--max-samples", "4", "--outroot", str(study.root / "few"))
    assert not (study.root / "few").exists()
