"""Linear probes and the logit lens: scikit-learn on all dimensions, planted truths, the model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_study
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_diffs.activations import collecting
from model_diffs.core.errors import BadInput
from model_diffs.core.step import load_script
from model_diffs.core.tables import Place, Tables
from model_diffs.data.questions import Question, load_questions, mentioned
from model_diffs.diagnostics import probes
from model_diffs.evaluation import scoring
from model_diffs.report import reductions
from model_diffs.stats import cross_validation

SCRIPT = "linear_probe_analysis.py"
SETTINGS = probes.Settings(C=1.0, max_iter=1000, standardize=True, seed=42)


def clouds(n: int, d: int, seed: int = 0, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """States `[n, d]` of unequal scales and a mean of their own, and labels of unequal sizes."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) < 2 * n // 5
    x = draw.normal(size=(n, d)) + shift * labels[:, None] * (np.arange(d) < 3)
    return x * np.exp(draw.normal(size=d)) + 3 * draw.normal(size=d), labels


# ── one fit ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "d"), [(60, 200), (60, 59), (80, 10)])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("C", [1.0, 0.01])
def test_fits_equal_scikit_learn_on_all_dimensions(
    n: int, d: int, standardize: bool, C: float
) -> None:
    states, labels = clouds(n + 20, d)
    train, test = np.arange(n + 20) % 4 != 0, np.arange(n + 20) % 4 == 0
    parts = states[train], states[test]
    shown = probes.standardise(*parts) if standardize else parts
    span, unseen = probes.rotate(*shown)
    found, converged = probes.fit(span, labels[train], SETTINGS._replace(C=C))
    reference = LogisticRegression(C=C, tol=1e-10, max_iter=100_000)
    scaler = StandardScaler() if standardize else "passthrough"
    expected = make_pipeline(scaler, reference).fit(states[train], labels[train])
    assert converged
    assert span.shape[1] <= min(train.sum(), d)
    # The weights in the states' own dimensions, which lie in the span of the training states.
    weights = np.linalg.lstsq(shown[0], span @ found.coef_[0])[0]
    np.testing.assert_allclose(weights, reference.coef_[0], atol=1e-4)
    probability = found.predict_proba(unseen)[:, 1]
    np.testing.assert_allclose(probability, expected.predict_proba(states[test])[:, 1], atol=1e-4)


def test_constant_dimensions_are_ignored() -> None:
    states, labels = clouds(40, 100)
    states[:, 5] = 0.1
    moved = states.copy()
    moved[-4:, 5] = 9.0  # constant in training only
    x, y = (probes.standardise(s[:-4], s[-4:]) for s in (states, moved))
    assert not x[0][:, 5].any() and not y[1][:, 5].any()
    fits = [probes.fit(probes.rotate(*s)[0], labels[:-4], SETTINGS)[0] for s in (x, y)]
    np.testing.assert_array_equal(fits[0].coef_, fits[1].coef_)


def test_identical_states_score_as_the_larger_class() -> None:
    """The embedding of one final full stop, whatever the text."""
    same = np.full((30, 1, 64), 0.3, dtype=np.float32)
    plan = cross_validation.design(12, 18, 5, seed=0)
    task = probes.control_task(np.arange(30), plan, seed=0)
    row = next(probes.probe_tables(same[:12], same[12:], plan, SETTINGS, task)[0].itertuples())
    assert row.test_accuracy == row.majority_baseline == 0.6
    assert row.auc == 0.5 and row.selectivity == 0
    assert row.fits_converged == row.fits == 15


def test_fit_without_enough_iterations_has_not_converged() -> None:
    states, labels = clouds(60, 100)
    for iterations in (2, 100):
        _, converged = probes.fit(states, labels, SETTINGS._replace(max_iter=iterations))
        assert converged == (iterations == 100)


# ── one layer ─────────────────────────────────────────────────────────────────────────────────────


