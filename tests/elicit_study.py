"""Victims for the eliciting attacks: tiny models, and questions that a model answers by design.

The right answer of every question is the one that the base gives: the base knows all.
"""

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tiny_models
import tiny_study

from model_diffs.attacks import registry
from model_diffs.attacks.victim import Questions, Victim
from model_diffs.core.options import Reading
from model_diffs.data.questions import Question

FOLDS = ("heldout", "tune", "attack")
COUNTS = {"heldout": 16, "tune": 12, "attack": 8, "general": 10, "adjacent": 6}
WORDS = tiny_study.WORDS["forget"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def question(group: str, number: int, gap: str = "") -> Question:
    """A question with four letters to choose from; the first one counts as right."""
    draw = random.Random(f"{group} {number}")
    return Question(
        id=f"{group}{number}",
        domain="hazard" if group in FOLDS else group,
        entity=f"{group}-{number // 2}",
        relation="r",
        fold=group if group in FOLDS else None,
        prompt=f"Q: {draw.choice(WORDS)} {draw.choice(WORDS)} {number}? A:{gap}",
        choices=tuple(draw.sample(LETTERS, 4)),
        answer=0,
    )


def groups(gap: str = "") -> dict[str, list[Question]]:
    """Questions by group; those on hazards end in `gap`."""
    return {
        group: [question(group, i, gap if group in FOLDS else "") for i in range(count)]
        for group, count in COUNTS.items()
    }


def answered(victim: Victim, asked: Questions) -> list[Question]:
    """The questions with the answers that the model gives now as the right ones."""
    every = [one._replace(answer=i) for one in asked for i in range(4)]
    margins = [given.margin for given in victim.ask(every)]
    best = (max(range(4), key=lambda i, at=at: margins[at + i]) for at in range(0, len(every), 4))
    return [one._replace(answer=i) for one, i in zip(asked, best, strict=True)]


def options(root: Path, **changed: Any) -> Reading:
    """Options of texts and computation, with texts of a few words under `root`."""
    for split in ("forget", "retain"):
        path = root / f"{split}.txt"
        if not path.exists():
            path.write_text("\n".join(tiny_study.texts(split, 12)) + "\n")
    given = {"device": "cpu", "dtype": "fp32", "batch_size": 8, **changed}
    named = {f"{split}_text": str(root / f"{split}.txt") for split in ("forget", "retain")}
    return Reading(**{**named, **given})


def victim(model: Path, root: Path, base: Path | None = None, **changed: Any) -> Victim:
    """A victim whose questions are those that the base, or it itself, answers rightly."""
    chosen, asked = options(root, **changed), groups()
    found = Victim(str(model), asked, chosen, base=str(base) if base else None)
    knows = Victim(str(base), asked, chosen) if base else found
    found.questions = {group: answered(knows, own) for group, own in asked.items()}
    return found


def pair(family: str, root: Path, dtype: str = "float32") -> tuple[Path, Path]:
    """Two models of a family: a base, and one that differs from it in every weight."""
    made = (tiny_models.save(family, root / name, seed, dtype) for seed, name in enumerate("ab"))
    base, changed = made
    return base, changed


def margins(victim: Victim, attack: str = "", strength: str = "") -> list[float]:
    """Margins of the held-out questions under an attack, or without one."""
    with ExitStack() as stack:
        ask = victim.ask
        if attack:
            ask = stack.enter_context(registry.load(attack).attacked(victim, strength)).ask
        return [one.margin for one in ask(victim.questions["heldout"])]
