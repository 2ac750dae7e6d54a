"""Four-choice questions: read, scored, averaged."""

import json
import math
import types

import numpy as np
import pytest
import tiny_models
import torch

from model_diffs.core.errors import BadInput
from model_diffs.data.questions import Question, load_questions
from model_diffs.evaluation import contexts, logit_lens, scoring
from model_diffs.stats.intervals import entity_interval

CPU = torch.device("cpu")
WORDS = [
    "amber",
    "birch",
    "cedar",
    "damson",
    "elder",
    "fennel",
    "ginger",
    "hazel",
    "iris",
    "juniper",
    "kale",
    "lavender",
]


def make_questions(count: int = 14) -> list[Question]:
    """Prompts and choices of very unequal lengths."""
    made = []
    for i in range(count):
        prompt = " ".join(["What grows", *WORDS[: i % 7]]) + "?"
        choices = tuple(" ".join(WORDS[(i + j) % 11 : (i + j) % 11 + 1 + j % 3]) for j in range(4))
        domain, fold = ("hazard", ("attack", "heldout")[i // 2 % 2]) if i % 2 else ("general", None)
        made.append(Question(f"q{i}", domain, "garden", "plant", fold, prompt, choices, i % 4))
    return made


@pytest.fixture(scope="module", params=["gpt_neox", "llama"])
def setup(request):
    """A model without BOS and one with it."""
    return tiny_models.build(request.param, seed=3), tiny_models.tokenizer(request.param)


def one_by_one(model, tokenizer, sentence: str) -> float:
    """Log-probability of a sentence, alone and token by token, in fp64."""
    ids = tokenizer(sentence)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return sum(
        logits[i, token].item() - torch.logsumexp(logits[i], -1).item()
        for i, token in enumerate(ids[1:])
    )


def test_scores_equal_a_loop_over_single_sentences(setup):
    model, tokenizer = setup
    questions = make_questions()
    answers = scoring.score(model, tokenizer, questions, batch_size=5)
    assert [a.id for a in answers] == [q.id for q in questions]
    for question, answer in zip(questions, answers, strict=True):
        scores = [one_by_one(model, tokenizer, s) for s in question.sentences()]
        right = scores.pop(question.answer)
        assert answer.margin == pytest.approx(right - max(scores), rel=1e-5, abs=1e-4)
        assert answer.correct == (right > max(scores))


def test_batch_size_and_order_do_not_matter(setup):
    model, tokenizer = setup
    questions = make_questions()
    whole = scoring.score(model, tokenizer, questions, batch_size=64)
    single = scoring.score(model, tokenizer, questions, batch_size=1)
    backwards = scoring.score(model, tokenizer, questions[::-1], batch_size=7)[::-1]
    for one, two, three in zip(whole, single, backwards, strict=True):
        assert one.margin == pytest.approx(two.margin, abs=1e-4)
        assert one.margin == pytest.approx(three.margin, abs=1e-4)


class Coin(torch.nn.Module):
    """Logits that depend on the token alone: `table[token]`."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(table)

    def forward(self, input_ids, attention_mask, use_cache):
        return types.SimpleNamespace(logits=self.table[input_ids])


class Words:
    """A tokenizer of words that are numbers."""

    pad_token_id, model_max_length = 0, 100

    def __call__(self, texts, **_):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


def test_a_worked_example():
    """After 1 the next token is 2 with ¾ and 3 with ¼; after 2, 4 and 5 are equally likely."""
    table = torch.full((6, 6), -torch.inf)
    table[1, 2], table[1, 3] = math.log(3), 0.0
    table[2, 4] = table[2, 5] = table[3, 4] = 0.0
    question = make_questions(1)[0]._replace(
        prompt="1", choices=("2 4", "3", "2 5", "3 4"), answer=1
    )
    (answer,) = scoring.score(Coin(table), Words(), [question])
    assert answer.margin == pytest.approx(math.log(1 / 4) - math.log(3 / 8))
    (answer,) = scoring.score(Coin(table), Words(), [question._replace(answer=0)])
    assert not answer.correct and answer.margin == pytest.approx(0.0), "a tie with 2 5"


def test_what_the_choices_share_is_read_once():
    questions = make_questions(4)
    twice = [*questions, *(q._replace(id=q.id + "again") for q in questions)]
    reads = contexts.what_to_read(tiny_models.tokenizer(), twice)
    assert reads.choices.shape == (8, 4)
    single = [q._replace(choices=("1", "2", "3", "4"), prompt="5 6 7") for q in questions]
    reads = contexts.what_to_read(Words(), single)
    assert reads.contexts == [[5, 6, 7]] and reads.needed == [{2}]
    longer = [q._replace(choices=("1 1", "1 2", "3", "4 1"), prompt="5") for q in questions[:1]]
    reads = contexts.what_to_read(Words(), longer)
    assert reads.contexts == [[5, 1], [5], [5, 4]] and reads.needed == [{0, 1}, set(), {1}]
    assert reads.terms[1:] == [[(0, 0, 1), (0, 1, 2)], [(0, 0, 3)], [(0, 0, 4), (2, 1, 1)]]


WINDOWS = [(family, None) for family in tiny_models.FAMILIES]
WINDOWS += [(family, 8) for family in ("mistral", "gemma2", "gemma3")]


@pytest.mark.parametrize("family, window", WINDOWS)
def test_prompts_are_read_once(family, window, monkeypatch):
    """Answers, and those of every state, are the same as where each choice is read whole."""
    model, tokenizer = tiny_models.build(family, seed=3), tiny_models.tokenizer(family)
    if window:
        assert model.config.sliding_window > window
        model.config.sliding_window = window
        model = type(model)(model.config).eval()
    asked = [q._replace(prompt=f"In old gardens: {q.prompt}") for q in make_questions()]
    begun, plain = [], contexts.beginning

    def beginning(*given):
        begun.append(plain(*given))
        return begun[-1]

    read = []
    for kept in (beginning, lambda *_: contexts.Beginning(None, 0)):
        monkeypatch.setattr(contexts, "beginning", kept)
        own = scoring.score(model, tokenizer, asked, batch_size=20)
        read.append([own, *logit_lens.answers_by_layer(model, tokenizer, asked, 20)])
    assert begun and all(one.length > 5 and one.past is not None for one in begun)
    for shared, whole in zip(*read, strict=True):
        margins = [[answer.margin for answer in side] for side in (shared, whole)]
        np.testing.assert_allclose(*margins, atol=1e-4)


def test_a_choice_that_begins_another_is_scored_by_what_follows():
    """All that "1" reads the others read too; its sentence is likelier than each of theirs."""
    question = make_questions(1)[0]._replace(prompt="5", choices=("1", "1 2", "1 3", "1 2 4"))
    reads = contexts.what_to_read(Words(), [question])
    assert reads.terms == [[], [(1, 1, 2)], [(1, 1, 3)], [(1, 1, 2), (2, 2, 4)]]
    (answer,) = scoring.score(Coin(torch.zeros(6, 6)), Words(), [question])
    assert answer.margin == pytest.approx(math.log(6))


class Deaf(Words):
    """Reads one number where another is written, and has no padding."""

    pad_token_id = None

    def __call__(self, texts, **_):
        found = super().__call__(texts)["input_ids"]
        return {"input_ids": [[1 if token == 9 else token for token in ids] for ids in found]}


def test_choices_that_read_the_same_are_ties():
    """Beside another question, whose choices differ, and alone."""
    same = make_questions(1)[0]._replace(prompt="5 5 5", choices=("1", "9", "1", "9"), answer=1)
    other = same._replace(id="other", prompt="5", choices=("1", "2", "3 1", "4"), answer=2)
    model = Coin(torch.zeros(6, 6))
    for asked in ([same], [same, other], [other, same]):
        found = {one.id: one for one in scoring.score(model, Deaf(), asked, batch_size=1)}
        assert (found["q0"].margin, found["q0"].correct) == (0.0, False)
        assert len(asked) == 1 or found["other"].margin == pytest.approx(-math.log(6))


def test_a_sentence_of_one_token_is_refused():
    question = make_questions(1)[0]._replace(prompt=" ", choices=("1", "2", "3", "4"))
    with pytest.raises(BadInput, match="single token"):
        contexts.what_to_read(Words(), [question])


def test_the_model_is_in_evaluation_mode_while_it_is_read():
    modes = []
    model = Coin(torch.zeros(6, 6)).train()
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    scoring.score(model, Words(), [make_questions(1)[0]._replace(prompt="5", choices="1234")])
    assert modes == [False] and model.training


def test_a_tie_is_not_knowledge_and_a_broken_score_is_no_answer():
    questions = make_questions(2)
    tie, ahead = scoring.answers(questions, np.array([[-1.0, -1, -2, -3], [-9.0, -1, -2, -2]]))
    assert (tie.correct, tie.margin) == (False, 0.0)
    assert (ahead.correct, ahead.margin) == (True, 1.0)
    with pytest.raises(BadInput, match="q1"):
        scoring.answers(questions, np.array([[-1.0, -2, -3, -4], [-1.0, np.nan, -3, -4]]))


def test_scoring_leaves_the_model_in_its_mode(setup):
    model, tokenizer = setup
    model.train()
    scoring.score(model, tokenizer, make_questions(2))
    assert model.training
    model.eval()


def test_a_question_longer_than_the_model_is_refused(setup):
    model, tokenizer = setup
    long = make_questions(1)[0]._replace(prompt="word " * 300)
    with pytest.raises(BadInput, match="shorten it"):
        scoring.score(model, tokenizer, [long])


def test_a_space_joins_prompt_and_choice_unless_there_is_one():
    question = make_questions(1)[0]
    joined = question._replace(prompt="A:", choices=("a", "b", "c", "d")).sentences()
    assert joined == ("A: a", "A: b", "A: c", "A: d")
    assert question._replace(prompt="A: ", choices=("a", "b", "c", "d")).sentences() == joined


# ── accuracy ──────────────────────────────────────────────────────────────────────────────────────


def test_accuracy_counts_by_domain_and_fold_and_lies_in_its_interval():
    questions = make_questions(12)
    right = np.where(np.arange(4) == np.array([[q.answer] for q in questions]), 0.0, -5.0)
    right[1::4] *= -1  # every hazard question of fold attack is answered wrongly
    answers = scoring.answers(questions, right)
    found = {(a.domain, a.fold): a for a in scoring.accuracies(answers)}
    assert {key: a.mean for key, a in found.items()} == {
        ("general", None): 1.0,
        ("hazard", None): 0.5,
        ("hazard", "attack"): 0.0,
        ("hazard", "heldout"): 1.0,
    }
    assert [found["hazard", fold].questions for fold in (None, "attack", "heldout")] == [6, 3, 3]
    hazard = found["hazard", None]
    assert hazard.low < hazard.mean < hazard.high


def answered(right: list[int], entities: list[str], **more) -> list[scoring.Answer]:
    pairs = zip(right, entities, strict=True)
    made = {"domain": "hazard", "fold": None, "margin": 0.0, "seen_form": True, **more}
    return [
        scoring.Answer(id=str(i), correct=bool(r), entity=e, **made)
        for i, (r, e) in enumerate(pairs)
    ]


def test_answers_on_one_entity_are_not_independent():
    """Ten facts of each of eight entities, all known or all unknown: eight answers, not eighty."""
    entities = [f"e{i // 10}" for i in range(80)]
    together = [i // 10 % 2 for i in range(80)]
    spread = [i % 2 for i in range(80)]
    (wide,), (narrow,) = (scoring.accuracies(answered(r, entities)) for r in (together, spread))
    assert wide.mean == narrow.mean == 0.5
    assert wide.high - wide.low > 0.5 and narrow.high - narrow.low == 0
    (sure,) = scoring.accuracies(answered([1] * 80, entities))
    # Wilson's interval of eight successes in eight trials.
    assert (sure.low, sure.high) == (pytest.approx(8 / (8 + 1.959964**2), abs=1e-6), 1.0)


def test_intervals_have_the_seed_of_all_results_unless_another_is_given():
    entities = [f"e{i}" for i in range(47)]
    given = answered([i % 2 for i in range(47)], entities)
    for arguments, seed in (((), 42), ((7,), 7)):
        (found,) = scoring.accuracies(given, *arguments)
        expected = entity_interval([one.correct for one in given], entities, seed)
        assert (found.mean, found.low, found.high) == tuple(map(float, expected))
    ends = [entity_interval([i % 2 for i in range(47)], entities, s).low for s in (42, 7, 43)]
    assert ends[0] not in ends[1:], "or the seed would not show"


def test_one_entity_for_all_questions_tells_nothing():
    (found,) = scoring.accuracies(answered([0, 1] * 20, ["biology"] * 40))
    assert 0.2 < found.high - found.low < 0.4


def test_accuracy_counts_by_form_where_both_are_asked():
    seen = answered([1, 1, 1], ["a", "b", "c"])
    unseen = answered([0, 1], ["a", "b"], seen_form=False)
    assert [one.name for one in scoring.accuracies(seen)] == ["hazard"]
    found = {one.name: one for one in scoring.accuracies([*seen, *unseen])}
    assert {key: one.mean for key, one in found.items()} == {
        "hazard": 0.8, "hazard_seen": 1.0, "hazard_unseen": 0.5,
    }  # fmt: skip
    folded = [one._replace(fold="heldout") for one in (*seen, *unseen)]
    assert [one.name for one in scoring.accuracies(folded)][-1] == "hazard_heldout_unseen"


def test_entities_are_drawn_where_a_domain_has_two():
    two = answered([1, 0, 1], ["a", "a", "b"])
    one = answered([1, 0], ["town", "town"], domain="general")
    assert scoring.units([*two, *one]) == ["a", "a", "b", "0", "1"]


def test_result_of_a_domain_is_that_of_its_held_out_fold():
    folds = ["tune", "attack", "heldout", None]
    given = [answered([1], ["e"], fold=fold)[0] for fold in folds]
    given += answered([1], ["town"], domain="general")
    assert scoring.reported(given) == [False, False, True, False, True]


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def write(path, *rows) -> None:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))


def test_what_is_written_is_read(tmp_path):
    questions = [q._replace(seen_form=i % 3 > 0) for i, q in enumerate(make_questions())]
    write(tmp_path / "q.jsonl", *(q._asdict() for q in questions), "", "")
    assert load_questions(tmp_path / "q.jsonl") == questions


def test_fold_and_form_may_be_left_out(tmp_path):
    fields = make_questions(1)[0]._asdict()
    del fields["fold"], fields["seen_form"]
    write(tmp_path / "q.jsonl", fields, {**fields, "id": "tuned", "fold": "tune"})
    first, second = load_questions(tmp_path / "q.jsonl")
    assert (first.fold, first.seen_form, second.fold) == (None, True, "tune")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"choices": ["a", "b", "c"]}, "choices"),
        ({"choices": ["a", "b", "c", "a"]}, "choices"),
        ({"choices": ["a", "b", "c", ""]}, "choices"),
        ({"answer": 4}, "answer"),
        ({"answer": True}, "answer"),
        ({"answer": "1"}, "answer"),
        ({"prompt": " "}, "prompt"),
        ({"domain": None}, "domain"),
        ({"fold": 3}, "fold"),
        ({"fold": "train"}, "fold"),
        ({"fold": ["tune"]}, "fold"),
        ({"seen_form": 1}, "seen_form"),
        ({"seen_form": None}, "seen_form"),
        ({"id": "q0"}, "id"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path, change, named):
    good, bad = (q._asdict() for q in make_questions(2))
    write(tmp_path / "q.jsonl", good, {**bad, **change})
    with pytest.raises(BadInput, match=f"line 2: field '{named}'"):
        load_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n", "{", "[1]"])
def test_a_file_that_holds_no_questions_is_refused(tmp_path, content):
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(BadInput, match=r"q\.jsonl"):
        load_questions(tmp_path / "q.jsonl")


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        load_questions(tmp_path / "none.jsonl")
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="UTF-8"):
        load_questions(tmp_path / "q.jsonl")