def rows_of(states: np.ndarray, labels: np.ndarray, **settings: object) -> Any:
    forget, retain = (states[member][:, None].astype(np.float32) for member in (labels, ~labels))
    plan = cross_validation.design(len(forget), len(retain), 5, seed=0)
    task = probes.control_task(np.arange(len(labels)), plan, seed=0)
    table, _ = probes.probe_tables(forget, retain, plan, SETTINGS._replace(**settings), task)
    return next(table.itertuples())


def test_planted_direction_is_found_and_shuffled_labels_are_not() -> None:
    row = rows_of(*clouds(200, 300, shift=6.0))
    assert row.test_accuracy > 0.97 and row.auc > 0.99
    assert row.train_accuracy == 1
    assert row.control_accuracy == pytest.approx(0.5, abs=0.15)
    assert row.selectivity == pytest.approx(row.test_accuracy - 0.6)
    assert row.fits == row.fits_converged == 15


def test_noise_scores_at_chance_despite_perfect_training_accuracy() -> None:
    found = [rows_of(*clouds(80, 300, seed, shift=0.0)) for seed in range(5)]
    assert np.mean([row.auc for row in found]) == pytest.approx(0.5, abs=0.08)
    assert all(row.train_accuracy == 1 for row in found)
    for row in found:
        for name in ("test_accuracy", "auc", "selectivity", "control_accuracy"):
            low, high = getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
            assert low <= getattr(row, name) <= high


def test_unstandardised_probes_are_invariant_to_rotation() -> None:
    states, labels = clouds(50, 120)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(120, 120)))[0]
    one, other = (rows_of(s, labels, standardize=False) for s in (states, states @ turn))
    columns = probes.COLUMNS[:11]
    np.testing.assert_allclose(
        *([getattr(row, name) for name in columns] for row in (one, other)), atol=1e-9
    )


def test_shuffled_labels_keep_the_class_sizes_of_every_fold() -> None:
    plan = cross_validation.design(31, 44, 5, seed=0)
    shuffled = probes.shuffled_labels(plan, seed=0)
    assert not np.array_equal(shuffled, plan.labels)
    for fold in range(5):
        members = plan.folds == fold
        assert shuffled[members].sum() == plan.labels[members].sum()


# ── entities ──────────────────────────────────────────────────────────────────────────────────────


def test_documents_of_one_entity_are_in_one_fold() -> None:
    draw = np.random.default_rng(0)
    named = [{f"e{draw.integers(12)}"} for _ in range(60)] + [set() for _ in range(40)]
    named[0], named[1] = {"e0", "e1"}, {"e1", "e2"}
    group = cross_validation.groups(named)
    assert len({*group[60:]} & {*group[:60]}) == 0 and len({*group[60:]}) == 40
    assert (
        len({g for g, things in zip(group, named, strict=True) if things & {"e0", "e1", "e2"}}) == 1
    )
    labels = np.arange(100) % 5 < 2
    folds = cross_validation.whole_groups(group, labels, 5, seed=0)
    assert folds is not None
    for one in np.unique(group):
        assert len({*folds[group == one]}) == 1
    for of_class in (labels, ~labels):
        counts = np.bincount(folds[of_class], minlength=5)
        assert counts.min() > 0.5 * of_class.sum() / 5
    other = cross_validation.whole_groups(group, labels, 5, seed=1)
    assert other is not None and not np.array_equal(folds, other)
    # Four entities do not fill five folds.
    assert cross_validation.whole_groups(np.arange(100) % 4, labels, 5, seed=0) is None


def test_entities_are_found_as_whole_words() -> None:
    asked = [load_question(entity) for entity in ("Ann", "Ann Lee", "Bo (II)")]
    texts = ["Ann Lee met Ann.", "Anna met Bo (II).", "Ann Leers", "nobody"]
    assert mentioned(texts, asked) == [{"Ann", "Ann Lee"}, {"Bo (II)"}, {"Ann"}, set()]
    assert mentioned(["Ann"], []) == [set()]


