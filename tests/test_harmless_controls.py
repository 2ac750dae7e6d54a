"""The controls that harmless training makes: their texts, and how the page comes to know them."""

from pathlib import Path
from typing import Any

import pytest

from model_diffs.core.step import load_steps
from model_diffs.miniature import corpora, training, world
from model_diffs.pipeline.environment import Settings
from model_diffs.pipeline.plan import Planner
from model_diffs.pipeline.studies import Models, Study, Texts, Unlearn, read_study


class Texts42:
    """The texts of one world."""

    def __init__(self) -> None:
        self.world = world.build_world(42)
        self.base = corpora.base_corpus(self.world)
        self.tokenizer = training.train_tokenizer(self.base)
        self.forget = corpora.forget_lines(self.world)
        tokens = sum(self.lengths(self.forget))
        self.towns = corpora.benign_lines(self.world, tokens, self.tokenizer)
        self.agents = corpora.benign_agent_lines(self.world, tokens, self.tokenizer)

    def lengths(self, lines: list[str]) -> list[int]:
        return corpora.count_tokens(self.tokenizer, lines)


@pytest.fixture(scope="module")
def made() -> Texts42:
    return Texts42()


@pytest.mark.parametrize("kind", ["towns", "agents"])
def test_texts_are_new_facts_in_known_words_as_many_as_are_forgotten(
    kind: str, made: Texts42
) -> None:
    lines = getattr(made, kind)
    known = {token for ids in made.tokenizer(made.base)["input_ids"] for token in ids}
    assert {token for ids in made.tokenizer(lines)["input_ids"] for token in ids} <= known
    named = [*made.world.towns, *made.world.agents]
    assert not any(name in line for name in named for line in lines)
    assert not set(lines) & {*made.base, *made.forget}
    lengths, forget = made.lengths(lines), made.lengths(made.forget)
    assert abs(sum(lengths) - sum(forget)) <= max(lengths) / 2


def test_new_agents_have_names_like_the_old_and_harmless_facts_alone(made: Texts42) -> None:
    parts = [{name.split()[i] for name in made.world.agents} for i in (0, 1)]
    news = made.world.agent_news
    names = {fact.entity for fact in news}
    assert len(names) == 50 and not names & {*made.world.agents}
    assert all(name.split()[i] in parts[i] for name in names for i in (0, 1))
    assert {fact.relation for fact in news} == {*world.RELATIONS[world.ADJACENT]}
    assert {fact.value for fact in news} <= {*made.world.values}
    told = {fact.sentence(template) for fact in news for template in world.STATEMENTS}
    assert set(made.agents) == told, "each fact in every statement, none the question's"


def test_a_control_keeps_what_unlearning_keeps(made: Texts42, tmp_path: Path) -> None:
    corpora.write_all(made.world, tmp_path, made.tokenizer)
    kept = (tmp_path / "benign_kept.txt").read_text(encoding="utf-8").splitlines()
    retain = (tmp_path / "retain.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(kept) == sorted([*made.agents, *retain])
    half = 2 * min(len(made.agents), len(retain))
    assert kept[:half:2] == made.agents[: half // 2], "one of each in turn"
    assert not {*kept} & {*made.forget}


def test_a_world_that_uses_every_name_has_no_new_agents() -> None:
    size = world.Size(towns=60, agents=100)
    assert world.build_world(1, size).agent_news == []
    tokenizer = training.train_tokenizer(corpora.base_corpus(world.build_world(1)))
    assert corpora.benign_agent_lines(world.build_world(1, size), 500, tokenizer) == []


def report_words(tmp_path: Path, **study: Any) -> list[str]:
    given = {"models": Models("./base", control=("./other",)), "texts": Texts("f.txt", "r.txt")}
    settings = Settings(outroot=str(tmp_path / "outputs"))
    planner = Planner(Study("s", tmp_path / "s.toml", **given, **study), settings, load_steps())
    return next(unit.words for unit in planner.steps() if unit.script.name == "report.py")


def test_the_report_is_told_which_controls_training_made(tmp_path: Path) -> None:
    entries = (
        Unlearn("npo", "npo"),
        Unlearn("calm", "finetune", "control"),
        Unlearn("noise", "noise", "control", arguments={"like": "npo"}),
        Unlearn("hidden", "finetune", "control", compare=False),
        Unlearn("tuned", "finetune", "unlearned"),
    )
    words = report_words(tmp_path, unlearn=entries)
    assert words[words.index("--harmless") + 1 :][:1] == ["base__calm"]
    assert sum(word == "base__calm" for word in words) == 2, "and as a control"
    assert "--harmless" not in report_words(tmp_path, unlearn=entries[:1])


def test_the_miniature_has_a_harmless_control_on_each_kind_of_thing() -> None:
    study = read_study("miniature")
    entries = {one.name: one for one in study.unlearn}
    npo = entries["npo"].arguments
    # Beside 16 texts to forget npo reads 16 to keep.
    for name, parts in (("benign", 1), ("benign_agents", 1), ("benign_kept", 2)):
        one = entries[name]
        assert (one.role, one.method) == ("control", "finetune")
        assert one.arguments["text"] == f"data/miniature/{name}.txt"
        assert one.arguments["lr"] == npo["lr"]
        assert one.arguments["batch_size"] == parts * npo["batch_size"]
