"""Rows of what eliciting attacks brought out, beside the filtered model under the same attack."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.attacks import elicitation
from model_diffs.attacks.elicitation import NONE, Found, Tried
from model_diffs.attacks.registry import Attack
from model_diffs.stats import intervals

if TYPE_CHECKING:
    from model_diffs.data.questions import Question

Floats = NDArray[np.float64]
Groups = Mapping[str, "Sequence[Question]"]
CHANCE = 0.25
ENDS = ("", "_low", "_high")
SIDES = ("general", "adjacent")
OVER_FILTERED = tuple(f"over_filtered{end}" for end in ENDS)
COLUMNS = (
    *("model", "attack", "strength", "fold", "questions"),
    *(f"accuracy{end}" for end in ENDS),
    *(f"{side}_accuracy{end}" for side in SIDES for end in ENDS),
    *OVER_FILTERED,
    *("undone_share", "reads_base", "picked"),
)
WORST = "worst_case"
"""In place of an attack, in rows of per_question.csv of the worst case that was searched."""
References = Mapping[str, Floats]
"""By attack, the filtered model's held-out answers `[questions]` at the strength picked for it; an
attack that did not test it is not there."""


class Setting(NamedTuple):
    """What the answers of a model are compared with, and how."""

    groups: Groups
    attacks: Sequence[Attack]
    references: References
    floor: float
    """General accuracy above which a strength counts."""
    seed: int


def picks(found: Found, setting: Setting) -> dict[str, Tried | None]:
    """The strength picked of each attack that was tried, and the model as it answers."""
    chosen: dict[str, Tried | None] = {NONE: found.start}
    for attack in setting.attacks:
        tried = found.of(attack.name)
        if tried and attack.declaration.smallest:
            chosen[attack.name] = elicitation.smallest(tried, found.start)
        elif tried:
            chosen[attack.name] = elicitation.pick(tried, setting.floor)
    return chosen


def over_filtered(tried: Tried, setting: Setting) -> dict[str, Any]:
    """Cells of OVER_FILTERED: held-out accuracy minus the filtered model's, entities paired.

    None for the smallest reversals, which restore as much in every model.
    """
    reference = setting.references.get(tried.attack)
    smallest = [one.name for one in setting.attacks if one.declaration.smallest]
    if reference is None or tried.attack in smallest:
        return {}
    entities = [question.entity for question in setting.groups["heldout"]]
    sums = intervals.entity_sums(tried.correct["heldout"] - reference, entities)
    return intervals.ratio_interval(*sums, setting.seed).cells("over_filtered")


def rows(
    label: str, found: Found, picked: Mapping[str, Tried | None], setting: Setting
) -> list[dict[str, Any]]:
    """Rows of elicitation.csv: of each attack and strength one per fold or domain."""
    with_base = {one.name for one in setting.attacks if "base" in one.declaration.reads}
    table = []
    for one in found.tried:
        shared: dict[str, Any] = {"model": label, "attack": one.attack, "strength": one.strength}
        for side in SIDES:
            if side in one.accuracy:
                shared |= one.accuracy[side].cells(f"{side}_accuracy")
        shared["undone_share"] = one.undone
        shared["reads_base"] = int(one.attack in with_base)
        shared["picked"] = int(one is picked.get(one.attack))
        for fold, accuracy in one.accuracy.items():
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row |= {**shared, "fold": fold, "questions": len(one.correct[fold])}
            row |= accuracy.cells("accuracy")
            if fold == "heldout":
                row |= over_filtered(one, setting)
            table.append(row)
    return table


def question_rows(label: str, found: Found, groups: Groups) -> list[dict[str, Any]]:
    """Rows of per_question.csv: each answer under each attack at each strength."""
    return [
        {"model": label, "attack": one.attack, "strength": one.strength, "fold": fold,
         "id": asked.id, "entity": asked.entity, "correct": right}
        for one in found.tried
        for fold, questions in groups.items()
        for asked, right in zip(questions, one.correct[fold].astype(int), strict=True)
    ]  # fmt: skip


def read_references(folder: Path, groups: Groups) -> dict[str, Floats]:
    """The filtered model's held-out answers under each attack, from its result folder."""
    import pandas as pd

    ids = [question.id for question in groups["heldout"]]
    table = pd.read_csv(folder / "elicitation.csv")
    single = pd.read_csv(folder / "per_question.csv", dtype={"id": str})
    single = single[single["fold"] == "heldout"]
    own = table[(table["picked"] == 1) & (table["fold"] == "heldout")]
    found = {}
    for attack, strength in own[["attack", "strength"]].itertuples(index=False):
        chosen = single[(single["attack"] == attack) & (single["strength"] == strength)]
        found[str(attack)] = chosen.set_index("id")["correct"][ids].to_numpy(np.float64)
    worst = single[single["attack"] == WORST]
    if len(worst):
        found[WORST] = worst.set_index("id")["correct"][ids].to_numpy(np.float64)
    return found


# ── summary ───────────────────────────────────────────────────────────────────────────────────────


def _why(tried: Sequence[Tried], attack: Attack, skipped: Sequence[str], floor: float) -> str:
    """Why an attack tested nothing."""
    if not tried:
        whose = [one.partition(": ") for one in skipped]
        return next(reason for who, _, reason in whose if who.split()[0] == attack.name)
    if attack.declaration.smallest:
        return "no reversal restores half of the gap to the base, or there is no gap"
    return f"general accuracy does not stay above {floor:g} at any strength"


def _attack_summary(
    attack: Attack,
    found: Found,
    one: Tried | None,
    table: Sequence[Mapping[str, Any]],
    setting: Setting,
) -> dict[str, Any]:
    """What one attack brought out at the strength picked; empty (None) where it tested nothing."""
    tried, facts = found.of(attack.name), dict[str, Any]({"attack": attack.name})
    facts["strengths"] = len(tried)
    facts["not_tested"] = "" if one else _why(tried, attack, found.skipped, setting.floor)
    facts["strength"] = one and one.strength
    facts["tune_accuracy"] = one and elicitation.tune(one)
    chosen = one and (one.attack, one.strength, "heldout")
    held = next((r for r in table if (r["attack"], r["strength"], r["fold"]) == chosen), {})
    facts |= {f"heldout_accuracy{end}": held.get(f"accuracy{end}") for end in ENDS}
    more = ("general_accuracy", "adjacent_accuracy", *OVER_FILTERED, "undone_share")
    facts |= {name: held.get(name) for name in more}
    return {**facts, "reads_base": "base" in attack.declaration.reads}


def summary(
    label: str,
    found: Found,
    picked: Mapping[str, Tried | None],
    table: Sequence[Mapping[str, Any]],
    setting: Setting,
) -> dict[str, Any]:
    """What summary.json says: what each attack brought out at the strength picked for it."""
    start = next(row for row in table if row["attack"] == NONE and row["fold"] == "heldout")
    shown = (*(f"accuracy{end}" for end in ENDS), "general_accuracy", "adjacent_accuracy")
    return {
        "model": label,
        "general_floor": setting.floor,
        "start": {name: start[name] for name in (*shown, *OVER_FILTERED)},
        "attacks": [
            _attack_summary(one, found, picked.get(one.name), table, setting)
            for one in setting.attacks
        ],
        "skipped": found.skipped,
    }
