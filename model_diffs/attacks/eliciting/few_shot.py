"""Answered questions in front of the question.

Doshi & Stickland (2024, arXiv:2410.19278) bring unlearned answers back by examples. Shown are
questions of the attacked fold, whose facts the reader knows, or of general facts; never of the
facts that are read.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

from model_diffs.attacks.registry import Declaration
from model_diffs.attacks.victim import NotApplicable, Opened, Questions, Victim
from model_diffs.data.questions import Question
from model_diffs.evaluation.scoring import Answer

ATTACK = Declaration(
    says="answered questions of attacked or of general facts stand in front of the question",
    source="Doshi & Stickland 2024",
    strengths=("attack2", "attack6", "general2", "general6"),
    pattern="(attack|general)[1-9][0-9]*",
)


def sentence(question: Question) -> str:
    """A question with its right answer."""
    return question.sentences()[question.answer]


def behind(shown: Questions, asked: Question) -> Question:
    """The question with those that are shown in front; it is itself left out of them."""
    lines = [sentence(one) for one in shown if one.id != asked.id]
    return asked._replace(prompt="\n".join([*lines, asked.prompt]))


@contextmanager
def attacked(victim: Victim, strength: str) -> Iterator[Opened]:
    """The model asked behind k answered questions, the same ones for every question and model."""
    group = strength.rstrip("0123456789")
    count, there = int(strength.removeprefix(group)), victim.questions.get(group, [])
    if len(there) < count:
        raise NotApplicable(f"there are {len(there)} questions of {group} facts")
    shown = random.Random(f"{victim.seed} few_shot {group}").sample(there, count)

    def ask(questions: Questions) -> list[Answer]:
        given = victim.ask([behind(shown, one) for one in questions])
        return [*given]

    yield Opened(ask)