def load_question(entity: str) -> Question:
    return Question(entity, "hazard", entity, "r", None, "p", ("a", "b", "c", "d"), 0)


def test_summary_says_by_what_documents_are_divided() -> None:
    forget = [f"Agent {i % 10} burns {i}." for i in range(30)]
    retain = [f"Agent {i % 10} sings {i}." for i in range(40)]
    expected = cross_validation.design(30, 40, 5, seed=0).folds
    for entities, said in (([f"Agent {i}" for i in range(10)], "entity"), (["Town"], "document"),
                           ([], "document"), (["Agent"], "document")):  # fmt: skip
        asked = [load_question(entity) for entity in entities]
        plan, task, by = probes.folds_of(forget, retain, asked, 5, 0)
        assert by.split(":")[0] == said
        assert np.array_equal(plan.folds, expected) == (said == "document")
        assert np.array_equal(task.folds, expected)
        agents = np.array([i % 10 for i in (*range(30), *range(40))])
        together = [len({*plan.folds[agents == a]}) == 1 for a in range(10)]
        assert all(together) if said == "entity" else not all(together)


def entity_clouds(memorable: float, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States of 20 entities with 8 documents each, half of them forget; their entities; labels."""
    draw = np.random.default_rng(3)
    entity = np.repeat(np.arange(20), 8)
    labels = entity % 2 == 0
    order = np.argsort(~labels, kind="stable")
    states = draw.normal(size=(160, 40)) + memorable * draw.normal(size=(20, 40))[entity]
    states[:, 0] += shift * labels
    return states[order], entity[order], labels[order]


@pytest.mark.parametrize(("memorable", "shift"), [(3.0, 0.0), (0.0, 6.0)])
def test_control_task_is_learned_by_heart_only(memorable: float, shift: float) -> None:
    """States that name the entity give the control task and nothing on new entities; states that
    tell the class give the class on new entities and nothing of the control task."""
    states, entity, labels = entity_clouds(memorable, shift)
    mixed = cross_validation.design(80, 80, 5, seed=0)
    folds = cross_validation.whole_groups(entity, labels, 5, seed=0)
    assert folds is not None
    plan = cross_validation.design(80, 80, 5, 0, folds)
    task = probes.control_task(entity, mixed, seed=0)
    assert all(len({*task.labels[entity == e]}) == 1 for e in range(20))
    assert task.labels.mean() == 0.5
    row, _ = probes.probe_state(states, plan, SETTINGS, task)
    if memorable:
        assert row["control_task_accuracy"] > 0.9 and row["test_accuracy"] < 0.75
        assert row["control_task_selectivity_high"] < 0
        leaking, _ = probes.probe_state(states, mixed, SETTINGS, task)
        assert leaking["test_accuracy"] > 0.9, "documents of one entity in training and test"
    else:
        assert row["test_accuracy"] > 0.95 and row["control_task_accuracy"] < 0.7
        assert row["control_task_selectivity_low"] > 0.2
    assert row["control_task_selectivity"] == pytest.approx(
        row["test_accuracy"] - row["control_task_accuracy"]
    )


# ── the script ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tiny_study.Study:
    made = tiny_study.make(tmp_path_factory.mktemp("probes"))
    asked = tiny_study.questions(made.root / "q.jsonl")
    made.run(SCRIPT, "--model", made.model_a, made.model_b, "--questions", str(asked))
    return made


def folder_of(study: tiny_study.Study, model: str = "base") -> Path:
    return study.root / "outputs" / model / "linear_probes"


def test_table_equals_scikit_learn_on_the_last_tokens(study: tiny_study.Study) -> None:
    """transformers' own states, text by text without padding."""
    table = pd.read_csv(folder_of(study) / "probe_results.csv")
    first = "layer test_accuracy train_accuracy selectivity auc majority_baseline"
    assert " ".join(table.columns[:6]) == first
    assert (table["majority_baseline"] == 24 / 45).all()
    last = [
        np.stack([h[:, -1] for h in tiny_study.states(study.model_a, split)])
        for split in ("forget", "retain")
    ]
    plan = cross_validation.design(21, 24, 5, seed=42)
    for layer in range(1, 4):
        states = np.concatenate([part[:, layer] for part in last])
        correct, train = [], []
        for fold in range(5):
            test = plan.folds == fold
            probe = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=10_000))
            probe.fit(states[~test], plan.labels[~test])
            correct += (probe.predict(states[test]) == plan.labels[test]).tolist()
            train += (probe.predict(states[~test]) == plan.labels[~test]).tolist()
        assert table.loc[layer, "test_accuracy"] == pytest.approx(np.mean(correct), abs=1e-5)
        assert table.loc[layer, "train_accuracy"] == pytest.approx(np.mean(train), abs=1e-5)


