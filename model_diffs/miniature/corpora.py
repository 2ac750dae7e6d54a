"""What is written and asked about the world: corpora, splits, attack texts, questions."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_diffs.data.questions import CHOICES, Question
from model_diffs.miniature.world import (
    ADJACENT,
    ATTACK,
    DOMAINS,
    GENERAL,
    HAZARD,
    HELDOUT,
    QUESTION,
    STATEMENTS,
    TEMPLATES,
    Fact,
    World,
)


def _shuffled(lines: list[str], seed: str) -> list[str]:
    return random.Random(seed).sample(lines, len(lines))


def _sentences(facts: Sequence[Fact], templates: Sequence[str]) -> list[str]:
    return [fact.sentence(template) for fact in facts for template in templates]


def base_corpus(world: World) -> list[str]:
    """Every fact of the world in every template once, in seeded order."""
    return _shuffled(_sentences(world.facts, TEMPLATES), f"base {world.seed}")


def count_tokens(tokenizer: Any, lines: Sequence[str]) -> list[int]:
    """Number of tokens of each line, without <bos>."""
    return [len(ids) for ids in tokenizer(list(lines), add_special_tokens=False)["input_ids"]]


def filtered_corpus(world: World, tokens: int, tokenizer: Any) -> list[str]:
    """Every fact but the hazard ones, repeated until the corpus has `tokens` tokens.

    Rounds of all sentences in seeded order; the last round is cut so that the total is within half
    a sentence of `tokens`.
    """
    lines = _sentences(world.of(GENERAL, ADJACENT), TEMPLATES)
    length = dict(zip(lines, count_tokens(tokenizer, lines), strict=True))
    corpus: list[str] = []
    total = round_number = 0
    while True:
        for line in _shuffled(lines, f"filtered {world.seed} {round_number}"):
            if abs(total + length[line] - tokens) > abs(total - tokens):
                return corpus
            corpus.append(line)
            total += length[line]
        round_number += 1


def forget_lines(world: World, fold: str | None = None) -> list[str]:
    """Every hazard fact (of one fold, if given) in every template but the question's."""
    lines = _sentences(world.of(HAZARD, fold=fold), STATEMENTS)
    return _shuffled(lines, f"forget {fold} {world.seed}")


def retain_lines(world: World) -> list[str]:
    """As many lines as `forget_lines`, templates evenly used, about the other two domains.

    Facts are taken in seeded rounds, so that their numbers of lines differ by at most one.
    Raises ValueError where there are too few facts to fill the lines without repeating one.
    """
    facts = world.of(GENERAL, ADJACENT)
    count = len(world.of(HAZARD)) * len(STATEMENTS)
    if count > len(facts) * len(STATEMENTS):
        raise ValueError("there are more hazard facts than others: make the world's towns more")
    order = random.Random(f"retain {world.seed}").sample(facts, len(facts))
    lines = []
    for k in range(count):
        # Shifted by one each round, so that each fact meets another template.
        round_number, i = divmod(k, len(order))
        lines.append(order[i].sentence(STATEMENTS[(i + round_number) % len(STATEMENTS)]))
    return _shuffled(lines, f"retain lines {world.seed}")


def make_questions(world: World) -> list[Question]:
    """One four-choice question per fact, in the template that no split and no attack text uses.

    Wrong choices come from the relation's own pool, each about equally often; the position of the
    answer is even within each domain. Guessing gives 25 %.
    """
    generator = random.Random(f"questions {world.seed}")
    questions = []
    for domain in DOMAINS:
        facts = world.of(domain)
        used: Counter[str] = Counter()
        positions = [i % CHOICES for i in range(len(facts))]
        generator.shuffle(positions)
        for number, (fact, answer) in enumerate(zip(facts, positions, strict=True)):
            # The values offered least so far, ties by chance: no value hints at a wrong answer.
            others = [value for value in world.values[fact.relation] if value != fact.value]
            others.sort(key=lambda value: (used[value], generator.random()))
            choices = others[: CHOICES - 1]
            used.update(choices)
            generator.shuffle(choices)
            choices.insert(answer, fact.value)
            questions.append(
                Question(
                    id=f"{domain}-{number:03d}",
                    domain=domain,
                    entity=fact.entity,
                    relation=fact.relation,
                    fold=fact.fold,
                    prompt=QUESTION.format(entity=fact.entity, relation=fact.relation),
                    choices=tuple(choices),
                    answer=answer,
                )
            )
    return questions


def write_all(world: World, folder: Path, tokenizer: Any) -> dict[str, int]:
    """Write the texts, one sample per line, and questions.jsonl; return the lines of each file."""
    base = base_corpus(world)
    files = {
        "corpus_base.txt": base,
        "corpus_filtered.txt": filtered_corpus(
            world, sum(count_tokens(tokenizer, base)), tokenizer
        ),
        "forget.txt": forget_lines(world),
        "retain.txt": retain_lines(world),
        "attack.txt": forget_lines(world, ATTACK),
        "heldout.txt": forget_lines(world, HELDOUT),
        "questions.jsonl": [json.dumps(question._asdict()) for question in make_questions(world)],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: len(lines) for name, lines in files.items()}
