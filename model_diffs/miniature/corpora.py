"""What is written about the world: two corpora, the splits, the texts of the relearning attack."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from model_diffs.miniature.world import (
    ADJACENT,
    ATTACK,
    GENERAL,
    HAZARD,
    HELDOUT,
    STATEMENTS,
    TEMPLATES,
    Fact,
    World,
)


def _shuffled(lines: list[str], seed: object) -> list[str]:
    generator = random.Random(str(seed))
    return generator.sample(lines, len(lines))


def told(facts: Sequence[Fact], templates: Sequence[str]) -> list[str]:
    """Every fact in every template, by fact."""
    return [fact.sentence(template) for fact in facts for template in templates]


def base_corpus(world: World) -> list[str]:
    """Every fact of the world in every template once, in seeded order."""
    return _shuffled(told(world.facts, TEMPLATES), f"base {world.seed}")


def filtered_corpus(
    world: World, tokens: int, count_tokens: Callable[[list[str]], list[int]]
) -> list[str]:
    """Every fact but the hazard ones, repeated until the corpus has `tokens` tokens.

    Rounds of all sentences in seeded order, the last round cut where the target is met best: the
    total is within half a sentence of `tokens`. `count_tokens` gives the tokens of each line.
    """
    lines = told(world.of(GENERAL, ADJACENT), TEMPLATES)
    length = dict(zip(lines, count_tokens(lines), strict=True))
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
    return _shuffled(told(world.of(HAZARD, fold=fold), STATEMENTS), f"forget {fold} {world.seed}")


def retain_lines(world: World) -> list[str]:
    """As many lines as `forget_lines`, templates evenly used, of the facts of both other domains.

    Facts are taken in seeded rounds, so that any two are told equally often to within one.
    Raises ValueError where there are too few facts to fill the lines without saying one twice.
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


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """One sample per line."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_texts(
    world: World, folder: Path, count_tokens: Callable[[list[str]], list[int]]
) -> dict[str, int]:
    """Write all text files of the world into `folder`; return the number of lines of each."""
    base = base_corpus(world)
    files = {
        "corpus_base.txt": base,
        "corpus_filtered.txt": filtered_corpus(world, sum(count_tokens(base)), count_tokens),
        "forget.txt": forget_lines(world),
        "retain.txt": retain_lines(world),
        "attack.txt": forget_lines(world, ATTACK),
        "heldout.txt": forget_lines(world, HELDOUT),
    }
    for name, lines in files.items():
        write_lines(folder / name, lines)
    return {name: len(lines) for name, lines in files.items()}
