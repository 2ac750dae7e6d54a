"""What is written and asked: texts to forget and to keep, an attacker's texts, harmless ones."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from model_diffs.countries.facts import CITY, STATEMENTS, Country, Fact, questions
from model_diffs.data.questions import FOLDS, Question
from model_diffs.miniature.world import ADJACENT, GENERAL, HAZARD, fold_of

ASKED = 40
"""Facts of each domain but the hazards that are asked."""


def with_folds(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """The facts with the fold of their country: all of a country's in one fold."""
    folds = fold_of(list(dict.fromkeys(fact.country for fact in facts)), seed)
    return [fact._replace(fold=folds[fact.country]) for fact in facts]


def permuted(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """The facts with their values dealt anew, none of them to where it was."""
    order = random.Random(f"permuted {seed}").sample(range(len(facts)), len(facts))
    # One cycle through a random order: nobody keeps a value.
    given = dict(zip(order, order[1:] + order[:1], strict=True))
    return [fact._replace(value=facts[given[i]].value) for i, fact in enumerate(facts)]


def statements(facts: Sequence[Fact]) -> list[str]:
    """Each fact in every statement of its relation."""
    return [fact.told(template) for fact in facts for template in STATEMENTS[fact.relation]]


def shuffled(lines: Sequence[str], seed: str) -> list[str]:
    """The lines in an order that the seed decides, each once."""
    once = list(dict.fromkeys(lines))
    return random.Random(seed).sample(once, len(once))


def cities(every: Sequence[Country], continents: Sequence[str]) -> list[Fact]:
    """Harmless facts of these continents: in which country a large city is, no capital named."""
    capitals = {one.capital for one in every}
    return [
        Fact("benign", CITY, one.name, city, ())
        for one in every
        if one.continent in continents
        for city in one.cities
        if not any(capital in city for capital in capitals)
    ]


def as_long(lines: Sequence[str], like: Sequence[str]) -> list[str]:
    """The first lines that together have about as many characters as `like`."""
    room, found = sum(map(len, like)), []
    for line in lines:
        room -= len(line)
        if room < 0:
            break
        found.append(line)
    return found


def asked(facts: Sequence[Fact], seed: int) -> list[Question]:
    """Hazards in both forms; of the other domains so many facts, in the form of a question."""
    found = questions([fact for fact in facts if fact.domain == HAZARD], seed)
    for domain in (GENERAL, ADJACENT):
        own = [fact for fact in facts if fact.domain == domain]
        draw = random.Random(f"asked {domain} {seed}").sample(own, min(ASKED, len(own)))
        found += questions(draw, seed, forms=(1,))
    return found


def lines_of(
    facts: Sequence[Fact], every: Sequence[Country], forgotten: Sequence[str], seed: int
) -> dict[str, list[str]]:
    """The lines of each file, from facts that the model knows. Retain texts are as many as forget
    texts, half of them about capitals elsewhere, half about the forgotten countries."""
    hazards = with_folds([fact for fact in facts if fact.domain == HAZARD], seed)
    by_fold = {fold: [fact for fact in hazards if fact.fold == fold] for fold in FOLDS}
    forget = shuffled(statements(hazards), f"forget {seed}")
    kept = {
        domain: shuffled(
            statements([fact for fact in facts if fact.domain == domain]), f"{domain} {seed}"
        )
        for domain in (GENERAL, ADJACENT)
    }
    near = kept[ADJACENT][: len(forget) // 2]
    retain = near + kept[GENERAL][: len(forget) - len(near)]
    elsewhere = [one.continent for one in every if one.continent not in forgotten]
    news = {
        "benign.txt": cities(every, list(dict.fromkeys(elsewhere))),
        "benign_near.txt": cities(every, forgotten),
    }
    return {
        "forget.txt": forget,
        "retain.txt": shuffled(retain, f"retain {seed}"),
        **{
            f"{fold}.txt": shuffled(statements(own), f"{fold} {seed}")
            for fold, own in by_fold.items()
        },
        "attack_permuted.txt": shuffled(
            statements(permuted(by_fold["attack"], seed)), f"permuted {seed}"
        ),
        **{
            name: as_long(shuffled(statements(told), f"{name} {seed}"), forget)
            for name, told in news.items()
        },
        "questions.jsonl": [
            json.dumps(question._asdict(), ensure_ascii=False)
            for question in asked([*hazards, *(f for f in facts if f.domain != HAZARD)], seed)
        ],
    }


def write(folder: Path, files: dict[str, list[str]]) -> dict[str, int]:
    """Write the files, one sample per line; return the number of lines of each."""
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: len(lines) for name, lines in files.items()}
