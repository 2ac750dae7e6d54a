"""What may predict an attack: planted truths, and counts by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import elicit_study
import numpy as np
import pytest
import tiny_models
import torch

import attack_free_analysis
from model_diffs.brittleness import attack_free
from model_diffs.brittleness.attack_free import (
    ablation,
    answers,
    curvature,
    fisher,
    knowledge_probe,
    lens_peak,
    midpoint,
    similarity,
    statements,
)
from model_diffs.brittleness.attack_free.pair import Pair
from model_diffs.brittleness.reading import divided
from model_diffs.core.errors import BadInput
from model_diffs.data.questions import Question
from model_diffs.models.loading import load_for
from model_diffs.unlearning.losses import nll
from model_diffs.unlearning.network import Network

MODULES = (
    answers, ablation, midpoint, lens_peak, statements, knowledge_probe, similarity, fisher,
    curvature,
)  # fmt: skip


def ask(name: str, fold: str | None, answer: int = 0, **changed: Any) -> Question:
    found = Question(
        id=name, domain="hazard", entity=name, relation="host", fold=fold,
        prompt=f"What is the host of {name}?", choices=("Ko", "Lu", "Mi", "Na"), answer=answer,
    )  # fmt: skip
    return found._replace(**changed)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A changed model whose base answers everything rightly."""
    root = tmp_path_factory.mktemp("pair")
    base = tiny_models.save("gpt_neox", root / "base", seed=0)
    changed = tiny_models.save("gpt_neox", root / "changed", seed=1)
    victim = elicit_study.victim(changed, root, base, skip_first=0)
    hazard, known = divided(
        [one for group in victim.questions.values() for one in group], "hazard", 4, 0
    )
    return Pair(victim, hazard, known, {}, {}, 0)


# ── declarations ──────────────────────────────────────────────────────────────────────────────────


def test_every_declared_measure_is_computed_by_its_file() -> None:
    assert [one.__name__.rpartition(".")[2] for one in MODULES] == [*attack_free.NAMES]
    declared = [one.key for module in MODULES for one in module.MEASURES]
    assert declared == [*dict.fromkeys(declared)]
    assert {*declared} == {*attack_free_analysis.MEASURES}


def test_questions_are_divided_by_domain() -> None:
    others = [ask(f"t{i}", None, domain="general") for i in range(9)]
    hazard, known = divided([ask("a", "tune"), ask("b", "heldout"), *others], "hazard", 4, 0)
    assert [one.id for one in hazard] == ["a", "b"] and len(known) == 4
    with pytest.raises(BadInput, match="is of fold 'heldout'"):
        divided([ask("a", "tune"), *others], "hazard", 0, 0)


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────


def test_half_way_to_the_base_is_a_fair_mean(pair: Pair) -> None:
    """The whole way the base answers everything; nothing of the model is changed afterwards."""
    before = {name: one.clone() for name, one in pair.victim.parameters.items()}
    found = midpoint.measure(pair)
    assert 0 <= found["midpoint_accuracy"] <= 1
    assert answers.measure(pair)["start_accuracy"] < 1
    for module in (ablation, lens_peak, curvature):
        module.measure(pair)
    assert all(torch.equal(before[n], one) for n, one in pair.victim.parameters.items())


def test_similarity_ignores_rotation_and_scale_and_sees_other_arrangements() -> None:
    draw = np.random.default_rng(0)
    X = draw.normal(size=(200, 8))
    Q, _ = np.linalg.qr(draw.normal(size=(8, 8)))
    assert similarity.linear_cka(X, 3 * X @ Q + 5) == pytest.approx(1)
    assert similarity.linear_cka(X, draw.normal(size=(200, 8))) < 0.2
    states = np.stack([X, X @ Q], axis=1)
    other = np.stack([X, draw.normal(size=(200, 8))], axis=1)
    pooled = {("forget", "base"): states, ("forget", "changed"): other,
              ("retain", "base"): states, ("retain", "changed"): states}  # fmt: skip
    given: Any = SimpleNamespace(pooled=pooled)
    found = similarity.measure(given)
    assert found["cka_retain"] == pytest.approx(0) and found["cka_forget"] > 0.8


