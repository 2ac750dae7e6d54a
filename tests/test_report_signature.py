"""The numbers of a report and what is concluded from them, on tables made by hand."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_tables import MEASURES, SCRIPTS, TEXTS, Study, claims

from model_diffs.attacks.relearning_tables import LEAST_GAP
from model_diffs.core.step import load_steps
from model_diffs.core.tables import Place, Source, Tables
from model_diffs.report import reductions
from model_diffs.report.assembling import assemble, signature_rows
from model_diffs.report.axes import AT_A_GLANCE, declared_by
from model_diffs.report.conclusions import ends
from model_diffs.report.formatting import number
from model_diffs.report.signature import Signature
from model_diffs.report.tables import measures_table
from model_diffs.stats.estimates import Difference, Estimate, Sample, difference
from model_diffs.stats.seeds import over_seeds

ROOT = Path(__file__).parents[1]
FILTERED, NPO = "base__to__filtered", "base__to__npo"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("outputs")).everything()


@pytest.fixture(scope="module")
def signature(study: Study) -> Signature:
    return study.read()


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Study:
    shutil.copytree(study.root, tmp_path / "outputs")
    return Study(tmp_path / "outputs")


def value(signature: Signature, key: str, label: str = NPO) -> float:
    return signature.values[label, key].value


# ── values ────────────────────────────────────────────────────────────────────────────────────────


def test_measures_of_weights_equal_hand_computation(signature: Signature) -> None:
    """Two of five matrices of norm 10 changed, by 6 and 8, in the second of two blocks."""
    assert value(signature, "relative_change") == pytest.approx(10 / (10 * 5**0.5))
    assert value(signature, "changed_share") == pytest.approx(2 / 5)
    assert value(signature, "mlp_attention_ratio") == pytest.approx(8 / 6)
    assert value(signature, "half_depth") == pytest.approx(0.75), "half way through the last block"
    # 6 and 8 themselves, weighing 36 and 64.
    assert value(signature, "stable_rank") == pytest.approx((6 * 36 + 8 * 64) / 100)
    assert value(signature, "effective_rank") == pytest.approx((6 * 36 + 8 * 64) / 100)
    assert value(signature, "top10_share") == pytest.approx((6 * 36 + 8 * 64) / 900)
    assert value(signature, "subspace_alignment") == pytest.approx(0.75), (
        "the embedding is left out"
    )
    assert value(signature, "nullspace_ratio") == pytest.approx((0.6 + 0.4) / (0.75 + 0.2))


def test_measures_of_states_equal_hand_computation(signature: Signature) -> None:
    """The embedding's state, planted far off, does not count."""
    assert value(signature, "separation_change") == pytest.approx(2.0)
    assert value(signature, "covariance_forget") == pytest.approx(2.0 * (1 + 2 + 3) / 3)
    assert value(signature, "covariance_retain") == pytest.approx(0.5)
    for key in ("dh_forget", "dh_retain", "row_space_selectivity", "lipschitz_forget"):
        found = signature.values[NPO, key]
        assert found.value == pytest.approx(2 * value(signature, key, FILTERED)), key
        assert found.low <= found.value <= found.high, key
    assert value(signature, "lipschitz_retain") == pytest.approx(2.0)


def test_measures_of_questions_and_attack_equal_their_tables(
    study: Study, signature: Signature
) -> None:
    table = pd.read_csv(study.root / "npo/linear_probes/knowledge_by_layer.csv")
    hazard = table[table["domain"] == "hazard"]["accuracy"].tolist()
    assert value(signature, "hazard_accuracy") == hazard[3]
    assert value(signature, "hazard_inside") == pytest.approx((hazard[2] - 0.25) / 0.75)
    assert signature.base_values["hazard_accuracy"].value == 1.0
    assert value(signature, "latents_rose") == pytest.approx(0.2), "of the forget set"
    attack = pd.read_csv(study.root / "npo/relearning/relearning.csv")
    assert value(signature, "recovered_share") == attack["recovered_share"].max() > 0.8
    assert value(signature, "steps_to_half") == 10
    assert (FILTERED, "steps_to_half") not in signature.values
    assert "half of the gap is not closed" in signature.reasons[FILTERED, "steps_to_half"]
    assert LEAST_GAP < 0.5, "the planted gap is one"


def test_every_number_names_an_existing_column(study: Study, signature: Signature) -> None:
    assert {key for _, key in signature.values} == set(MEASURES), "all measures are there"
    for found in (*signature.values.values(), *signature.base_values.values()):
        table = pd.read_csv(study.root / found.source.path)
        assert found.source.column in table.columns, found.source
        if "mean" not in found.source.rows and "lr=" in found.source.rows:
            assert found.value in table[found.source.column].tolist()


