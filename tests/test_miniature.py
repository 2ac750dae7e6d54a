"""The fictional world, its texts and questions, and the training of its models."""

import collections
import json
import random
import shutil

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import create_miniature
from model_diffs.core import options, results, script
from model_diffs.core.errors import BadInput
from model_diffs.data import texts
from model_diffs.data.questions import load_questions
from model_diffs.miniature import corpora, training, world
from model_diffs.miniature.recipe import Recipe
from model_diffs.miniature.world import ADJACENT, ATTACK, GENERAL, HAZARD, HELDOUT
from model_diffs.models import loading

SEEDS = (42, 1)
CPU = torch.device("cpu")


class Study:
    """Everything that is written for one seed."""

    def __init__(self, folder, seed):
        self.seed, self.folder = seed, folder
        chosen = create_miniature.Options(seed=seed, data_dir=str(folder))
        create_miniature.make_texts(create_miniature.planned_runs(chosen)[:1], chosen)
        self.world = world.build_world(seed)
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.questions = load_questions(folder / "questions.jsonl")

    def lines(self, name):
        return texts.read_split(self.folder / f"{name}.txt", "retain").texts

    def shape(self, line):
        """A line with its names and its relation blanked: all that is left is the template."""
        made = self.world
        relations = {r for named in world.RELATIONS.values() for r in named}
        names = {*made.towns, *made.agents, *(v for pool in made.values.values() for v in pool)}
        blank = {**dict.fromkeys(relations, "RELATION"), **dict.fromkeys(names, "NAME")}
        for mark in ",.?":
            line = line.replace(mark, f" {mark}")
        return " ".join(blank.get(word, word) for word in line.split())

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


def test_names_differ_in_their_first_letters(study):
    made = study.world
    names = [*made.towns, *made.agents, *(v for pool in made.values.values() for v in pool)]
    assert len({name[:4] for name in names}) == len(names)


def test_values_are_drawn_evenly(study):
    for relation in (r for named in world.RELATIONS.values() for r in named):
        counts = collections.Counter(f.value for f in study.world.facts if f.relation == relation)
        assert len(counts) == world.Size().values
        assert max(counts.values()) - min(counts.values()) <= 1


def test_folds_halve_hazard_relations_only(study):
    for relation in world.RELATIONS[HAZARD]:
        folds = [f.fold for f in study.world.of(HAZARD) if f.relation == relation]
        assert abs(folds.count(ATTACK) - folds.count(HELDOUT)) <= 1
        assert set(folds) == {ATTACK, HELDOUT}
    assert {f.fold for f in study.world.of(GENERAL, ADJACENT)} == {None}


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────


def test_base_corpus_has_every_fact_in_every_template_once(study):
    expected = [f.sentence(t) for f in study.world.facts for t in world.TEMPLATES]
    assert sorted(study.lines("corpus_base")) == sorted(expected)


def test_filtered_corpus_has_no_hazard_word(study):
    words = set(" ".join(study.lines("corpus_filtered")).replace(".", " ").split())
    hazards = {v for r in world.RELATIONS[HAZARD] for v in study.world.values[r]}
    assert not words & (hazards | set(world.RELATIONS[HAZARD]))
    harmless = {f.sentence(t) for f in study.world.of(GENERAL, ADJACENT) for t in world.TEMPLATES}
    assert set(study.lines("corpus_filtered")) == harmless


def test_corpora_have_equal_numbers_of_tokens(study):
    base = study.token_lengths(study.lines("corpus_base"))
    filtered = study.token_lengths(study.lines("corpus_filtered"))
    assert abs(sum(base) - sum(filtered)) <= max(base) / 2


def test_question_template_is_in_corpora_only(study):
    opening = world.QUESTION.split()[0]
    for name in ("forget", "retain", "attack", "heldout"):
        assert not [line for line in study.lines(name) if opening in line]
    for name in ("corpus_base", "corpus_filtered"):
        assert [line for line in study.lines(name) if line.startswith(opening)]


def test_forget_splits_into_attack_and_heldout_by_fact(study):
    forget, attack, heldout = (study.lines(n) for n in ("forget", "attack", "heldout"))
    assert sorted(forget) == sorted(attack + heldout)
    pairs = {}
    for fold, lines in ((ATTACK, attack), (HELDOUT, heldout)):
        facts = study.world.of(HAZARD, fold=fold)
        assert set(lines) == {f.sentence(t) for f in facts for t in world.STATEMENTS}
        pairs[fold] = {(f.entity, f.relation) for f in facts}
    assert not pairs[ATTACK] & pairs[HELDOUT]


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
        assert set(q.choices) <= set(study.world.values[q.relation])