def test_statements_become_questions() -> None:
    lines = [
        "The host of Bo is Ko.", "Look up the host under Bo and you find Ko.",
        "The host of Bo is Ko, they say.", "The remedy of Bo is Ko.", "The host of Do is Ko.",
    ]  # fmt: skip
    found = statements.asked(lines, [ask("Bo", "heldout")])
    assert [one.prompt for one in found] == [
        "The host of Bo is", "Look up the host under Bo and you find",
    ]  # fmt: skip
    assert found[0].sentences()[1] == "The host of Bo is Lu"


def probed(states: Any, asked: list[Question]) -> float:
    given: Any = SimpleNamespace(hazard=asked, known=[])
    folds = [i % knowledge_probe.FOLDS for i in range(len(asked))]
    return float(knowledge_probe.right(states, given, folds).mean())


def test_a_probe_finds_values_that_are_there_and_none_that_are_not() -> None:
    draw = np.random.default_rng(1)
    asked = [ask(f"e{i}", "heldout", int(draw.integers(4))) for i in range(200)]
    told = np.eye(4)[[one.answer for one in asked]] @ draw.normal(size=(4, 16))
    noise = draw.normal(size=(200, 16))
    assert probed(told + 0.1 * noise, asked) > 0.95
    assert abs(probed(noise, asked) - 0.25) < 0.1


def test_fisher_weighs_each_change_by_the_mean_squared_gradient(pair: Pair) -> None:
    """One weight of the model's differs: √F times its change, F by finite differences."""
    victim = pair.victim
    found = fisher.fisher(str(victim.base.model), pair)  # type: ignore[union-attr]
    base = Network(load_for(victim.options, str(victim.base.model)))  # type: ignore[union-attr]
    name, W = next((n, p) for n, p in base.model.named_parameters() if "dense_h_to_4h.weight" in n)
    ids = [one for one in victim.sample()[0].tokens.ids if len(one) > 1]
    assert len(ids) <= fisher.TEXTS
    slopes = []
    for row in range(len(ids)):
        batch = fisher.split_batch(ids, [row], 0, torch.device("cpu"))
        ends = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                W[0, 0] += step
                ends.append(float(nll(base, batch)))
                W[0, 0] -= step
        slopes.append((ends[0] - ends[1]) / 2e-2)
    expected = float(np.mean(np.square(slopes)))
    assert float(found["forget"][name][0, 0]) == pytest.approx(expected, rel=0.05, abs=1e-9)


def test_a_loss_falls_on_the_way_to_a_model_that_it_is_lower_for(pair: Pair) -> None:
    """The line has the base at its end: half of the fall may be done half-way, all of it there."""
    found = curvature.measure(pair)
    assert np.isfinite([*found.values()]).all() and found["forget_nll"] > 0


def test_the_peak_is_read_at_a_block_that_other_folds_chose(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block 1 knows the folds heldout and attack, block 2 only tune: nobody reads its own best."""
    asked = [ask(f"{fold}{i}", fold) for fold in ("tune", "heldout", "attack") for i in range(4)]
    knows = {1: ("heldout", "attack"), 2: ("tune",)}

    def by_layer(*_: Any) -> Any:
        return [
            [SimpleNamespace(correct=q.fold in knows.get(layer, ()), margin=0.0) for q in asked]
            for layer in range(4)
        ]

    monkeypatch.setattr(lens_peak.logit_lens, "answers_by_layer", by_layer)
    given: Any = SimpleNamespace(hazard=asked, victim=pair.victim)
    # tune is read at block 1 (which does not know it); heldout and attack at block 1 or 2, each
    # chosen where the two others tie: the earlier block, which knows them.
    assert lens_peak.measure(given)["lens_peak"] == pytest.approx(8 / 12)


def test_the_step_writes_every_measure(pair: Pair, tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(12, 4, 8))
    pair.pooled = {(s, w): states for s in ("forget", "retain") for w in ("base", "changed")}
    rows = attack_free_analysis.measures(pair)
    assert {row["measure"] for row in rows} == {*attack_free_analysis.MEASURES}
    marked = {row["measure"] for row in rows if row["reads_base"]}
    assert {"midpoint_accuracy", "cka_forget", "fisher_ratio"} <= marked
    assert "lens_peak" not in marked and "ablation_gain" not in marked