def test_csv_has_a_row_per_comparison_and_the_base_columns(signature: Signature) -> None:
    rows = signature_rows(signature)
    assert [row["comparison"] for row in rows] == [FILTERED, NPO]
    assert rows[0].keys() == rows[1].keys()
    assert rows[1]["dh_forget_low"] == signature.values[NPO, "dh_forget"].low
    assert rows[0]["hazard_accuracy_base"] == 1.0 and rows[0]["steps_to_half"] is None
    assert "relative_change_low" not in rows[0]


# ── intervals ─────────────────────────────────────────────────────────────────────────────────────


def test_the_paired_interval_equals_a_loop_over_resamples(study: Study) -> None:
    """Δh of npo less that of filtered, text by text, in plain Python."""
    tables = {
        label: pd.read_csv(study.root / label / "activation_stats/per_text.csv")
        for label in (FILTERED, NPO)
    }
    texts = {label: t[t["split"] == "forget"].to_dict("records") for label, t in tables.items()}
    generator, differences = np.random.default_rng(42), []
    draws = generator.integers(TEXTS["forget"], size=(1000, TEXTS["forget"]))
    for draw in draws:
        means = {}
        for label, rows in texts.items():
            moved = sum(rows[i]["tokens"] * rows[i]["mean_dh_rel"] for i in draw)
            means[label] = moved / sum(rows[i]["tokens"] for i in draw)
        differences.append(means[NPO] - means[FILTERED])
    low, high = np.percentile(differences, [2.5, 97.5])
    npo, filtered = (
        reductions.read(
            MEASURES["dh_forget"],
            Place(Tables(study.root), f"base__to__{name}/activation_stats", "base", name, 42),
        )
        for name in ("npo", "filtered")
    )
    found = difference(npo, filtered)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    # Paired: much narrower than two intervals side by side.
    assert found.high - found.low < (npo.high - npo.low) + (filtered.high - filtered.low)


def test_questions_of_one_entity_are_resampled_together(study: Study) -> None:
    """Hazard accuracy of npo less that of filtered, entity by entity, in plain Python."""
    sides = {}
    for name in ("npo", "filtered"):
        table = pd.read_csv(study.root / name / "linear_probes/per_question.csv")
        table = table[(table["layer"] == 3) & (table["domain"] == "hazard")]
        sides[name] = {entity: part["correct"].tolist() for entity, part in table.groupby("entity")}
    order = sorted(sides["npo"])
    generator, differences = np.random.default_rng(42), []
    for draw in generator.integers(len(order), size=(1000, len(order))):
        asked = {
            name: [answer for i in draw for answer in answers[order[i]]]
            for name, answers in sides.items()
        }
        differences.append(np.mean(asked["npo"]) - np.mean(asked["filtered"]))
    low, high = np.percentile(differences, [2.5, 97.5])
    npo, filtered = (
        reductions.read(
            MEASURES["hazard_accuracy"],
            Place(Tables(study.root), f"{name}/linear_probes", "base", name, 42),
        )
        for name in ("npo", "filtered")
    )
    assert npo.sample is not None and npo.sample.units == "entities"
    found = difference(npo, filtered)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    # The cell's own interval has the same draws.
    drawn = np.percentile(npo.sample.resampled, [2.5, 97.5])
    assert (npo.low, npo.high) == pytest.approx(tuple(drawn), rel=1e-9)


def test_quotient_is_paired() -> None:
    resamples = np.exp(np.random.default_rng(0).normal(0, 1, 500))
    source = Source("t.csv", "c", "")
    a = Estimate(1.0, source, sample=Sample(resamples, "same", "texts"))
    b = Estimate(3.0, source, sample=Sample(3 * resamples, "same", "texts"))
    found = difference(b, a, logarithmic=True)
    assert found is not None and found.direction == 1
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))
    other = Estimate(1.0, source, sample=Sample(resamples, "others", "texts"))
    assert difference(b, other, logarithmic=True) is None, "other texts are not paired"


def test_recovered_share_has_the_interval_of_its_row(study: Study, signature: Signature) -> None:
    rows = pd.read_csv(study.root / "npo/relearning/relearning.csv")
    row = rows[(rows["arm"] == "facts") & (rows["picked"] == 1)].iloc[-1]
    found = signature.values[NPO, "recovered_share"]
    ends = row[["recovered_share", "recovered_share_low", "recovered_share_high"]]
    assert [found.value, found.low, found.high] == pytest.approx(ends.tolist())
    assert found.source.rows == f"lr={row['lr']:g}, step={row['step']}"


