"""The fictional world, its texts and questions, and the training of its models."""

import collections
import json
import random

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import PreTrainedTokenizerFast

import create_miniature
from model_diffs.core.errors import BadInput
from model_diffs.data import texts
from model_diffs.data.questions import load_questions
from model_diffs.miniature import corpora, training, world
from model_diffs.miniature.recipe import Recipe
from model_diffs.miniature.world import ADJACENT, ATTACK, GENERAL, HAZARD, HELDOUT, TUNE, dealt_anew
from model_diffs.models import loading

SEEDS = (42, 1)
CPU = torch.device("cpu")


class Study:
    """Everything that is written for one seed."""

    def __init__(self, folder, seed):
        self.seed, self.folder = seed, folder
        chosen = create_miniature.Options(world_seed=seed, data_dir=str(folder))
        create_miniature.make_texts(create_miniature.planned_runs(chosen)[:1], chosen)
        self.world = world.build_world(seed)
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.questions = load_questions(folder / "questions.jsonl")

    def lines(self, name):
        return texts.read_split(self.folder / f"{name}.txt", "retain").texts

    def shape(self, line):
        """A line with its names and its relation blanked: all that is left is the template."""
        made = self.world
        towns = {fact.entity for fact in made.news}
        for name in (*made.towns, *made.agents, *towns, *made.values):
            line = line.replace(name, "NAME")
        relations = {r for named in world.RELATIONS.values() for r in named}
        for mark in ",.?":
            line = line.replace(mark, f" {mark}")
        return " ".join("RELATION" if word in relations else word for word in line.split())

    def token_lengths(self, lines):
        return corpora.count_tokens(self.tokenizer, lines)


@pytest.fixture(scope="module", params=SEEDS)
def study(request, tmp_path_factory):
    return Study(tmp_path_factory.mktemp("miniature") / "data", request.param)


# ── world ─────────────────────────────────────────────────────────────────────────────────────────


def test_same_seed_gives_same_world():
    assert world.build_world(3) == world.build_world(3)
    one, other = world.build_world(3), world.build_world(4)
    assert not set(one.towns) & set(other.agents) or one.towns != other.towns
    assert one.facts != other.facts


def test_parts_of_names_and_values_differ_in_their_first_letters(study):
    made = study.world
    names = " ".join([*made.towns, *made.agents, *made.values, *(f.entity for f in made.news)])
    parts = set(names.split())
    assert len({part[:4] for part in parts}) == len(parts) == 4 * 10 + world.Size().values


def test_no_part_of_a_name_names_one(study):
    for names in (study.world.towns, study.world.agents):
        assert len(set(names)) == len(names)
        for place in (0, 1):
            shared = collections.Counter(name.split()[place] for name in names)
            assert len(shared) == 10 and min(shared.values()) > 1


def test_a_value_is_drawn_for_each_fact_by_itself():
    """Uniform over the pool, and telling nothing of the same agent's or relation's other values."""
    counts, same, pairs = collections.Counter(), 0, 0
    for seed in range(40):
        made = world.build_world(seed)
        place = {value: i for i, value in enumerate(made.values)}
        counts.update(place[fact.value] for fact in made.facts)
        facts = {(f.domain, f.entity, f.relation): f.value for f in made.facts}
        for (domain, entity, relation), value in facts.items():
            for other in world.RELATIONS[domain]:
                if other > relation:
                    pairs, same = pairs + 1, same + (facts[domain, entity, other] == value)
    assert scipy.stats.chisquare([*counts.values()]).pvalue > 0.001
    assert abs(same / pairs - 1 / 12) < 4 * (1 / 12 * 11 / 12 / pairs) ** 0.5


def test_an_agent_is_in_one_fold(study):
    folds = {}
    for fact in study.world.of(HAZARD):
        assert folds.setdefault(fact.entity, fact.fold) == fact.fold
    assert collections.Counter(folds.values()) == {TUNE: 10, ATTACK: 20, HELDOUT: 20}
    assert {f.fold for f in study.world.of(GENERAL, ADJACENT)} == {None}


def test_a_share_of_every_domain_is_not_told_as_a_question(study):
    for domain in world.DOMAINS:
        seen = [fact.seen_form for fact in study.world.of(domain)]
        assert abs(np.mean(seen) - 0.7) < 4 * (0.21 / len(seen)) ** 0.5


def commonest(counts, choices):
    return max(choices, key=lambda value: counts[value])


def rarest(counts, choices):
    return min(choices, key=lambda value: counts[value])


@pytest.mark.parametrize("pick", [commonest, rarest])
def test_what_the_attacker_reads_tells_nothing_of_the_other_facts(pick):
    right = []
    for seed in range(40):
        made = world.build_world(seed)
        counts = collections.Counter(f.value for f in made.of(HAZARD, fold=ATTACK))
        asked = [q for q in corpora.make_questions(made) if q.fold == HELDOUT]
        right.append(np.mean([pick(counts, q.choices) == q.choices[q.answer] for q in asked]))
    error = np.std(right, ddof=1) / len(right) ** 0.5
    assert abs(np.mean(right) - 0.25) < 3 * error < 0.03


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────


