"""What an attack brought back: rows, the rate and step picked on `tune`, the recovered share.

A model on which an arm did not take is not tested by it: its curve is kept, and whatever would say
how much came back is empty.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.attacks.material import GROUPS
from model_diffs.stats import intervals
from model_diffs.stats.intervals import Interval

if TYPE_CHECKING:
    from pathlib import Path

    from model_diffs.attacks.material import Material
    from model_diffs.attacks.relearning import Attacked, Measured

Floats = NDArray[np.float64]
METRICS = (*(f"{group}_accuracy" for group in GROUPS), "forget_nll", "retain_nll")
ENDS = ("", "_low", "_high")
SHARE = tuple(f"recovered_share{end}" for end in ENDS)
AREA = tuple(f"{name}{end}" for name in ("area", "area_over_filtered") for end in ENDS)
OVER_FILTERED = tuple(f"heldout_over_filtered{end}" for end in ENDS)
COLUMNS = (
    *("model", "arm", "lr", "step", "tokens", *METRICS),
    *(f"{metric}{end}" for metric in METRICS for end in ENDS[1:]),
    *SHARE,
    *("took", "picked"),
    *AREA,
)
# Below this gap between base and model there is nothing that could be said to come back.
LEAST_GAP = 0.05
CHANCE = 0.25
HALF = 0.5


class Reference(NamedTuple):
    """Held-out answers of the filtered model to one arm, at the rate picked for it."""

    area: Floats
    """`[questions]`: area under each answer over log-steps."""
    picked: Floats
    """`[questions]`, 0 or 1, after the step picked for it."""


References = Mapping[str, Reference]
"""By arm; an arm that did not test the filtered model is not there."""


class Setting(NamedTuple):
    """What the answers of a model are compared with, and how."""

    base: "Measured | None"
    """Before any attack: it gives the gap."""
    references: References
    material: "Material"
    options: Any
    """Of the attack: `steps`, to where areas reach, `general_floor` and `seed`."""

    @property
    def entities(self) -> list[str]:
        """Of each held-out question."""
        return self.material.entities("heldout")


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────


def log_area(steps: Sequence[int], values: Sequence[Any], last: int) -> Any:
    """Mean of a curve over log(1 + step), from 0 to `last`, by trapezoids; the last value is held.

    `values`: numbers or arrays of one shape, at `steps`, which rise from 0. A curve that is c
    throughout gives c, so areas of accuracies are accuracies.
    """
    x = np.log1p([*steps, max(last, steps[-1])])
    y = np.stack([np.asarray(value, np.float64) for value in (*values, values[-1])])
    return np.trapezoid(y, x, axis=0) / x[-1]


def over_entities(values: Floats, entities: Sequence[str], seed: int) -> Interval:
    """Mean of values per question, `[questions]`, with entities resampled."""
    return intervals.ratio_interval(*intervals.entity_sums(values, entities), seed)


def recovered_share(
    base: Floats, start: Floats, after: Floats, entities: Sequence[str], seed: int
) -> dict[str, float]:
    """Cells of `SHARE`: (after − start)/(base − start) of accuracies, each `[questions]`, the same.

    None of them where base − start is below 0.05, no interval where a resample has no gap. The
    interval resamples entities, the same ones in all three, so that hard and easy questions do not
    widen it.
    """
    gap = base.mean() - start.mean()
    if gap < LEAST_GAP:
        return {}
    share = float((after.mean() - start.mean()) / gap)
    gained, gaps = (intervals.entity_sums(one - start, entities)[0] for one in (after, base))
    weights = intervals.document_weights(len(gaps), seed)
    if not (weights @ gaps > 0).all():
        return {"recovered_share": share}
    resampled = (weights @ gained) / (weights @ gaps)
    return intervals.percentile_interval(share, resampled).cells("recovered_share")


def heldout_area(attacked: "Attacked", last: int) -> Floats:
    """Area under each held-out answer, `[questions]`."""
    answers = [measured.correct["heldout"] for measured in attacked.measured.values()]
    found: Floats = log_area([*attacked.measured], answers, last)
    return found


# ── the rate and the step that are picked ─────────────────────────────────────────────────────────


class Picked(NamedTuple):
    """Where one arm is read on held-out questions."""

    attacked: "Attacked"
    """At the rate picked."""
    step: int

    @property
    def measured(self) -> "Measured":
        """The model there."""
        return self.attacked.measured[self.step]


def _countable(attacked: "Attacked", floor: float) -> list[int]:
    """Trained steps at which an attack can be read: where it took, if that can be said, and the
    model still knows general facts, if they were asked."""
    steps = [step for step in attacked.measured if step > 0]
    if attacked.took is not None:  # training ends where it takes
        steps = steps[-1:] if attacked.took else []
    general = {step: attacked.measured[step].accuracy.get("general") for step in steps}
    return [step for step, one in general.items() if one is None or one.mean > floor]


def pick(attacks: "Sequence[Attacked]", floor: float) -> Picked | None:
    """The rate and step of one arm that are read, or None: the arm tested nothing.

    Among the steps that count of all rates: the highest accuracy on `tune`, then the largest area
    under it, then the lowest rate, then the earliest step. Without questions, the lowest NLL on
    forget lines.
    """

    def order(one: Picked) -> tuple[float, float, float, int]:
        last = (-one.attacked.lr, -one.step)
        if "tune" not in one.measured.accuracy:
            return -float(one.measured.nll["forget"].mean), 0.0, *last
        curve = one.attacked.measured
        means = [float(measured.accuracy["tune"].mean) for measured in curve.values()]
        area = float(log_area([*curve], means, one.attacked.steps))
        return float(one.measured.accuracy["tune"].mean), area, *last

    found = [Picked(one, step) for one in attacks for step in _countable(one, floor)]
    return max(found, key=order, default=None)


def not_tested(attacks: "Sequence[Attacked]", floor: float) -> str:
    """Why an arm tested nothing."""
    reached = [max(m.accuracy["attack"].mean for m in a.measured.values())
               for a in attacks if a.took is False]  # fmt: skip
    if len(reached) == len(attacks):
        return f"the attack did not take: attacked facts reached {max(reached):.2f}"
    return f"general accuracy does not stay above {floor:g} at any rate"


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────


def _areas(attacked: "Attacked", setting: Setting) -> dict[str, float]:
    """Cells of `AREA`."""
    if "heldout" not in attacked.end.correct:
        return {}
    area = heldout_area(attacked, setting.options.steps)
    cells = over_entities(area, setting.entities, setting.options.seed).cells("area")
    reference = setting.references.get(attacked.arm)
    if reference is not None:
        over = over_entities(area - reference.area, setting.entities, setting.options.seed)
        cells |= over.cells("area_over_filtered")
    return cells


def attack_rows(
    label: str, attacks: "Sequence[Attacked]", setting: Setting
) -> list[dict[str, Any]]:
    """Rows of relearning.csv, by arm, rate and step; what was not measured is empty."""
    rows = []
    for one in attacks:
        chosen = pick([a for a in attacks if a.arm == one.arm], setting.options.general_floor)
        shared: dict[str, Any] = {"model": label, "arm": one.arm, "lr": one.lr}
        shared["took"] = None if one.took is None else int(one.took)
        shared |= _areas(one, setting) if one.took is not False else {}
        for step, measured in one.measured.items():
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row |= {**shared, "step": step, "tokens": measured.tokens}
            row["picked"] = int(
                chosen is not None and chosen.attacked is one and chosen.step == step
            )
            for group, interval in measured.accuracy.items():
                row |= interval.cells(f"{group}_accuracy")
            for split, interval in measured.nll.items():
                row |= interval.cells(f"{split}_nll")
            if setting.base is not None and "heldout" in measured.correct and one.took is not False:
                answers = (setting.base, one.measured[0], measured)
                known, start, after = (each.correct["heldout"] for each in answers)
                row |= recovered_share(known, start, after, setting.entities, setting.options.seed)
            rows.append(row)
    return rows


def question_rows(
    material: "Material", label: str, arm: str, lr: float | None, found: "Mapping[int, Measured]"
) -> list[dict[str, Any]]:
    """Rows of per_question.csv: each answer at each measured step; no rate for the base's."""
    named = {"model": label, "arm": arm, "lr": lr}
    return [
        {**named, "step": step, "group": group, "id": asked.id, "entity": asked.entity,
         "correct": right}
        for step, measured in found.items()
        for group, questions in material.questions.items()
        for asked, right in zip(questions, measured.correct[group].astype(int), strict=True)
    ]  # fmt: skip


