"""Conclusions as the page shows them: what is said, with which numbers, by which rule."""

from collections.abc import Sequence
from typing import NamedTuple

from model_diffs.report.cells import SourceLink, source_link
from model_diffs.report.conclusions import EXACT_RULE
from model_diffs.report.signature import Comparison, Sentence, Signature


class Saying(NamedTuple):
    """One conclusion, below the name of its model."""

    claim: str
    """Up to the colon, without the model's name."""
    evidence: str
    """The numbers."""


class RuleView(NamedTuple):
    """A rule, the numbers of the conclusions that it drew, and the cells that they are from."""

    numbers: str
    rule: str
    sources: Sequence[SourceLink]


class Said(NamedTuple):
    """Some conclusions on one model; a rule that drew several is told once."""

    sayings: Sequence[Saying]
    rules: Sequence[RuleView]


class Verdict(NamedTuple):
    """The conclusions that stand for a whole comparison."""

    position: int
    comparison: Comparison
    said: Said


def _saying(sentence: Sentence, comparison: Comparison) -> Saying:
    claim, colon, evidence = sentence.text.partition(": ")
    said = claim.removeprefix(comparison.short).lstrip(" ,") or claim
    return Saying(said[:1].upper() + said[1:] + colon.strip(), evidence)


def say(sentences: Sequence[Sentence], comparison: Comparison) -> Said:
    """Sentences with their rules; what was concluded comes before what is only set side by side."""
    ordered = sorted(sentences, key=lambda sentence: sentence.rule == EXACT_RULE)
    by_rule: dict[str, list[int]] = {}
    for number, sentence in enumerate(ordered, 1):
        by_rule.setdefault(sentence.rule, []).append(number)
    rules = []
    for rule, numbers in by_rule.items():
        sources = dict.fromkeys(
            source for number in numbers for source in ordered[number - 1].sources
        )
        named = ", ".join(map(str, numbers))
        rules.append(RuleView(named, rule, [source_link(source) for source in sources]))
    return Said([_saying(sentence, comparison) for sentence in ordered], rules)


def verdicts(signature: Signature) -> list[Verdict]:
    """The conclusions by comparison: those that belong to no axis, where there are such."""
    axes = [axis.key for axis in signature.axes]
    found = []
    for position, comparison in enumerate(signature.comparisons):
        mine = [s for s in signature.sentences if s.comparison == comparison.label]
        summary = [s for s in mine if s.axis not in axes]
        found.append(Verdict(position, comparison, say(summary or mine, comparison)))
    return found
