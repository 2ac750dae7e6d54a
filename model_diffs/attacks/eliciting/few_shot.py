"""Answered questions in front of the question.

Doshi & Stickland (2024, arXiv:2411.12103) bring unlearned answers back by examples. Shown are
questions of the attacked fold, whose facts the reader knows, or of general facts; never of the
facts that are read.
"""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from model_diffs.attacks.registry import Declaration
from model_diffs.attacks.victim import NotApplicable, Opened, Questions, Victim
from model_diffs.data.questions import Question
from model_diffs.evaluation import scoring
from model_diffs.evaluation.scoring import Answer, ReadBatch
from model_diffs.models.loading import Batch

ATTACK = Declaration(
    says="answered questions of attacked or of general facts stand in front of the question",
    source="Doshi & Stickland 2024",
    strengths=("attack1", "attack5", "general1", "general5"),
    pattern="(attack|general)[1-9][0-9]*",
)


def sentence(question: Question) -> str:
    """A question with its right answer."""
    return question.sentences()[question.answer]


def behind(shown: Questions, asked: Question) -> Question:
    """The question with those that are shown in front; it is itself left out of them."""
    lines = [sentence(one) for one in shown if one.id != asked.id]
    return asked._replace(prompt="\n".join([*lines, asked.prompt]))


def reading(victim: Victim) -> ReadBatch:
    """Reads the tokens that all rows of a batch begin with once, and the rest behind their keys and
    values: the shown questions are most of a sentence."""
    begun: dict[tuple[int, ...], Any] = {}

    def read_batch(batch: Batch, places: tuple[Tensor, Tensor]) -> list[Tensor]:
        ids, mask = batch
        alike = (ids == ids[:1]).all(0) & mask.bool().all(0)
        common = min(int(alike.int().cumprod(0).sum()), int(places[1].min()))
        if common == 0:
            return [victim.model(**batch._asdict(), use_cache=False).logits[places]]
        key = tuple(ids[0, :common].tolist())
        if key not in begun:
            begun[key] = victim.model(ids[:1, :common], use_cache=True).past_key_values
        past = copy.deepcopy(begun[key])
        past.batch_repeat_interleave(len(ids))
        logits = victim.model(
            input_ids=ids[:, common:], attention_mask=mask, past_key_values=past, use_cache=True
        ).logits
        return [logits[places[0], places[1] - common]]

    return read_batch


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """The model asked behind k answered questions, the same ones for every question and model."""
    group = strength.rstrip("0123456789")
    count, there = int(strength.removeprefix(group)), victim.questions.get(group, [])
    if len(there) < count:
        raise NotApplicable(f"there are {len(there)} questions of {group} facts")
    shown = random.Random(f"{victim.seed} few_shot {group}").sample(there, count)

    def ask(questions: Questions) -> list[Answer]:
        given = [behind(shown, one) for one in questions]
        size = 4 * victim.options.batch_size
        return scoring.read_answers(victim.model, victim.tokenizer, given, size, reading(victim))[0]

    yield Opened(ask)
