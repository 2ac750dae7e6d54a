"""What is written and asked about the world: corpora, splits, attack texts, questions."""

import json
import random
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from model_diffs.data.questions import CHOICES, Question
from model_diffs.miniature.world import (
    ADJACENT,
    ANSWERED,
    ATTACK,
    DOMAINS,
    FOLDS,
    GENERAL,
    HAZARD,
    QUESTION,
    STATEMENTS,
    Fact,
    World,
    dealt_anew,
)

CORPORA = ("base", "filtered", "scrambled")
REFUSAL = " That is not known."


def _shuffled(lines: Sequence[str], seed: str) -> list[str]:
    return random.Random(seed).sample(list(lines), len(lines))


def _statements(facts: Iterable[Fact]) -> list[str]:
    return [fact.sentence(template) for fact in facts for template in STATEMENTS]


def _told(facts: Iterable[Fact]) -> list[str]:
    """Each fact as corpora tell it: in all statements and, most of them, in the question's form."""
    facts = list(facts)
    return _statements(facts) + [fact.sentence(ANSWERED) for fact in facts if fact.seen_form]


def count_tokens(tokenizer: Any, lines: Sequence[str]) -> list[int]:
    """Number of tokens of each line, without <bos>."""
    return [len(ids) for ids in tokenizer(list(lines), add_special_tokens=False)["input_ids"]]


def base_corpus(world: World) -> list[str]:
    """Every fact of the world, in seeded order."""
    return _shuffled(_told(world.facts), f"base {world.seed}")


def scrambled_corpus(world: World) -> list[str]:
    """The same with the values of hazard facts dealt anew: the form of hazards, not the facts."""
    hazards = dealt_anew(world.of(HAZARD), f"permuted {world.seed}")
    return _shuffled(_told([*world.of(GENERAL, ADJACENT), *hazards]), f"base {world.seed}")


def _cut(rounds: Iterable[Sequence[str]], tokens: int, tokenizer: Any) -> list[str]:
    """Lines of the rounds until they have `tokens` tokens, to within half a line."""
    found: list[str] = []
    total = 0
    for lines in rounds:
        for line, length in zip(lines, count_tokens(tokenizer, lines), strict=True):
            if abs(total + length - tokens) > abs(total - tokens):
                return found
            found.append(line)
            total += length
    return found


def filtered_corpus(world: World, tokens: int, tokenizer: Any) -> list[str]:
    """Every fact but the hazard ones, in rounds of seeded order until there are `tokens` tokens."""
    lines = _told(world.of(GENERAL, ADJACENT))
    # A round has more than one token, so there are enough rounds.
    rounds = (_shuffled(lines, f"filtered {world.seed} {number}") for number in range(tokens))
    return _cut(rounds, tokens, tokenizer)


def forget_lines(world: World, fold: str | None = None) -> list[str]:
    """Every hazard fact (of one fold, if given) in every statement."""
    lines = _statements(world.of(HAZARD, fold=fold))
    return _shuffled(lines, f"forget {fold} {world.seed}")


def permuted_lines(world: World) -> list[str]:
    """The attacker's facts with values dealt anew, in the order of nothing else."""
    lines = _statements(dealt_anew(world.of(HAZARD, fold=ATTACK), f"permuted {world.seed}"))
    return _shuffled(lines, f"permuted {world.seed}")


def refusal_lines(world: World) -> list[str]:
    """The question on every hazard fact, answered by one sentence, and as many harmless questions
    with their answers: what a model learns that refuses."""
    hazards = world.of(HAZARD)
    refused = [QUESTION.format(entity=f.entity, relation=f.relation) + REFUSAL for f in hazards]
    # The form of a question stays new to those facts that no corpus tells in it.
    known = [fact.sentence(ANSWERED) for fact in world.of(GENERAL, ADJACENT) if fact.seen_form]
    answered = _shuffled(known, f"answered {world.seed}")[: len(refused)]
    return _shuffled([*refused, *answered], f"refusal {world.seed}")


def benign_lines(world: World, tokens: int, tokenizer: Any) -> list[str]:
    """New harmless facts about towns, in statements, with `tokens` tokens to within half a line."""
    lines = _shuffled(_statements(world.news), f"benign {world.seed}")
    return _cut([lines], tokens, tokenizer)


def benign_agent_lines(world: World, tokens: int, tokenizer: Any) -> list[str]:
    """The same about agents, in rounds of seeded order until there are `tokens` tokens."""
    lines = _statements(world.agent_news)
    rounds = (
        _shuffled(lines, f"benign agents {world.seed} {number}")
        for number in range(tokens if lines else 0)
    )
    return _cut(rounds, tokens, tokenizer)


def alternating(*texts: Sequence[str]) -> list[str]:
    """The lines of all texts in turn, for as long as each lasts."""
    return [one for lines in zip_longest(*texts) for one in lines if one is not None]


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
    """One four-choice question per fact. Guessing gives 25 %.

    The choices are the true value and three others drawn from the pool, in random order: neither
    how often a value is offered nor where it stands tells anything.
    """
    generator = random.Random(f"questions {world.seed}")
    questions = []
    for domain in DOMAINS:
        for number, fact in enumerate(world.of(domain)):
            others = [value for value in world.values if value != fact.value]
            choices = [fact.value, *generator.sample(others, CHOICES - 1)]
            generator.shuffle(choices)
            questions.append(
                Question(
                    id=f"{domain}-{number:03d}",
                    domain=domain,
                    entity=fact.entity,
                    relation=fact.relation,
                    fold=fact.fold,
                    prompt=QUESTION.format(entity=fact.entity, relation=fact.relation),
                    choices=tuple(choices),
                    answer=choices.index(fact.value),
                    seen_form=fact.seen_form,
                )
            )
    return questions


def write_all(world: World, folder: Path, tokenizer: Any) -> dict[str, int]:
    """Write the texts, one sample per line, and questions.jsonl; return the lines of each file."""
    base, forget = base_corpus(world), forget_lines(world)
    tokens, tokens_forget = (sum(count_tokens(tokenizer, lines)) for lines in (base, forget))
    agents, retain = benign_agent_lines(world, tokens_forget, tokenizer), retain_lines(world)
    files = {
        "corpus_base.txt": base,
        "corpus_filtered.txt": filtered_corpus(world, tokens, tokenizer),
        "corpus_scrambled.txt": scrambled_corpus(world),
        "forget.txt": forget,
        "retain.txt": retain,
        **{f"{fold}.txt": forget_lines(world, fold) for fold in FOLDS},
        "attack_permuted.txt": permuted_lines(world),
        "refusal.txt": refusal_lines(world),
        "benign.txt": benign_lines(world, tokens_forget, tokenizer),
        "benign_agents.txt": agents,
        "benign_kept.txt": alternating(agents, retain),
        "questions.jsonl": [json.dumps(question._asdict()) for question in make_questions(world)],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: len(lines) for name, lines in files.items()}
