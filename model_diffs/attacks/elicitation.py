"""Every eliciting attack at every strength on one model, and the strength that is picked.

The strength is chosen on fold `tune` among those that leave the model its general knowledge, and
read on fold `heldout`.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.attacks.registry import Attack, Strengths
from model_diffs.attacks.victim import NotApplicable, Opened, Victim
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.models import devices
from model_diffs.stats import intervals
from model_diffs.stats.intervals import Interval

Floats = NDArray[np.float64]
NONE = "none"
"""In place of an attack, and "-" of its strength: the model as it answers."""
HALF = 0.5
LEAST_GAP = 0.05
"""Below this gap to the base there is nothing that could be said to come back."""


class Tried(NamedTuple):
    """One model under one attack at one strength."""

    attack: str
    strength: str
    correct: dict[str, Floats]
    """By group, 1 for each question answered rightly."""
    accuracy: dict[str, Interval]
    """By group, with entities resampled."""
    undone: float | None
    """Share of ‖W − W_base‖² that a reversal undid."""


class Found(NamedTuple):
    """What was tried on one model."""

    tried: list[Tried]
    skipped: list[str]
    """Attack, strength and reason of what could not be tried."""
    seconds: dict[str, float]
    """Of each attack."""

    def of(self, attack: str) -> list[Tried]:
        """All strengths of one attack."""
        return [one for one in self.tried if one.attack == attack]

    @property
    def start(self) -> Tried:
        """The model as it answers."""
        return self.of(NONE)[0]


def measure(victim: Victim, attack: str, strength: str, opened: Opened) -> Tried:
    """What a model under attack answers to the questions of every group."""
    groups = victim.questions
    asked = [question for group in groups.values() for question in group]
    right = iter(float(one.correct) for one in opened.ask(asked))
    correct, accuracy = {}, {}
    for group, questions in groups.items():
        correct[group] = np.fromiter(itertools.islice(right, len(questions)), np.float64)
        entities = [question.entity for question in questions]
        accuracy[group] = intervals.entity_interval(correct[group], entities, victim.seed)
    return Tried(attack, strength, correct, accuracy, opened.undone)


def _tries(
    victim: Victim, attack: Attack, strengths: Strengths, skipped: list[str]
) -> Iterator[Tried]:
    victim.forget_kept()
    try:
        every = victim.strengths = attack.strengths(victim, strengths)
    except NotApplicable as reason:
        skipped.append(f"{attack.name}: {reason}")
        return
    for strength in every:
        try:
            with attack.attacked(victim, strength) as opened:
                yield measure(victim, attack.name, strength, opened)
        # The model answers without an attack, so that it is the attack that makes it fail.
        except (NotApplicable, BadInput) as reason:
            skipped.append(f"{attack.name} {strength}: {reason}")


def attack_all(victim: Victim, attacks: Sequence[Attack], strengths: Strengths) -> Found:
    """The model as it answers, then under each attack at each strength.

    Processes share the attacks and all get all.
    """
    start = measure(victim, NONE, "-", Opened(victim.ask))
    own: list[Found] = []
    for attack in progress(devices.share(attacks), "attacks", unit="attack"):
        started, skipped = time.perf_counter(), list[str]()
        tried = [*_tries(victim, attack, strengths, skipped)]
        seconds = round(time.perf_counter() - started, 3)
        own.append(Found(tried, skipped, {attack.name: seconds}))
    victim.forget_kept()
    found = Found([start], [], {})
    for one in devices.gather_over_processes(own):
        found.tried.extend(one.tried)
        found.skipped.extend(one.skipped)
        found.seconds.update(one.seconds)
    return found


# ── the strength that is picked ───────────────────────────────────────────────────────────────────


def kept(tried: Tried, floor: float) -> bool:
    """Whether the model still knows general facts, where that was asked."""
    general = tried.accuracy.get("general")
    return general is None or bool(general.mean > floor)


def tune(tried: Tried) -> float:
    """Accuracy on fold `tune`."""
    return float(tried.accuracy["tune"].mean)


def pick(tried: Sequence[Tried], floor: float) -> Tried | None:
    """The strength of one attack that is read on held-out questions; None: nothing was tested.

    Among those that leave general accuracy above `floor`: the highest accuracy on `tune`, then the
    higher general accuracy, then the milder strength.
    """

    def order(one: Tried) -> tuple[float, float]:
        general = one.accuracy.get("general")
        return tune(one), float(general.mean) if general else 0.0

    return max((one for one in tried if kept(one, floor)), key=order, default=None)


def restored(tried: Tried, start: Tried, whole: Tried) -> float | None:
    """Share of the gap on `tune` between the model and the base that a reversal closes.

    `whole`: the reversal of everything, which is the base. None without a gap.
    """
    gap = tune(whole) - tune(start)
    return None if gap < LEAST_GAP else (tune(tried) - tune(start)) / gap


def smallest(tried: Sequence[Tried], start: Tried) -> Tried | None:
    """The reversal with the smallest share of ‖W − W_base‖² that restores half of the gap."""
    whole = next((one for one in reversed(tried) if one.undone == 1), None)
    if whole is None:
        return None
    half = [one for one in tried if (restored(one, start, whole) or 0) >= HALF]
    return min(half, key=lambda one: one.undone or 0, default=None)