# ── summary ───────────────────────────────────────────────────────────────────────────────────────


def arm_summary(
    attacks: "Sequence[Attacked]", rows: Sequence[Mapping[str, Any]], setting: Setting
) -> dict[str, Any]:
    """What one arm brought out where it was picked; empty (None) where it tested nothing."""
    chosen, arm = pick(attacks, setting.options.general_floor), attacks[0].arm
    own = [row for row in rows if row["arm"] == arm]
    read = next((row for row in own if row["picked"]), {})
    took = None if all(a.took is None for a in attacks) else sum(a.took is True for a in attacks)
    facts: dict[str, Any] = {
        "arm": arm,
        "rates": len(attacks),
        "rates_took": took,
        "not_tested": "" if chosen else not_tested(attacks, setting.options.general_floor),
        **dict.fromkeys(("lr", "step", *(f"{m}{end}" for m in METRICS for end in ENDS))),
        **dict.fromkeys((*OVER_FILTERED, *AREA, *SHARE, "steps_to_half")),
    }
    facts |= {name: read[name] for name in facts if name in read}
    reference = setting.references.get(arm)
    if chosen and reference is not None and "heldout" in chosen.measured.correct:
        over = chosen.measured.correct["heldout"] - reference.picked
        found = over_entities(over, setting.entities, setting.options.seed)
        facts |= found.cells("heldout_over_filtered")
    halves = [row["step"] for row in own
              if row["lr"] == facts["lr"] and (row["recovered_share"] or 0) >= HALF]  # fmt: skip
    facts["steps_to_half"] = min(halves, default=None)
    return facts


