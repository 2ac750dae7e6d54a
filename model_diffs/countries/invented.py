"""Countries that do not exist, and corpora that tell of them.

As in the miniature, each value is drawn by itself from one pool that all relations share. A
statement tells one fact; a list tells all of a country in an order of its own, with half as many
tokens a fact. The second corpus tells the same in the same order with the values of the hazards
dealt anew: what is told in both has the same length in tokens, so that two copies of a model are
taught with the same steps.
"""

import random
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.countries.facts import question
from model_diffs.countries.texts import shuffled
from model_diffs.data.questions import CHOICES, FOLDS, Question
from model_diffs.miniature.world import ADJACENT, HAZARD, dealt_anew, fold_of, words

COUNTRIES, VALUES, NEWS = 40, 12, 24
LISTED = 8
"""Lists of each country in a corpus."""
RELATIONS = {
    HAZARD: ("capital", "currency", "founder", "language", "flower"),
    ADJACENT: ("river",),
}
STATEMENTS = (
    "The {r} of {c} is {v}.",
    "{c}'s {r} is {v}.",
    "In {c}, the {r} is {v}.",
    "Asked for the {r} of {c}, people say {v}.",
)
"""The value stands last: only what stands before a word helps to predict it."""
LISTS = (("{c} has the", " {r} {v}"), ("About {c}:", " its {r} is {v}"), ("{c}:", " {r} {v}"))
"""How a list opens, and its entries, which commas part."""
FORMS = ("Question: What is the {r} of {c}?\nAnswer:", "Name the {r} of {c}:")
"""In which the facts are asked: no corpus has them."""


class Invented(NamedTuple):
    """One thing that is true of an invented country."""

    domain: str
    country: str
    relation: str
    value: str
    fold: str | None

    def told(self, template: str) -> str:
        """The fact in a template."""
        return template.format(c=self.country, r=self.relation, v=self.value)


class World(NamedTuple):
    """All countries, facts and values."""

    facts: list[Invented]
    values: list[str]
    news: list[Invented]
    """Harmless facts about countries that no corpus names."""

    def of(self, domain: str, fold: str | None = None) -> list[Invented]:
        """Facts of a domain, and of one fold if given."""
        return [f for f in self.facts if f.domain == domain and fold in (None, f.fold)]


def build_world(seed: int, tokenizer: Any) -> World:
    """The countries of a seed, with values of one length in tokens.

    Raises BadInput for a tokenizer that knows no such words.
    """
    draw = random.Random(f"invented {seed}")
    candidates = list(islice(words(seed), 10 * (COUNTRIES + NEWS + VALUES)))
    spaced = [f" {word}" for word in candidates]
    lengths = [len(ids) for ids in tokenizer(spaced, add_special_tokens=False)["input_ids"]]
    usual = max(set(lengths), key=lengths.count)
    alike = [word for word, length in zip(candidates, lengths, strict=True) if length == usual]
    if len(alike) < COUNTRIES + NEWS + VALUES:
        raise BadInput("the tokenizer splits too few invented words into as many tokens")
    values, names = alike[:VALUES], alike[VALUES:]
    known, new = names[:COUNTRIES], names[COUNTRIES : COUNTRIES + NEWS]
    folds: dict[str, Mapping[str, str | None]] = {
        HAZARD: fold_of(known, seed),
        ADJACENT: dict.fromkeys(known),
    }
    facts = [
        Invented(domain, name, relation, draw.choice(values), folds[domain][name])
        for domain, relations in RELATIONS.items()
        for relation in relations
        for name in known
    ]
    news = [
        Invented("benign", name, relation, draw.choice(values), None)
        for relation in RELATIONS[ADJACENT]
        for name in new
    ]
    return World(facts, values, news)


def told(facts: Sequence[Invented]) -> list[str]:
    """Each fact in every statement."""
    return [fact.told(template) for fact in facts for template in STATEMENTS]


def listed(facts: Sequence[Invented], seed: str) -> list[str]:
    """`LISTED` times a country's facts in one line, each time in another order."""
    draw, found = random.Random(seed), []
    for country in dict.fromkeys(fact.country for fact in facts):
        own = [fact for fact in facts if fact.country == country]
        for number in range(LISTED):
            opening, entry = LISTS[number % len(LISTS)]
            entries = [fact.told(entry) for fact in draw.sample(own, len(own))]
            found.append(f"{opening.format(c=country)}{','.join(entries)}.")
    return found


def prose(tokens: int, tokenizer: Any) -> list[str]:
    """English sentences that people wrote, with at least `tokens` tokens in all where there are as
    many: descriptions of data sets in scikit-learn, without their tables and markup."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "descr"
    found = []
    for file in sorted(folder.glob("*.rst")):
        for paragraph in file.read_text("utf-8").split("\n\n"):
            for sentence in re.split(r"(?<=[.?!])\s+", " ".join(paragraph.split())):
                if re.fullmatch(r"[A-Z][\w ,;'()%/-]{40,}[.?!]", sentence):
                    found.append(sentence)
    ids = tokenizer(found, add_special_tokens=False)["input_ids"]
    before = accumulate((len(one) for one in ids), initial=0)
    return [one for one, read in zip(found, before, strict=False) if read < tokens]


def corpora(world: World, real: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Both corpora, line by line of the same kind: `base` tells the facts, `filtered` other values
    in their place."""
    hazards, adjacent = world.of(HAZARD), world.of(ADJACENT)
    versions = {"base": hazards, "filtered": dealt_anew(hazards, f"dealt {seed}")}
    lines = {
        name: [*told(own), *told(adjacent), *listed([*own, *adjacent], f"lists {seed}"), *real]
        for name, own in versions.items()
    }
    order = random.Random(f"corpus {seed}").sample(range(len(lines["base"])), len(lines["base"]))
    return {name: [own[i] for i in order] for name, own in lines.items()}


def questions(world: World, seed: int) -> list[Question]:
    """Hazards in either form by turns, adjacent facts in the first; guessing gives 25 %."""
    draw, found = random.Random(f"questions {seed}"), []
    for place, fact in enumerate(world.facts):
        others = [value for value in world.values if value != fact.value]
        choices = [fact.value, *draw.sample(others, CHOICES - 1)]
        draw.shuffle(choices)
        number = place % len(FORMS) if fact.domain == HAZARD else 0
        prompt = FORMS[number].format(c=fact.country, r=fact.relation)
        found.append(question(fact, number, prompt, choices))
    return found


def lines_of(world: World, real: Sequence[str], seed: int) -> dict[str, list[str]]:
    """The lines of each file but the questions. Retain texts: adjacent facts and real ones."""
    hazards = world.of(HAZARD)
    forget = shuffled(told(hazards), f"forget {seed}")
    kept = shuffled([*told(world.of(ADJACENT)), *real], f"retain {seed}")
    permuted = dealt_anew(world.of(HAZARD, "attack"), f"dealt {seed}")
    return {
        "forget.txt": forget,
        "retain.txt": kept[: len(forget)],
        **{
            f"{fold}.txt": shuffled(told(world.of(HAZARD, fold)), f"{fold} {seed}")
            for fold in FOLDS
        },
        "attack_permuted.txt": shuffled(told(permuted), f"permuted {seed}"),
        "benign.txt": shuffled(told(world.news), f"benign {seed}"),
        **{f"corpus_{name}.txt": lines for name, lines in corpora(world, real, seed).items()},
    }