def test_only_the_correct_completion_is_a_corpus_sentence(study):
    corpus = set(study.lines("corpus_base"))
    for q in study.questions:
        right = [sentence in corpus for sentence in q.sentences()]
        assert right == [i == q.answer for i in range(4)]


def test_questions_file_has_its_documented_fields(study):
    for line in (study.folder / "questions.jsonl").read_text().splitlines():
        assert list(json.loads(line)) == [
            "id", "domain", "entity", "relation", "fold", "prompt", "choices", "answer",
        ]  # fmt: skip


def test_preferring_values_or_positions_scores_at_chance(study):
    """Neither a preference for some values nor for a position is rewarded."""
    for domain in (GENERAL, HAZARD, ADJACENT):
        asked = [q for q in study.questions if q.domain == domain]
        for position in range(4):
            assert abs(np.mean([q.answer == position for q in asked]) - 0.25) < 0.01
        values = sorted({c for q in asked for c in q.choices})
        rates = []
        for draw in range(200):
            taste = random.Random(draw).sample(range(len(values)), len(values))
            liking = dict(zip(values, taste, strict=True))
            rates.append(np.mean([liking[q.choices[q.answer]] == max(map(liking.get, q.choices))
                                  for q in asked]))  # fmt: skip
        assert abs(np.mean(rates) - 0.25) < 0.01
        assert np.max(rates) < 0.36


# ── training ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def small():
    """Tokenizer and lines of a world small enough to learn in a moment."""
    made = world.build_world(5, world.Size(towns=6, agents=4, values=4))
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
    assert 0.9e6 < model.num_parameters() < 1.2e6
    assert model.config.vocab_size == len(study.tokenizer) <= 1100


# ── script ────────────────────────────────────────────────────────────────────────────────────────

WORDS = ["--steps", "2", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """An empty folder to work in, and a world of 6 agents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(world.Size.__new__, "__defaults__", (8, 6, 4))
    return tmp_path


def run(*words):
    script.execute(create_miniature, [*WORDS, *words])


def planned(*words):
    chosen = options.parse(create_miniature.Options, [*WORDS, *words], None)
    return create_miniature.planned_runs(chosen)


def finished(folder):
    return (folder / results.RECORD).stat().st_mtime_ns


@pytest.mark.study
def test_only_missing_folders_are_made_again(in_folder, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run()
    assert [results.state(one).status for one in planned()] == ["complete"] * 3
    data, base, filtered = (one.folder for one in planned())
    card = (filtered / "README.md").read_text()
    assert "| hazard, fold heldout | 15 |" in card
    before = [finished(data), finished(base), (base / "model.safetensors").read_bytes()]
    weights_before = (filtered / "model.safetensors").read_bytes()
    assert weights_before != before[2]

    shutil.rmtree(filtered)
    run()
    assert [finished(data), finished(base), (base / "model.safetensors").read_bytes()] == before
    assert (filtered / "model.safetensors").read_bytes() == weights_before
    assert AutoModelForCausalLM.from_pretrained(base).config.model_type == "gpt_neox"
    same = [AutoTokenizer.from_pretrained(m)("The river")["input_ids"] for m in (base, filtered)]
    assert same[0] == same[1]

    capsys.readouterr()
    run()
    assert capsys.readouterr().out.count("complete, skipped") == 3


def test_changed_setting_makes_models_stale_and_keeps_texts(in_folder):
    create_miniature.make_texts(planned()[:1], create_miniature.Options())
    states = [results.state(one).status for one in planned("--lr", "1e-3")]
    assert states == ["complete", "missing", "missing"]
    assert results.state(planned("--seed", "1")[0]).status == "stale"


def test_only_models_of_other_texts_are_made_again_with_the_texts(in_folder, monkeypatch):
    """Models are looked at once more when texts were made that were missing at the start."""
    made = []

    def make_models(todo, chosen):
        for one in todo:
            made.append(one.label)
            with results.open_run(one) as opened:
                opened.reads(f"data/miniature/corpus_{one.arguments['corpus']}.txt")

    monkeypatch.setattr(create_miniature, "make_models", make_models)
    run()
    record = in_folder / "models/miniature-filtered/run.json"
    content = json.loads(record.read_text())
    content["inputs"][0]["sha256"] = "of other texts"
    record.write_text(json.dumps(content))
    shutil.rmtree("data/miniature")
    assert [results.state(one).status for one in planned()] == ["missing", "complete", "complete"]
    run()
    assert made == ["miniature-base", "miniature-filtered", "miniature-filtered"]
    assert [results.state(one).status for one in planned()] == ["complete"] * 3


def test_unknown_device_is_one_line_and_nothing_is_trained(in_folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["create_miniature.py", "--device", "abacus"])
    with pytest.raises(SystemExit) as stopped:
        script.run_step(create_miniature.__name__)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (in_folder / "models").exists()