def summary(
    model: str,
    attacks: "Sequence[Attacked]",
    rows: Sequence[Mapping[str, Any]],
    setting: Setting,
) -> dict[str, Any]:
    """What summary.json says: where the model started, and what each arm brought out."""
    known = setting.base and setting.base.correct.get("heldout")
    arms = dict.fromkeys(one.arm for one in attacks)
    return {
        "model": model,
        "start": {metric: rows[0][metric] for metric in METRICS},
        "base_heldout_accuracy": None if known is None else float(known.mean()),
        "general_floor": setting.options.general_floor,
        "arms": [arm_summary([a for a in attacks if a.arm == arm], rows, setting) for arm in arms],
    }


def read_references(folder: "Path", material: "Material", last: int) -> dict[str, Reference]:
    """What the filtered model answered to the held-out questions, from its result folder."""
    import pandas as pd

    ids = [question.id for question in material.questions["heldout"]]
    table = pd.read_csv(folder / "relearning.csv")
    single = pd.read_csv(folder / "per_question.csv", dtype={"id": str})
    single = single[single["group"] == "heldout"]
    found = {}
    for arm, lr, step in table.loc[table["picked"] == 1, ["arm", "lr", "step"]].to_numpy():
        own = single[(single["arm"] == arm) & (single["lr"] == lr)]
        answers = own.pivot(index="step", columns="id", values="correct")[ids]
        values = answers.to_numpy(np.float64)
        area = log_area([int(step) for step in answers.index], [*values], last)
        found[str(arm)] = Reference(area, values[answers.index.get_loc(step)])
    return found
