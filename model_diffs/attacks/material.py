"""The relearning attack's options, the texts it trains on, and the texts and questions it measures.

No torch at import: `relearn.py` declares its options with this.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.core.options import Compute, Run, Splits, natural, option, positive
from model_diffs.data import texts
from model_diffs.data.texts import Split

if TYPE_CHECKING:
    from model_diffs.data.questions import Question

GROUPS = ("heldout", "attack", "general", "adjacent")
SPLITS = ("forget", "retain")
SHARE_ATTACKED = 0.8


def steps_list(text: str) -> str:
    """Steps separated by commas, sorted, 0 among them."""
    steps = {0, *(int(part) for part in text.split(",") if part.strip())}
    natural(min(steps))
    return ",".join(map(str, sorted(steps)))


@dataclass(frozen=True, kw_only=True)
class Attack(Splits, Compute, Run):
    """Attack and measurements."""

    attack_data: str | None = option(None, "texts to train on; none: 4/5 of the forget lines")
    steps: int = option(60, "training steps", check=positive)
    lr: tuple[float, ...] = option((1e-5, 5e-5), "learning rates, each an attack", check=positive)
    batch_size: int = option(16, "texts per step", check=positive)
    max_length: int = option(512, "tokens per text", check=positive)
    lora_rank: int = option(
        0, "train an adapter of this rank (needs the lora extra); 0 = all weights", check=natural
    )
    eval_steps: str = option(
        "0,5,10,20,40,60",
        "measure after these steps; steps above --steps are ignored",
        convert=steps_list,
    )
    max_lines: int = option(200, "lines per split to measure NLL on; 0 = all", check=natural)
    questions: str | None = option(None, "JSONL of four-choice questions")
    max_questions: int = option(
        0, "questions of each group except the held-out ones; 0 = all", check=natural
    )

    @property
    def measured_steps(self) -> set[int]:
        """Steps after which to measure; the last one always."""
        steps = {int(step) for step in self.eval_steps.split(",")}
        return {step for step in steps if step <= self.steps} | {self.steps}


class Material(NamedTuple):
    """What the attacker trains on, and what is measured."""

    attack: list[str]
    forget: list[str]
    """Forget lines that the attacker never sees."""
    retain: list[str]
    questions: "dict[str, list[Question]]"
    """By group, of `GROUPS`; empty without questions."""


def divide(forget: Split, attack: Split | None, seed: int) -> tuple[list[str], list[str]]:
    """The lines that are attacked and the forget lines that are measured.

    Without `attack`, a seeded 80 % of the forget lines is attacked. With it, the forget lines that
    it does not hold are measured. Raises BadInput where nothing is left to measure.
    """
    if attack is None:
        lines = list(dict.fromkeys(forget.texts))
        chosen = random.Random(f"{seed} attacked").sample(lines, round(SHARE_ATTACKED * len(lines)))
    else:
        lines, chosen = forget.texts, attack.texts
    attacked = set(chosen)
    kept = [line for line in lines if line not in attacked]
    if not chosen or not kept:
        raise BadInput(
            f"{forget.path}: no line of it is left to measure beside those that are attacked; give "
            "--forget-text with lines that the attacker does not have"
        )
    return chosen, kept


def _subset(items: Sequence[Any], most: int, seed: str) -> list[Any]:
    """A seeded choice of at most `most` (0 = all), in their order."""
    if not most or len(items) <= most:
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), most))]


def group_questions(
    questions: "Sequence[Question]", most: int, seed: int
) -> "dict[str, list[Question]]":
    """Questions by group: their fold where they have one, else their domain.

    All held-out ones, which are the result, and at most `most` of each other group (0 = all).
    Raises BadInput where none is of fold `heldout`.
    """
    groups = {group: [q for q in questions if (q.fold or q.domain) == group] for group in GROUPS}
    if not groups["heldout"]:
        raise BadInput(
            "--questions: none is of fold 'heldout'; mark those whose facts the attack texts do "
            "not state, or leave --questions out"
        )
    return {
        group: _subset(asked, 0 if group == "heldout" else most, f"{seed} {group}")
        for group, asked in groups.items()
        if asked
    }


def read_material(options: Attack) -> Material:
    """Texts and questions; BadInput for damaged files and for a retain line that is attacked."""
    forget = texts.read_split(options.forget_text, "forget")
    retain = texts.read_split(options.retain_text, "retain")
    attack = None
    if options.attack_data:
        attack = texts.read_split(options.attack_data, "attack", flag="--attack-data")
    texts.check_disjoint(attack or forget, retain)
    attacked, kept = divide(forget, attack, options.seed)
    measured = {
        split: _subset(lines, options.max_lines, f"{options.seed} {split} lines")
        for split, lines in (("forget", kept), ("retain", retain.texts))
    }
    groups = {}
    if options.questions:
        from model_diffs.data.questions import load_questions

        questions = load_questions(options.questions)
        groups = group_questions(questions, options.max_questions, options.seed)
    return Material(attacked, **measured, questions=groups)
