"""Facts asked in the words of the forget set in place of the question's.

A method may forget how facts are told and keep what is asked, or the other way round. A forget line
that names entity, relation and value of a question becomes a question itself: its choices in place
of the value.
"""

from collections.abc import Sequence

from model_diffs.brittleness.attack_free.pair import Declaration, Pair, accuracy, margin
from model_diffs.data.questions import Question

MEASURES = (
    Declaration("statement_accuracy", "Hazard accuracy in the words of the forget set."),
    Declaration("statement_margin", "Margin of the right statement, nats."),
)


def asked(lines: Sequence[str], questions: Sequence[Question]) -> list[Question]:
    """A question per line that ends in the value of a question whose entity and relation it names;
    without those that go on behind the value."""
    found = []
    for question in questions:
        value = question.choices[question.answer]
        for number, line in enumerate(lines):
            told = line.rstrip(".")
            named = question.entity in line and question.relation in line
            if named and told.endswith(f" {value}"):
                prompt = told.removesuffix(f" {value}")
                found.append(question._replace(id=f"{question.id}-{number}", prompt=prompt))
    return found


def measure(pair: Pair) -> dict[str, float]:
    """Mean over all statements of fold `heldout`; NaN where no line is one."""
    lines = pair.victim.sample()[0].split.texts
    heldout = [one for one in pair.hazard if one.fold == "heldout"]
    questions = asked(lines, heldout)
    given = pair.victim.ask(questions) if questions else []
    return {"statement_accuracy": accuracy(given), "statement_margin": margin(given)}
