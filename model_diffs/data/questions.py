"""Four-choice questions: JSONL files, read and checked. Standard library only."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import json_lines, read_text

CHOICES = 4
FOLDS = ("tune", "attack", "heldout")
"""Settings are chosen on the first, an attacker trains on the second, the third is reported."""
_STRINGS = ("id", "domain", "entity", "relation", "prompt")


class Question(NamedTuple):
    """One line of a questions file."""

    id: str
    domain: str
    """Such as `general`, `hazard`, `adjacent`."""
    entity: str
    relation: str
    fold: str | None
    """One of FOLDS where the facts of a domain are divided, else None."""
    prompt: str
    choices: tuple[str, ...]
    answer: int
    """Index of the correct choice."""
    seen_form: bool = True
    """Whether a corpus told the fact in the words of the question."""

    def sentences(self) -> tuple[str, ...]:
        """The prompt completed by each choice, with a space between them."""
        gap = "" if self.prompt[-1].isspace() else " "
        return tuple(self.prompt + gap + choice for choice in self.choices)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _problem(fields: dict[str, Any]) -> str:
    """What is wrong with the fields of a question; empty where nothing is."""
    for name in _STRINGS:
        if not _is_text(fields.get(name)):
            return f"field {name!r} must be a text that is not empty"
    if fields.get("fold") not in (None, "", *FOLDS):
        return f"field 'fold' must be {', '.join(FOLDS)} or null"
    if not isinstance(fields.get("seen_form", True), bool):
        return "field 'seen_form' must be true or false"
    # bool is an int in Python, but `true` is not an index.
    if type(fields.get("answer")) is not int or not 0 <= fields["answer"] < CHOICES:
        return f"field 'answer' must be an index from 0 to {CHOICES - 1}"
    choices = fields.get("choices")
    if not isinstance(choices, list) or len(choices) != CHOICES or not all(map(_is_text, choices)):
        return f"field 'choices' must be a list of {CHOICES} texts that are not empty"
    return "" if len(set(choices)) == CHOICES else "field 'choices' has a repeated choice"


def load_questions(path: str | Path) -> list[Question]:
    """Read a JSONL file of questions; empty lines are dropped.

    Raises BadInput, naming line and field, for a missing, empty or malformed file and for a
    repeated id.
    """
    path = Path(path)
    questions: dict[str, Question] = {}
    for place, fields in json_lines(path, read_text(path, "file of questions; check --questions")):
        if not isinstance(fields, dict):
            raise BadInput(f"{place}: not a JSON object; one object per line is expected")
        problem = _problem(fields)
        if not problem and fields["id"] in questions:
            problem = f"field 'id' {fields['id']!r} is used before"
        if problem:
            raise BadInput(f"{place}: {problem}")
        named = {name: fields[name] for name in (*_STRINGS, "answer")}
        questions[fields["id"]] = Question(
            **named,
            fold=fields.get("fold") or None,
            choices=tuple(fields["choices"]),
            seen_form=fields.get("seen_form", True),
        )
    if not questions:
        raise BadInput(f"{path}: no question in it; one JSON object per line is expected")
    return list(questions.values())


def mentioned(texts: Iterable[str], questions: Sequence[Question]) -> list[set[str]]:
    """The entities of the questions that each text names, as whole words; of two that overlap, the
    longer."""
    names = sorted({question.entity for question in questions}, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)")
    return [{*pattern.findall(text)} if names else set() for text in texts]