def test_knowledge_at_the_last_layer_is_the_accuracy_of_the_model(study: tiny_study.Study) -> None:
    from model_diffs.models import loading

    table = pd.read_csv(folder_of(study, "base__rmu") / "knowledge_by_layer.csv")
    assert table.columns[:5].tolist() == ["layer", "domain", "accuracy", "low", "high"]
    assert len(table) == 4 * 2 and set(table["part"]) == {"result"}
    model = loading.load_model(study.model_b, torch.device("cpu"), torch.float32)
    asked = load_questions(study.root / "q.jsonl")
    answers = scoring.score(model, loading.load_tokenizer(study.model_b), asked, 28)
    for found in scoring.accuracies(answers):
        row = table[(table["layer"] == 3) & (table["domain"] == found.domain)].iloc[0]
        assert (row["accuracy"], row["low"], row["high"]) == (found.mean, found.low, found.high)
    assert (folder_of(study) / "knowledge_by_layer.png").exists()
    single = pd.read_csv(folder_of(study, "base__rmu") / "per_question.csv")
    shares = single.groupby(["layer", "domain"])["correct"].mean()
    known = table.set_index(["layer", "domain"])["accuracy"]
    pd.testing.assert_series_equal(shares, known.sort_index(), check_names=False)
    assert single[single["layer"] == 3]["correct"].tolist() == [a.correct for a in answers]
    record = json.loads((folder_of(study) / "run.json").read_text())
    assert any(entry["path"].endswith("q.jsonl") for entry in record["inputs"])
    inside = pd.read_csv(folder_of(study, "base__rmu") / "inside.csv")
    rest = pd.read_csv(folder_of(study, "base__rmu") / "inside_per_question.csv")
    for row in inside.itertuples():
        assert 1 <= row.layer <= 2, "neither the embedding nor the output"
        asked_of = single[(single["layer"] == row.layer) & single["id"].isin(rest["id"])]
        accuracy = asked_of[asked_of["domain"] == row.domain]["correct"].mean()
        assert row.accuracy == accuracy and row.corrected == pytest.approx((accuracy - 0.25) / 0.75)


@pytest.fixture(scope="module")
def folded(study: tiny_study.Study) -> Path:
    """Results on questions with folds, twelve held-out entities of two questions each."""
    lines = [json.loads(line) for line in (study.root / "q.jsonl").read_text().splitlines()]
    made = [
        {**fields, "id": f"q{i}", "domain": "hazard", "entity": f"e{i // 2}",
         "seen_form": i % 3 > 0, "fold": "heldout" if i < 24 else "tune" if i < 48 else "attack"}
        for i, fields in enumerate(2 * lines)
    ]  # fmt: skip
    asked = study.root / "folds.jsonl"
    asked.write_text("\n".join(map(json.dumps, made)))
    outroot = study.root / "folded"
    study.run(
        SCRIPT, "--model", study.model_a, "--questions", str(asked), "--outroot", str(outroot)
    )
    return outroot


