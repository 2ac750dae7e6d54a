"""Texts of unlearning: what is held out, how steps are planned, how texts are paired."""

import random
from pathlib import Path

import pytest
import tiny_models

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import Split
from model_diffs.unlearning import data
from model_diffs.unlearning.data import plan_epoch


def split_of(texts: list[str]) -> Split:
    return Split("forget", Path("forget.txt"), texts)


def test_held_out_texts_are_a_seeded_share() -> None:
    tokenizer = tiny_models.tokenizer("gpt_neox")  # one token per byte
    words = ["a" * n for n in range(2, 22)]
    tokens = data.tokenise(tokenizer, split_of(["x", *words]), 15, 0.25, seed=1)
    assert (len(tokens.train), len(tokens.held_out)) == (15, 5)
    lengths = sorted(len(ids) for ids in (*tokens.train, *tokens.held_out))
    assert lengths == [*range(2, 15), *[15] * 7]
    for part in (tokens.train, tokens.held_out):
        assert [len(ids) for ids in part] == sorted(len(ids) for ids in part), "order of the file"
    facts = tokens.facts
    assert (facts["trained_on"], facts["held_out"], facts["left_out_single_token"]) == (15, 5, 1)
    assert facts["at_max_length"] == 7
    assert facts["tokens"] == sum(map(len, tokens.train))
    again, other = (data.tokenise(tokenizer, split_of(["x", *words]), 15, 0.25, s) for s in (1, 2))
    assert again == tokens and other.held_out != tokens.held_out
    assert len(data.tokenise(tokenizer, split_of(words), 15, 0.001, 1).held_out) == 1
    assert data.tokenise(tokenizer, split_of(words), 15, 0.0, 1).held_out == []
    assert len(data.tokenise(tokenizer, split_of(["aa", "bb"]), 15, 0.1, 1).train) == 1


def test_texts_that_leave_none_to_train_on_are_refused() -> None:
    tokenizer = tiny_models.tokenizer("gpt_neox")
    for texts, share in ((["aa"], 0.1), (["a", "b"], 0.0)):
        with pytest.raises(BadInput, match=r"forget\.txt: \d usable texts leave none"):
            data.tokenise(tokenizer, split_of(texts), 15, share, 1)


def test_texts_are_sorted_within_windows_only() -> None:
    order = list(range(100))[::-1]
    batches = data._bucketed(order, lambda i: i, 2, random.Random(0))
    window = 32
    assert [len(batch) for batch in batches] == [2] * 50
    for start in range(0, 100, window):
        members = batches[start // 2 : (start + window) // 2]
        assert sorted(i for batch in members for i in batch) == sorted(
            order[start : start + window]
        )
        assert all(b[1] == b[0] + 1 for b in members), "neighbours in length"
        assert members != sorted(members), "and in random order"


def test_cycling_draws_no_more_than_it_needs() -> None:
    one, other = random.Random(0), random.Random(0)
    assert data._cycled(5, 10, one) == [*other.sample(range(5), 5), *other.sample(range(5), 5)]
    assert one.random() == other.random()


def test_pairs_are_bucketed_by_the_length_of_both() -> None:
    forget, retain = [1, 9] * 16, [9, 1] * 8 + [1, 9] * 8
    steps = plan_epoch(forget, retain, 4, seed=1, epoch=0, paired=True)
    sums = [{forget[f] + retain[r] for f, r in zip(*step, strict=True)} for step in steps]
    assert sorted(map(sorted, sums)) == sorted([[10]] * 4 + [[2]] * 2 + [[18]] * 2)
    assert sum(len(step.forget) for step in steps) == 32
    short = plan_epoch([3] * 3, [4] * 7, 2, seed=1, epoch=0, paired=True)
    pairs = {(f, r) for step in short for f, r in zip(*step, strict=True)}
    assert pairs == {(k % 3, k) for k in range(7)}