def test_recovery_over_the_filtered_model_is_a_difference_of_accuracies(
    study: Study, signature: Signature
) -> None:
    for arm in ("facts", "retain"):
        ends = []
        for model in ("npo", "filtered"):
            rows = pd.read_csv(study.root / f"{model}/relearning/relearning.csv")
            rows = rows[(rows["arm"] == arm) & (rows["picked"] == 1)]
            ends.append(rows["heldout_accuracy"].iloc[-1])
        found = signature.values[NPO, f"recovered_{arm}"]
        assert found.value == pytest.approx(ends[0] - ends[1]) and found.value > 0.1
        assert found.low is not None and found.low < found.value
        assert value(signature, f"recovered_{arm}", FILTERED) == 0
        assert claims(signature, f"recovered_{arm}", "filtered") == ["above"]
    assert value(signature, "attack_took") == 1


# ── conclusions ───────────────────────────────────────────────────────────────────────────────────

SENSITIVE = ("dh_forget", "dh_retain", "separation_change", "effect_selectivity",
             "jacobian_forget", "probe_late", "recovered_share")  # fmt: skip


def test_planted_differences_are_named(signature: Signature) -> None:
    for key in SENSITIVE:
        assert claims(signature, key, "filtered") == ["above"], key
    for key in ("hazard_accuracy", "hazard_inside"):
        assert claims(signature, key, "filtered") == ["below"], key
        assert claims(signature, key, "base") == ["below"], key
    assert claims(signature, "general_accuracy", "base") == ["same"]
    assert claims(signature, "recovered_share", "base") == ["above"]
    assert claims(signature, "recovered_share", "base", FILTERED) == ["same"]
    assert not any(" against the filtered" in s.rule.lower() for s in signature.sentences
                   if s.comparison == FILTERED)  # fmt: skip


@pytest.mark.parametrize("size", [0.5, 1.0])
def test_sentences_follow_what_is_planted(tmp_path: Path, size: float) -> None:
    """Half the filtered model's size turns them round; the same size silences them."""
    found = Study(tmp_path, npo=size).everything().read()
    expected = ["same"] if size == 1 else ["below"]
    for key in ("dh_forget", "dh_retain", "separation_change", "effect_selectivity",
                "row_space_selectivity", "lipschitz_forget", "probe_early"):  # fmt: skip
        assert claims(found, key, "filtered") == expected, key
    assert claims(found, "hazard_accuracy", "filtered") == (["same"] if size == 1 else ["above"])
    assert claims(found, "lipschitz_retain", "base") == expected


def test_smaller_change_is_not_called_the_opposite_change(tmp_path: Path) -> None:
    """npo raises the AUC, by less than filtering does: it makes nothing harder to tell."""
    found = Study(tmp_path, npo=0.8).everything().read()
    assert value(found, "probe_early") > 0
    own = [s.claim for s in found.sentences if s.comparison == NPO and s.axis == "localisation"]
    assert "has a lower probe AUC in the early blocks than the filtered model" in own
    assert not any("makes forget texts harder" in s for s in own)


def test_equal_tables_differ_in_nothing(copy: Study) -> None:
    """npo's tables are those of filtered, and filtered's are of a model like the base."""
    for folder in (copy.root / NPO, copy.root / "npo"):
        shutil.rmtree(folder)
    shutil.copytree(copy.root / FILTERED, copy.root / NPO)
    shutil.copytree(copy.root / "filtered", copy.root / "npo")
    single = copy.root / NPO / "lipschitzness/per_text.csv"
    single.write_text(single.read_text().replace("filtered", "npo"))
    found = copy.read()
    for key in (key for key, one in MEASURES.items() if one.above):
        assert claims(found, key, "filtered") == ["same"], key


def test_every_sentence_shows_its_numbers_and_where_they_stand(signature: Signature) -> None:
    known = {value.source for value in signature.values.values()}
    known |= {value.source for value in signature.base_values.values()}
    assert len(signature.sentences) > 50
    for sentence in signature.sentences:
        assert any(character.isdigit() for character in sentence.evidence)
        assert sentence.sources and set(sentence.sources) <= known
        assert "95 %" in sentence.rule or "no interval" in sentence.rule
    first = [s for s in signature.sentences if s.axis == ""]
    assert {s.comparison for s in first} == {FILTERED, NPO}


def test_excluding_interval_shows_no_zero() -> None:
    found = ends(Difference(-0.0004, -0.0011, -0.00006, 0.0), "change")
    assert found == "−0.0004 (−0.0011 to −0.0001)"
    assert ends(Difference(0.3, -0.1, 0.7, 0.0), "change") == "+0.30 (−0.10 to +0.70)"


