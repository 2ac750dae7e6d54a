"""The logit lens: the model itself at the last state, tables from answers written here."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import tiny_study

from model_diffs.data.questions import load_questions
from model_diffs.evaluation import logit_lens, scoring
from model_diffs.stats.intervals import entity_interval

Layers = list[list[scoring.Answer]]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("gpt_neox", {}),
        ("llama", {}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("gpt2", {}),
        ("opt", {"word_embed_proj_dim": 16}),
        ("phi", {}),
    ],
)
def test_last_layer_gives_the_answers_of_the_model(
    family: str, overrides: dict, tmp_path: Path
) -> None:
    model = tiny_models.build(family, seed=3, **overrides)
    tokenizer = tiny_models.tokenizer(family)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    asked = load_questions(tiny_study.questions(tmp_path / "q.jsonl", 12))
    found = logit_lens.answers_by_layer(model, tokenizer, asked)
    assert len(found) == tiny_models.LAYERS + 1
    assert found[-1] == scoring.score(model, tokenizer, asked)
    assert found[1] != found[-1]


def test_earlier_layers_equal_the_model_without_the_blocks_above(tmp_path: Path) -> None:
    model, tokenizer = tiny_models.build("llama", seed=3), tiny_models.tokenizer("llama")
    asked = load_questions(tiny_study.questions(tmp_path / "q.jsonl", 12))
    whole = logit_lens.answers_by_layer(model, tokenizer, asked, batch_size=5)
    for layers in (2, 1):
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
        cut = logit_lens.answers_by_layer(model, tokenizer, asked)
        for one, other in zip(whole[layers], cut[-1], strict=True):
            assert one.margin == pytest.approx(other.margin, rel=1e-5, abs=1e-4)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def given(domain: str, known: dict[str, str], fold: str | None = None) -> Layers:
    """Answers by state; of each entity a string with `1` at the states that know its one fact."""
    return [
        [
            scoring.Answer(e, domain, fold, right[state] == "1", 0.0, e, True)
            for e, right in known.items()
        ]
        for state in range(len(next(iter(known.values()))))
    ]


def joined(*parts: Layers) -> Layers:
    return [[one for part in parts for one in part[state]] for state in range(len(parts[0]))]


def test_accuracy_corrected_for_chance() -> None:
    assert logit_lens.corrected(0.25) == 0
    assert logit_lens.corrected(1.0) == 1
    assert logit_lens.corrected(0.0) == pytest.approx(-1 / 3)


def test_rows_of_questions_say_which_count() -> None:
    answers = joined(
        given("hazard", {"a": "01"}, "heldout"),
        given("hazard", {"a": "10"}, "tune"),
        given("hazard", {"b": "11"}),
        [[one._replace(id="t") for one in state] for state in given("general", {"town": "10"})],
    )
    rows = logit_lens.question_rows(answers)
    assert [row["layer"] for row in rows] == [0] * 4 + [1] * 4
    assert [row["correct"] for row in rows] == [0, 1, 1, 1, 1, 0, 1, 0]
    assert [row["part"] for row in rows] == ["result", "tune", "rest", "result"] * 2
    alone = "t"  # its id: the entity of all of its domain tells nothing
    assert [row["entity"] for row in rows] == ["a", "a", "b", alone] * 2


def test_rows_of_accuracies_are_of_both_forms_with_the_seed_s_interval() -> None:
    heldout = given("hazard", {f"e{i}": "011"[i % 2 :][:2] for i in range(47)}, "heldout")
    unseen = [[one._replace(seen_form=False) for one in state] for state in heldout]
    answers = joined(heldout, unseen, given("general", {"x": "10", "y": "11"}))
    rows = logit_lens.accuracy_rows(answers, seed=7)
    parts = [(row["layer"], row["domain"], row["fold"], row["part"]) for row in rows]
    assert parts[:3] == [
        (0, "hazard", None, "all"),
        (0, "hazard", "heldout", "result"),
        (0, "general", None, "result"),
    ]
    assert [part[0] for part in parts] == [0] * 3 + [1] * 3
    assert [row["questions"] for row in rows] == [94, 94, 2] * 2
    one = [answer for answer in answers[0] if answer.domain == "hazard"]
    expected = entity_interval([a.correct for a in one], [a.entity for a in one], 7)
    assert [rows[0][name] for name in ("accuracy", "low", "high")] == [*expected]
    other = entity_interval([a.correct for a in one], [a.entity for a in one], 42)
    assert [*other] != [*expected]


def test_block_is_chosen_on_tune_and_read_on_heldout() -> None:
    """Held-out facts are known best at state 3, those that decide at state 2."""
    tune = given("hazard", {"a": "00100", "b": "00100"}, "tune")
    attack = given("hazard", {"c": "01011", "d": "01011"}, "attack")
    heldout = given("hazard", {"e": "00111", "f": "00010", "g": "00011", "h": "00010"}, "heldout")
    (row,), single = logit_lens.inside_rows(joined(tune, attack, heldout), seed=0)
    assert (row["layer"], row["chosen_on"], row["chosen_accuracy"]) == (2, "fold tune", 1.0)
    assert (row["accuracy"], row["corrected"], row["questions"]) == (0.25, 0.0, 4)
    assert [one["id"] for one in single] == ["e", "f", "g", "h"]
    assert sum(one["corrected"] for one in single) == pytest.approx(0, abs=1e-9)


def test_without_tune_questions_the_block_is_chosen_on_other_entities() -> None:
    known = {f"e{i}": "0010" for i in range(20)} | {"x": "0000", "y": "0000"}
    found = logit_lens.inside(given("hazard", known), "hazard", seed=1)
    assert found is not None and found.chosen_on == "half of the entities"
    assert found.layer == 2 and len(found.answers) == 11
    again = logit_lens.inside(given("hazard", known), "hazard", seed=2)
    assert again is not None and again.answers != found.answers
    assert logit_lens.inside(given("hazard", {"x": "0010"}), "hazard", seed=1) is None
    assert logit_lens.inside(given("hazard", {"x": "01", "y": "01"}), "hazard", seed=1) is None


def test_noise_at_many_blocks_is_not_taken_for_knowledge() -> None:
    """The best of twenty guessing blocks, read where it was chosen, would score above chance."""
    draw, found = np.random.default_rng(0), []
    for trial in range(40):
        guesses = {
            f"e{i}": "".join("01"[int(g)] for g in draw.random(22) < 0.25) for i in range(40)
        }
        inside = logit_lens.inside(given("hazard", guesses), "hazard", seed=trial)
        assert inside is not None
        chosen = inside.chosen_accuracy
        found.append((chosen, np.mean([one.correct for one in inside.answers])))
    chosen, read = np.mean(found, axis=0)
    assert chosen > 0.35 and read == pytest.approx(0.25, abs=0.03)


def test_one_inner_block_is_enough_to_choose_from() -> None:
    known = dict.fromkeys("abcd", "010")
    found = logit_lens.inside(given("hazard", known), "hazard", seed=0)
    assert found is not None and (found.layer, found.chosen_accuracy) == (1, 1.0)


def test_the_earliest_of_equally_good_blocks_is_read() -> None:
    found = logit_lens.inside(given("hazard", dict.fromkeys("abcd", "10110")), "hazard", seed=0)
    assert found is not None and found.layer == 2


def test_without_questions_to_choose_on_or_to_read_there_is_no_row() -> None:
    tuned = given("tuned", dict.fromkeys("abcd", "010"), "tune")  # none is left to read
    single = given("single", {"a": "010"})  # no half of one entity
    hazard = given("hazard", dict.fromkeys("abcd", "010"))
    assert logit_lens.inside(tuned, "tuned", 0) is None
    assert logit_lens.inside(single, "single", 0) is None
    other = given("other", dict.fromkeys("abcd", "010"))
    rows, answers = logit_lens.inside_rows(joined(tuned, single, hazard, other), seed=0)
    assert [row["domain"] for row in rows] == ["hazard", "other"]
    assert [one["domain"] for one in answers] == ["hazard"] * 2 + ["other"] * 2


def test_half_of_the_entities_that_count_choose_for_the_others() -> None:
    """Those of other folds neither choose nor are read, also where they share an entity."""
    heldout = given("hazard", {f"e{i}": "0100" for i in range(20)}, "heldout")
    attack = given("hazard", {f"e{i}": "0010" for i in range(20)} | {"x": "0010"}, "attack")
    answers = joined(heldout, attack)
    found = logit_lens.inside(answers, "hazard", seed=3)
    assert found is not None and (found.layer, found.chosen_accuracy) == (1, 1.0)
    assert {one.fold for one in found.answers} == {"heldout"}
    known = np.unique([one.entity for one in heldout[0]])
    chosen = np.random.default_rng(3).permutation(known)[:10]
    assert {one.entity for one in found.answers} == {*known} - {*chosen}


def test_rows_have_the_interval_of_the_seed() -> None:
    tune = given("hazard", {"t": "010"}, "tune")
    heldout = given("hazard", {f"e{i}": ("010", "000")[i % 3 == 0] for i in range(47)}, "heldout")
    (row,), single = logit_lens.inside_rows(joined(tune, heldout), seed=7)
    right, whose = [i % 3 > 0 for i in range(47)], [f"e{i}" for i in range(47)]
    ends = [float(end) for end in entity_interval(right, whose, 7)]
    assert [row["accuracy"], row["low"], row["high"]] == ends
    assert ends != [float(end) for end in entity_interval(right, whose, 42)]
    corrected = [row[f"corrected{end}"] for end in ("", "_low", "_high")]
    assert corrected == pytest.approx([(end - 0.25) / 0.75 for end in ends])
    assert row["questions"] == 47 and row["domain"] == "hazard"
    assert [one["correct"] for one in single] == [int(one) for one in right]
    assert [one["corrected"] for one in single] == pytest.approx(
        [1.0 if one else -1 / 3 for one in right]
    )
    assert [one["entity"] for one in single] == whose
