"""Four-choice questions, one per fact, in the template that no split and no attack text uses."""

import json
import random
from pathlib import Path

from model_diffs.evaluation.knowledge import Question
from model_diffs.miniature.world import DOMAINS, QUESTION, Fact, World

CHOICES = 4


def _positions(count: int, generator: random.Random) -> list[int]:
    positions = [i % CHOICES for i in range(count)]
    generator.shuffle(positions)
    return positions


def _distractors(
    fact: Fact, pool: list[str], used: dict[str, int], generator: random.Random
) -> list[str]:
    """The values offered least so far, so that none is a sign of a wrong answer; ties by chance."""
    others = [value for value in pool if value != fact.value]
    others.sort(key=lambda value: (used[value], generator.random()))
    chosen = others[: CHOICES - 1]
    for value in chosen:
        used[value] += 1
    generator.shuffle(chosen)
    return chosen


def make_questions(world: World) -> list[Question]:
    """One question per fact.

    The wrong choices come from the relation's own pool, each about as often as the others; the
    position of the answer is even within each domain. Guessing gives 25 %.
    """
    generator = random.Random(f"questions {world.seed}")
    questions = []
    for domain in DOMAINS:
        facts = world.of(domain)
        used = {value: 0 for pool in world.values.values() for value in pool}
        positions = _positions(len(facts), generator)
        for number, (fact, answer) in enumerate(zip(facts, positions, strict=True)):
            choices = _distractors(fact, world.values[fact.relation], used, generator)
            choices.insert(answer, fact.value)
            prompt = QUESTION.format(entity=fact.entity, relation=fact.relation)
            questions.append(
                Question(
                    f"{domain}-{number:03d}",
                    domain,
                    fact.entity,
                    fact.relation,
                    fact.fold,
                    prompt,
                    tuple(choices),
                    answer,
                )
            )
    return questions


def write_questions(path: Path, questions: list[Question]) -> None:
    """One JSON object per line, the fields in the order of `Question`."""
    lines = [json.dumps(question._asdict()) for question in questions]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