def test_neither_torch_nor_transformers_is_imported(study: Study) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from model_diffs.core.step import load_steps\n"
        "from model_diffs.report import assembling, signature_figure\n"
        "from model_diffs.report.signature import Comparison\n"
        f"one = [Comparison('{NPO}', 'base', 'npo', 'npo')]\n"
        f"found = assembling.assemble(Path({str(study.root)!r}), one, [], 42, load_steps())\n"
        "signature_figure.draw(found)\n"
        "print(len(found.values), {'torch', 'transformers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == f"{len(MEASURES)} set()", done.stderr


# ── declarations ──────────────────────────────────────────────────────────────────────────────────

THIRD_PARTY = """
from model_diffs.core.step import Figure, Measure, Step, Table

STEP = Step(
    number=17,
    folder="kl_divergence",
    question="How differently do the two models predict the next token?",
    needs=("forget", "retain"),
    tables=(Table("kl_divergence"), Table("per_text")),
    figures=(Figure("kl_divergence", "KL divergence by text", "function"),),
    measures=(
        Measure("kl_forget", axis="function", table="per_text", column="kl",
                where={"split": "forget"}, unit="nats", paired_by="text",
                above="predicts forget tokens less like the base than the filtered model does",
                below="predicts forget tokens more like the base than the filtered model does",
                same="does not differ significantly from the filtered model in KL divergence"),
        Measure("kl_spread", axis="spread", table="per_text", column="kl"),
    ),
)
"""


def test_new_diagnostic_needs_only_its_script(study: Study, tmp_path: Path) -> None:
    """Its measure is a mean over tokens, paired over texts; an axis of its own is a new section."""
    (tmp_path / "kl_divergence.py").write_text(THIRD_PARTY)
    texts = np.arange(TEXTS["forget"])
    tokens = texts % 7 + 1
    for one in study.comparisons:
        kl = (texts + 1) / 100 * study.size[one.changed]
        study.table(f"{one.label}/kl_divergence/per_text.csv", [
            {"split": split, "text": t, "tokens": n, "kl": k, "agreement": 0.5}
            for split in ("forget", "retain") for t, n, k in zip(texts, tokens, kl, strict=True)
        ][: len(texts)])  # fmt: skip
        study.record(f"{one.label}/kl_divergence")
    found = assemble(study.root, study.comparisons, [], 42, [*SCRIPTS, *load_steps(tmp_path)])
    kl_forget = found.values[NPO, "kl_forget"]
    expected = 2 * ((texts + 1) / 100 * tokens).sum() / tokens.sum()
    assert kl_forget.value == pytest.approx(expected)
    assert kl_forget.low is not None and kl_forget.low < expected < kl_forget.high
    (said,) = (s for s in found.sentences if (s.comparison, s.key) == (NPO, "kl_forget"))
    assert said.claim.startswith("predicts forget tokens less like the base than")
    order = [one.key for one in found.measures]
    assert order.index("covariance_retain") < order.index("kl_forget")
    assert order.index("kl_forget") < order.index("row_space_selectivity")
    assert order[-1] == "kl_spread" and found.axes[-1].title == "Spread"
    (function,) = (one for one in found.axes if one.key == "function")
    assert 17 in function.steps
    assert function.figures[-1].path == "{comparison}/kl_divergence/kl_divergence"
    assert number(0.0123, "nats", 0.011, 0.014) == ("0.012", "0.011 to 0.014")


def test_docs_have_the_declared_measures() -> None:
    """Written by docs/tables.py."""
    assert measures_table(load_steps()) in (ROOT / "docs/signature.md").read_text()
    for key in AT_A_GLANCE:
        assert key in {one.measure.key for one in declared_by(load_steps(), "base")[1]}


def test_models_of_several_seeds_give_mean_and_standard_deviation() -> None:
    names = ["base__rmu__seed1", "base__rmu__seed2", "base__npo__seed1", "base__cb"]
    table = pd.DataFrame(
        {
            "comparison": [f"base__to__{name}" for name in names],
            "base": "base",
            "changed": names,
            "filtered": False,
            "dh": [1.0, 3.0, 5.0, 7.0],
            "dh_low": 0.0,
            "rank": [2.0, None, 2.0, 2.0],
        }
    )
    found = over_seeds(table)
    assert found["changed"].tolist() == ["base__rmu"] and found["seeds"].tolist() == [2]
    assert [*found.columns] == [
        *("base", "changed", "seeds", "dh_mean", "dh_std", "rank_mean", "rank_std")
    ]
    assert found.loc[0, "dh_mean"] == 2 and found.loc[0, "dh_std"] == pytest.approx(2**0.5)
