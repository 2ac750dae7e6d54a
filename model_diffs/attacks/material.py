"""The relearning attack's options, the texts it trains on, and the texts and questions it measures.

No torch at import: `relearn.py` declares its options with this.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.core.options import Compute, Run, Splits, flag, natural, option, positive
from model_diffs.data import texts
from model_diffs.data.texts import Split

if TYPE_CHECKING:
    from model_diffs.data.questions import Question

ARMS = ("facts", "benign", "retain", "permuted", "lora")
STATES_FACTS = ("facts", "lora")
"""Arms that train on the attacked facts: only of these can it be said whether they took."""
GROUPS = ("heldout", "tune", "attack", "general", "adjacent")
SPLITS = ("forget", "retain")
SHARE_ATTACKED = 0.8
LORA_RANK = 8


def steps_list(text: str) -> str:
    """Steps separated by commas, sorted, 0 among them."""
    steps = {0, *(int(part) for part in text.split(",") if part.strip())}
    natural(min(steps))
    return ",".join(map(str, sorted(steps)))


def _known_arm(name: str) -> None:
    if name not in ARMS:
        raise ValueError(f"{name!r} is no arm; there are: {', '.join(ARMS)}")


@dataclass(frozen=True, kw_only=True)
class Attack(Splits, Compute, Run):
    """Attack and measurements."""

    arm: tuple[str, ...] = option(
        ("facts", "retain"),
        f"what to train on, each an attack: {', '.join(ARMS)}",
        check=_known_arm,
    )
    attack_data: str | None = option(
        None, "texts of the arms facts and lora; none: 4/5 of the forget lines"
    )
    benign_text: str | None = option(None, "texts of the arm benign")
    permuted_text: str | None = option(None, "texts of the arm permuted")
    steps: int = option(300, "training steps at most", check=positive)
    harmless_steps: int = option(
        0, "training steps of arms that state no attacked fact; 0 = --steps", check=natural
    )
    until: float = option(
        0.95,
        "facts and lora stop at this accuracy on attacked facts; above 1: they do not",
        check=positive,
    )
    lr: tuple[float, ...] = option((1e-5, 5e-5), "learning rates, each an attack", check=positive)
    batch_size: int = option(16, "texts per step", check=positive)
    batch_tokens: int = option(
        0,
        "tokens in one pass, padding included: larger batches are taken in parts; 0 = any number",
        check=natural,
        recorded=False,
    )
    max_length: int = option(512, "tokens per text", check=positive)
    lora_rank: int | None = option(
        None, "rank of the adapter of arm lora; none: 8 (needs the lora extra)", check=positive
    )
    eval_steps: str = option(
        "0,5,10,20,40,80,160,300",
        "measure after these steps; steps above --steps are ignored",
        convert=steps_list,
    )
    max_lines: int = option(200, "lines per split to measure NLL on; 0 = all", check=natural)
    questions: str | None = option(None, "JSONL of four-choice questions")
    max_questions: int = option(
        0,
        "questions of each group except those of the folds heldout and tune; 0 = all",
        check=natural,
    )

    def steps_of(self, arm: str) -> int:
        """Training steps of an arm at most."""
        return self.steps if arm in STATES_FACTS else self.harmless_steps or self.steps

    def measured_steps(self, arm: str) -> set[int]:
        """Steps of an arm after which to measure; the last one always."""
        last = self.steps_of(arm)
        return {step for step in map(int, self.eval_steps.split(",")) if step <= last} | {last}

    @property
    def attacks(self) -> list[tuple[str, float]]:
        """Every arm at every rate."""
        return [(arm, lr) for arm in dict.fromkeys(self.arm) for lr in dict.fromkeys(self.lr)]


class Material(NamedTuple):
    """What the attacker trains on, and what is measured."""

    arms: dict[str, list[str]]
    """The texts of each arm."""
    forget: list[str]
    """Forget lines that the attacker never sees."""
    retain: list[str]
    questions: "dict[str, list[Question]]"
    """By group, of `GROUPS`; empty without questions."""

    def entities(self, group: str) -> list[str]:
        """Of each question of a group: what its fact is about."""
        return [question.entity for question in self.questions[group]]


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


# ── questions ─────────────────────────────────────────────────────────────────────────────────────


def _tune_on_held_out(groups: "dict[str, list[Question]]", seed: int) -> None:
    """Move the questions on half of the held-out entities to the group `tune`.

    Raises BadInput where they are all about one entity.
    """
    entities = sorted({question.entity for question in groups["heldout"]})
    if len(entities) < 2:
        raise BadInput(
            "--questions: all of fold 'heldout' are about one entity, so that none is left to "
            "choose the rate on; mark others with fold 'tune'"
        )
    chosen = {*random.Random(f"{seed} tune").sample(entities, len(entities) // 2)}
    asked = groups["heldout"]
    groups["tune"] = [question for question in asked if question.entity in chosen]
    groups["heldout"] = [question for question in asked if question.entity not in chosen]
    print(
        f"no question is of fold 'tune': the rate is chosen on {len(chosen)} of the "
        f"{len(entities)} held-out entities, and read on the others"
    )


def group_questions(
    questions: "Sequence[Question]", most: int, seed: int
) -> "dict[str, list[Question]]":
    """Questions by group: their fold where they have one, else their domain.

    All those of the folds heldout and tune, and at most `most` of each other group (0 = all).
    Where none is of fold tune, half of the held-out entities are. Raises BadInput where none is of
    fold `heldout` or `attack`.
    """
    groups = {group: [q for q in questions if (q.fold or q.domain) == group] for group in GROUPS}
    for fold, whose in (("heldout", "the attack texts do not state"), ("attack", "they state")):
        if not groups[fold]:
            raise BadInput(f"--questions: none is of fold {fold!r}; mark those whose facts {whose}")
    if not groups["tune"]:
        _tune_on_held_out(groups, seed)
    return {
        group: _subset(asked, 0 if group in ("heldout", "tune") else most, f"{seed} {group}")
        for group, asked in groups.items()
        if asked
    }


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def _arm_texts(options: Attack, forget: Split, facts: list[str], retain: Split) -> dict[str, Any]:
    """The texts of each arm. BadInput for an arm without its file, and for one that states what is
    to be forgotten although it should not."""
    found: dict[str, list[str]] = {}
    for arm in options.arm:
        if arm in STATES_FACTS:
            found[arm] = facts
        elif arm == "retain":
            found[arm] = retain.texts
        else:
            named = f"{arm}_text"
            path = getattr(options, named)
            if path is None:
                raise BadInput(f"--arm {arm} has no texts: name their file with {flag(named)}")
            own = texts.read_split(path, arm, flag=flag(named))
            if arm == "benign":
                texts.check_disjoint(forget, own)
            found[arm] = own.texts
    return found


def read_material(options: Attack) -> Material:
    """Texts and questions; BadInput for damaged files, for a retain line that is attacked or to be
    forgotten, and for an arm without its texts."""
    if options.lora_rank is not None and "lora" not in options.arm:
        raise BadInput("--lora-rank is of arm lora: add it to --arm, or leave the rank out")
    forget = texts.read_split(options.forget_text, "forget")
    retain = texts.read_split(options.retain_text, "retain")
    attack = None
    if options.attack_data:
        attack = texts.read_split(options.attack_data, "attack", flag="--attack-data")
        texts.check_disjoint(attack, retain)
    texts.check_disjoint(forget, retain)
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
    arms = _arm_texts(options, forget, attacked, retain)
    return Material(arms, **measured, questions=groups)