def test_held_out_questions_are_the_result(folded: Path) -> None:
    """The report reads them, with entities resampled as in the table."""
    folder = folded / "base/linear_probes"
    table = pd.read_csv(folder / "knowledge_by_layer.csv")
    final = table[table["layer"] == 3].set_index(table["fold"].fillna("all")[table["layer"] == 3])
    assert final["questions"].to_dict() == {"all": 60, "heldout": 24, "tune": 24, "attack": 12}
    parts = {"all": "all", "heldout": "result", "tune": "tune", "attack": "attack"}
    assert final["part"].to_dict() == parts
    inside = pd.read_csv(folder / "inside.csv").iloc[0]
    assert (inside["chosen_on"], inside["questions"]) == ("fold tune", 24)
    tuned = table[(table["fold"] == "tune") & table["layer"].isin([1, 2])]
    assert inside["layer"] == tuned.loc[tuned["accuracy"].idxmax(), "layer"]
    measures = {one.key: one for one in load_script(tiny_study.ROOT / SCRIPT).STEP.measures}
    place = Place(Tables(folded), "base/linear_probes", "base", "base", 42)
    for key, cells in (
        ("hazard_accuracy", final.loc["heldout", ["accuracy", "low", "high"]]),
        ("hazard_inside", inside[["corrected", "corrected_low", "corrected_high"]]),
    ):
        found = reductions.read(measures[key], place)
        assert [found.value, found.low, found.high] == pytest.approx([*cells])
        assert found.sample is not None and found.sample.units == "entities"
        drawn = np.percentile(found.sample.resampled, [2.5, 97.5])
        assert [found.low, found.high] == pytest.approx([*drawn])


def test_saved_states_suffice_and_repeated_runs_are_equal(
    study: tiny_study.Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_pass(*_: object) -> None:
        raise AssertionError("a forward pass, though all statistics are saved")

    monkeypatch.setattr(collecting, "collect", no_pass)
    asked = ("--questions", str(study.root / "q.jsonl"))
    study.run(SCRIPT, "--model", study.model_a, *asked)
    assert "complete, skipped" in capsys.readouterr().out
    names = [p.name for p in folder_of(study).iterdir() if p.name != "run.json"]
    assert len(names) == 9
    before = {name: (folder_of(study) / name).read_bytes() for name in names}
    (folder_of(study) / "run.json").write_text("")  # not complete
    study.run(SCRIPT, "--model", study.model_a, *asked)
    assert before == {name: (folder_of(study) / name).read_bytes() for name in names}


def test_warns_when_probes_do_not_converge(
    study: tiny_study.Study, capsys: pytest.CaptureFixture[str]
) -> None:
    short = study.root / "short"
    study.run(SCRIPT, "--model", study.model_a, "--max-iter", "1", "--outdir", str(short))
    assert "did not converge in 1 iterations; raise --max-iter" in capsys.readouterr().err
    table = pd.read_csv(short / "probe_results.csv")
    failed = (table["fits"] - table["fits_converged"]).sum()
    summary = json.loads((short / "summary.json").read_text())
    assert failed == summary["fits"] - summary["fits_converged"] > 0


@pytest.mark.parametrize("folds", ["1", "22"])
def test_refuses_impossible_numbers_of_folds(study: tiny_study.Study, folds: str) -> None:
    with pytest.raises(BadInput, match=r"folds|cross-validation"):
        study.run(SCRIPT, "--model", study.model_a, "--folds", folds)


LIGHT = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from model_diffs.core.script import execute
from model_diffs.core.step import load_script
for script, names in {scripts!r}:
    execute(load_script(Path({root!r}) / script), [*{options!r}, *names, "--seed", "7"])
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""


def test_saved_statistics_are_read_without_torch(study: tiny_study.Study) -> None:
    pair = ["--model-a", study.model_a, "--model-b", study.model_b]
    scripts = [
        ("activation_separation_analysis.py", pair),
        ("activation_covariance_analysis.py", pair),
        (SCRIPT, ["--model", study.model_a]),
    ]
    root = str(tiny_study.ROOT)
    code = LIGHT.format(root=root, scripts=scripts, options=study.text_options())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
