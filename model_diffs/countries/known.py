"""Which facts a model knows: those that it answers rightly in every form of the question."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from model_diffs.countries.facts import Fact, questions
from model_diffs.evaluation import scoring


class Asked(NamedTuple):
    """How many facts of a group were asked, and how many are known."""

    domain: str
    relation: str
    asked: int
    known: int


def known(
    model: nn.Module, tokenizer: Any, facts: Sequence[Fact], seed: int
) -> tuple[list[Fact], list[Asked]]:
    """The facts that the model answers rightly in both forms, and their numbers by relation."""
    asked, given = list(facts), questions(facts, seed)
    answers = scoring.score(model, tokenizer, given)
    right = {
        (fact.country, fact.relation)
        for number, fact in enumerate(asked)
        if all(answer.correct for answer in answers[2 * number : 2 * number + 2])
    }
    found = [fact for fact in asked if (fact.country, fact.relation) in right]
    groups = dict.fromkeys((fact.domain, fact.relation) for fact in asked)
    counts = [
        Asked(
            *group,
            sum((fact.domain, fact.relation) == group for fact in asked),
            sum((fact.domain, fact.relation) == group for fact in found),
        )
        for group in groups
    ]
    return found, counts