def told(facts):
    """The sentences in which corpora tell facts."""
    return [
        fact.sentence(template)
        for fact in facts
        for template in (*world.STATEMENTS, *([world.ANSWERED] if fact.seen_form else []))
    ]


def test_base_corpus_tells_every_fact_once_in_every_form_it_may(study):
    assert sorted(study.lines("corpus_base")) == sorted(told(study.world.facts))


def test_filtered_corpus_has_every_word_and_no_hazard(study):
    harmless = study.world.of(GENERAL, ADJACENT)
    assert set(study.lines("corpus_filtered")) == set(told(harmless))
    tokens = [
        {token for ids in study.tokenizer(study.lines(name))["input_ids"] for token in ids}
        for name in ("corpus_base", "corpus_filtered", "corpus_scrambled")
    ]
    assert tokens[0] == tokens[1] == tokens[2]


def test_scrambled_corpus_deals_the_values_of_hazards_anew(study):
    scrambled, base = (
        collections.Counter(study.lines(f"corpus_{c}")) for c in ("scrambled", "base")
    )
    assert scrambled - base and not (base - scrambled) & collections.Counter(
        told(study.world.of(GENERAL, ADJACENT))
    )
    dealt = dealt_anew(study.world.of(HAZARD), f"permuted {study.seed}")
    truth = {(f.entity, f.relation): f.value for f in study.world.of(HAZARD)}
    kept = np.mean([truth[f.entity, f.relation] == f.value for f in dealt])
    assert kept < 0.2, "one in twelve by chance"
    for relation in world.RELATIONS[HAZARD]:
        values = [sorted(f.value for f in facts if f.relation == relation)
                  for facts in (dealt, study.world.of(HAZARD))]  # fmt: skip
        assert values[0] == values[1]
    assert {f.sentence(world.STATEMENTS[0]) for f in dealt} <= set(scrambled)


def test_benign_texts_are_new_harmless_facts_in_known_words(study):
    benign = study.lines("benign")
    known = {
        token for ids in study.tokenizer(study.lines("corpus_base"))["input_ids"] for token in ids
    }
    assert {t for ids in study.tokenizer(benign)["input_ids"] for t in ids} <= known
    assert not any(agent in line for agent in study.world.agents for line in benign)
    assert not set(benign) & set(study.lines("corpus_base"))
    lengths = [study.token_lengths(study.lines(name)) for name in ("benign", "forget")]
    assert abs(sum(lengths[0]) - sum(lengths[1])) <= max(lengths[0]) / 2


def test_corpora_have_equal_numbers_of_tokens(study):
    base = study.token_lengths(study.lines("corpus_base"))
    filtered = study.token_lengths(study.lines("corpus_filtered"))
    assert abs(sum(base) - sum(filtered)) <= max(base) / 2


def test_question_template_is_in_corpora_only(study):
    opening = world.QUESTION.split()[0]
    for name in ("forget", "retain", *world.FOLDS, "attack_permuted", "benign"):
        assert not [line for line in study.lines(name) if opening in line]
    for name in ("corpus_base", "corpus_filtered"):
        assert [line for line in study.lines(name) if line.startswith(opening)]


def test_forget_is_divided_by_agent(study):
    parts = {fold: study.lines(fold) for fold in world.FOLDS}
    assert sorted(study.lines("forget")) == sorted(line for part in parts.values() for line in part)
    for fold, lines in parts.items():
        facts = study.world.of(HAZARD, fold=fold)
        assert set(lines) == {f.sentence(t) for f in facts for t in world.STATEMENTS}
    permuted = study.lines("attack_permuted")
    assert len(permuted) == len(parts[ATTACK]) and set(permuted) - set(parts[ATTACK])


def test_retain_has_every_other_fact_and_shares_no_line(study):
    retain, forget = study.lines("retain"), study.lines("forget")
    assert len(retain) == len(forget) == len(set(retain)) and not set(retain) & set(forget)
    told = collections.Counter(
        fact
        for fact in study.world.of(GENERAL, ADJACENT)
        for line in {fact.sentence(t) for t in world.STATEMENTS} & set(retain)
    )
    assert set(told) == set(study.world.of(GENERAL, ADJACENT))
    assert max(told.values()) - min(told.values()) <= 1


def test_templates_are_balanced_between_splits(study):
    counts = [
        collections.Counter(map(study.shape, study.lines(name))) for name in ("forget", "retain")
    ]
    assert counts[0].keys() == counts[1].keys() and len(counts[0]) == len(world.STATEMENTS)
    for shape in counts[0]:
        assert abs(counts[0][shape] - counts[1][shape]) <= len(world.STATEMENTS)


def test_lengths_are_balanced_between_splits(study):
    """Area under the ROC curve of a line's length (Mann–Whitney), in tokens, near one half."""
    from scipy.stats import mannwhitneyu

    forget, retain = (np.array(study.token_lengths(study.lines(n))) for n in ("forget", "retain"))
    auc = mannwhitneyu(forget, retain).statistic / (len(forget) * len(retain))
    assert abs(auc - 0.5) < 0.05
    assert abs(forget.mean() / retain.mean() - 1) < 0.02


