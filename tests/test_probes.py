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
from model_diffs.data.questions import load_questions
from model_diffs.diagnostics import probes
from model_diffs.evaluation import scoring
from model_diffs.report import reductions
from model_diffs.stats import cross_validation, logistic

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
    train = np.arange(n + 20) % 4 != 0
    given = torch.from_numpy(states), torch.from_numpy(train)
    span = logistic.coordinates(*given, standardize)
    found = logistic.fit(span[None], given[1][None], torch.from_numpy(labels)[None], C, 1000)
    reference = LogisticRegression(C=C, tol=1e-10, max_iter=100_000)
    scaler = StandardScaler() if standardize else "passthrough"
    expected = make_pipeline(scaler, reference).fit(states[train], labels[train])
    assert found.converged.all()
    assert span.shape[1] <= min(train.sum(), d)
    probability = found.scores[0, 0].sigmoid()
    np.testing.assert_allclose(probability, expected.predict_proba(states)[:, 1], atol=1e-4)


def test_constant_dimensions_are_ignored() -> None:
    states, _ = clouds(40, 100)
    states[:, 5] = 0.1
    moved = states.copy()
    moved[-4:, 5] = 9.0  # constant in training only
    trained = torch.arange(40) < 36
    x, y = (logistic.coordinates(torch.from_numpy(s), trained, True) for s in (states, moved))
    assert torch.equal(x, y)


def test_identical_states_score_as_the_larger_class() -> None:
    """The embedding of one final full stop, whatever the text."""
    same = np.full((30, 3, 64), 0.3, dtype=np.float32)
    plan = cross_validation.design(12, 18, 5, seed=0)
    task = probes.control_task(np.arange(30), plan, seed=0)
    row = next(probes.probe_tables(same[:12], same[12:], plan, SETTINGS, task).table.itertuples())
    assert row.test_accuracy == row.majority_baseline == 0.6
    assert row.auc == 0.5 and row.selectivity == 0
    assert row.fits_converged == row.fits == 15


def test_fit_without_enough_iterations_has_not_converged() -> None:
    states, labels = clouds(60, 100)
    for iterations in (2, 100):
        found = probes.answers(
            states[None], np.arange(60) % 3, labels[None], SETTINGS._replace(max_iter=iterations)
        )
        assert found.converged.tolist() == [[0 if iterations == 2 else 3]]


# ── one layer ─────────────────────────────────────────────────────────────────────────────────────


def rows_of(states: np.ndarray, labels: np.ndarray, **settings: object) -> Any:
    forget, retain = (
        np.stack(3 * [states[member]], axis=1).astype(np.float32) for member in (labels, ~labels)
    )
    plan = cross_validation.design(len(forget), len(retain), 5, seed=0)
    task = probes.control_task(np.arange(len(labels)), plan, seed=0)
    found = probes.probe_tables(forget, retain, plan, SETTINGS._replace(**settings), task)
    return next(found.table.itertuples())


def test_last_state_of_the_residual_stream_is_that_before_the_final_norm() -> None:
    """Planted: only the state before the norm tells the classes apart."""
    states, labels = clouds(80, 30, shift=0.0)
    told = states + 9.0 * states.std(0) * labels[:, None]
    every = np.stack([states, states, told], axis=1).astype(np.float32)
    plan = cross_validation.design(labels.sum(), (~labels).sum(), 5, seed=0)
    task = probes.control_task(np.arange(80), plan, seed=0)
    found = probes.probe_tables(every[labels], every[~labels], plan, SETTINGS, task)
    assert found.table["layer"].tolist() == [0, 1]
    assert (found.table["auc"] < 0.8).all()
    assert found.table["auc_residual"].tolist() == [found.table["auc"][0], 1.0]
    drawn = found.resamples.groupby("layer")[["auc", "auc_residual"]].mean()
    assert drawn["auc"][0] == drawn["auc_residual"][0] and drawn["auc_residual"][1] == 1
    assert drawn["auc"][1] < 0.8
    assert probes.summary(found)["mean_auc"] == 1, "over the states 1 to N, before the norm"
    assert found.table["fits"].tolist() == [15, 30] and probes.summary(found)["fits"] == 45


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
        expected = [float(value) for value in (found.mean, found.low, found.high)]
        assert row[["accuracy", "low", "high"]].tolist() == pytest.approx(expected, rel=1e-12)
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


def test_saved_statistics_are_read_without_transformers(study: tiny_study.Study) -> None:
    """Steps 8 and 9 do without torch, too; probes are fitted with it."""
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
    told = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert told == ["[]", "[]", "['torch']"]