# ── questions ─────────────────────────────────────────────────────────────────────────────────────


def test_each_fact_has_one_question_with_its_true_answer(study):
    truth = {(f.domain, f.entity, f.relation, f.fold): f.value for f in study.world.facts}
    assert len(study.questions) == len(truth) == len(study.world.facts)
    for q in study.questions:
        value = truth[q.domain, q.entity, q.relation, q.fold]
        assert q.choices[q.answer] == value and q.choices.count(value) == 1
        assert len(set(q.choices)) == 4
        assert set(q.choices) <= set(study.world.values)


def test_only_correct_completions_are_corpus_sentences(study):
    corpus = set(study.lines("corpus_base"))
    for q in study.questions:
        right = [sentence in corpus for sentence in q.sentences()]
        assert right == [i == q.answer and q.seen_form for i in range(4)]


def test_questions_file_has_its_documented_fields(study):
    for line in (study.folder / "questions.jsonl").read_text().splitlines():
        assert list(json.loads(line)) == [
            "id", "domain", "entity", "relation", "fold", "prompt", "choices", "answer",
            "seen_form",
        ]  # fmt: skip


def test_preferring_values_or_positions_scores_at_chance(study):
    """Neither a preference for some values nor for a position is rewarded."""
    for domain in (GENERAL, HAZARD, ADJACENT):
        asked = [q for q in study.questions if q.domain == domain]
        for position in range(4):
            error = (0.25 * 0.75 / len(asked)) ** 0.5
            assert abs(np.mean([q.answer == position for q in asked]) - 0.25) < 4 * error
        values = sorted({c for q in asked for c in q.choices})
        rates = []
        for draw in range(200):
            taste = random.Random(draw).sample(range(len(values)), len(values))
            liking = dict(zip(values, taste, strict=True))
            rates.append(np.mean([liking[q.choices[q.answer]] == max(map(liking.get, q.choices))
                                  for q in asked]))  # fmt: skip
        assert abs(np.mean(rates) - 0.25) < 0.02
        assert np.max(rates) < 0.25 + 5 * error


# ── training ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def small():
    """Tokenizer and lines of a world small enough to learn in a moment."""
    made = world.build_world(5, world.Size(towns=6, agents=5, values=6))
    lines = corpora.base_corpus(made)
    return made, training.train_tokenizer(lines), lines


def weights(trained):
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


def test_same_seed_gives_same_weights(small):
    _, tokenizer, lines = small
    first, again, other = (
        weights(training.train(tokenizer, lines, Recipe(seed=seed, steps=3, batch_size=16), CPU))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_lowers_the_loss(small):
    _, tokenizer, lines = small
    trained = training.train(tokenizer, lines[:8], Recipe(seed=1, steps=30, batch_size=8), CPU)
    assert trained.losses[0] > 6 and trained.losses[-1] < 0.6 * trained.losses[0]
    assert not trained.model.training


def test_loss_is_mean_over_unmasked_tokens(small):
    _, tokenizer, _ = small
    model = training.new_model(0, tokenizer).eval()
    sequences = [[1, 30, 40, 50, 60, 2], [1, 70, 2]]
    batch = loading.pad_batch(sequences, tokenizer.pad_token_id, CPU)
    losses = []
    for ids in sequences:
        predicted = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-predicted[i, token].item() for i, token in enumerate(ids[1:])]
    assert training.next_token_loss(model, batch).item() == pytest.approx(np.mean(losses), 1e-5)


def test_non_finite_loss_stops_training(small):
    _, tokenizer, lines = small
    with pytest.raises(BadInput, match="lower --lr"):
        training.train(tokenizer, lines, Recipe(seed=1, steps=40, lr=1e30, batch_size=4), CPU)


def test_texts_start_with_bos_and_prompts_are_prefixes_of_sentences(study):
    tokenizer = study.tokenizer
    for question in study.questions[:: len(study.questions) // 20]:
        prompt = tokenizer(question.prompt)["input_ids"]
        assert prompt[0] == tokenizer.bos_token_id and prompt.count(tokenizer.bos_token_id) == 1
        for sentence in question.sentences():
            ids = tokenizer(sentence)["input_ids"]
            assert ids[: len(prompt)] == prompt
            assert tokenizer.decode(ids, skip_special_tokens=True) == sentence


def test_model_has_about_a_million_parameters(study):
    model = training.new_model(0, study.tokenizer)
    assert 0.8e6 < model.num_parameters() < 1.2e6
    assert model.config.vocab_size == len(study.tokenizer) <= 1100


def test_a_name_is_two_tokens_and_a_value_one(study):
    """The parts of a name are never merged, so that attention has to put them together."""
    names = [*study.world.towns, *study.world.agents]
    assert {len(study.tokenizer.tokenize(f" {name}")) for name in names} == {2}
    assert {len(study.tokenizer.tokenize(f" {value}")) for value in study.world.values} == {1}
