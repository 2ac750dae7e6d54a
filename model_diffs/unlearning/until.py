"""Training to a target: the strength at which accuracy on fold `tune` is what was asked for.

Methods of equal strength are comparable: what an attack brings back is then not a matter of how
far a method went. One run serves: accuracy is looked at along the way, and where it fell through
the target between two looks, training goes back to the first and looks after each step.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from model_diffs.core.errors import BadInput
from model_diffs.data.questions import Question
from model_diffs.evaluation import scoring
from model_diffs.unlearning.checkpointing import take_up, trained_state
from model_diffs.unlearning.interventions import Search

if TYPE_CHECKING:
    from model_diffs.unlearning.trainer import Trainer

TOLERANCE = 0.05
GENERAL = 0.95
"""General accuracy that must be left."""
LOOKS = 40
"""Looks at a run, evenly spaced."""
HALVINGS = 12


class Look(NamedTuple):
    """The model at one step, or one strength."""

    at: float
    tune: float
    general: float | None
    """Asked for where `tune` is within the target."""


@dataclass
class Until(Search):
    """Training stops where accuracy on `tune` is within the target and the rest is kept."""

    domain: str
    target: float
    ask: Callable[[Sequence[Question]], float]
    """Accuracy of the model as it is."""
    tune: Sequence[Question]
    general: Sequence[Question]
    looks: list[Look] = field(default_factory=list)
    reached: bool = False
    _kept: dict[str, Any] = field(default_factory=dict)
    _closely_until: int = 0

    def _look(self, at: float) -> Look:
        tune = self.ask(self.tune)
        low, high = self.target - TOLERANCE - 1e-9, self.target + TOLERANCE + 1e-9
        self.standing = "above" if tune > high else "below" if tune < low else "within"
        general = self.ask(self.general) if self.standing == "within" else None
        self.reached = general is not None and general >= GENERAL
        self.looks.append(Look(at, tune, general))
        return self.looks[-1]

    def after_step(self, trainer: "Trainer", number: int) -> int:
        """Look where it is time, stop where the target is reached, go back where it was passed."""
        last, every = len(trainer.steps), max(1, len(trainer.steps) // LOOKS)
        due = number % every == 0 or number <= self._closely_until or number == last
        if not trainer.intervention.grows_with_steps or not due:
            return number
        self._look(number)
        if self.reached:
            trainer.say(f"target reached after step {number}: {self.looks[-1]}")
            return last
        if self.standing == "above":
            self._kept = self._state(trainer, number)
        elif self.standing == "below" and self._kept and number - self._kept["number"] > 1:
            self._closely_until = number
            return self._back(trainer)
        return number

    def _state(self, trainer: "Trainer", number: int) -> dict[str, Any]:
        return {
            "number": number,
            "training": copy.deepcopy(trained_state(trainer.network, trainer.stateful)),
            "position": trainer.intervention.position,
        }

    def _back(self, trainer: "Trainer") -> int:
        """Take up the kept state again; it is not gone back to a second time."""
        kept, self._kept = self._kept, {}
        take_up(kept["training"], trainer.network, trainer.stateful)
        trainer.intervention.position = kept["position"]
        del trainer.steps_log[kept["number"] :]
        number: int = kept["number"]
        return number

    def strength(self, trainer: "Trainer", apply: Callable[[float], None], most: float) -> float:
        """By bisection: accuracy falls as the strength grows."""
        low, high, chosen = 0.0, most, most
        for _ in range(HALVINGS):
            apply(chosen)
            self._look(chosen)
            if self.reached or (self.standing == "above" and chosen == most):
                break
            low, high = (chosen, high) if self.standing == "above" else (low, chosen)
            chosen = (low + high) / 2
        return self.looks[-1].at

    def record(self) -> dict[str, Any]:
        """Whether the target was reached, and every look."""
        return {
            "domain": self.domain,
            "target": self.target,
            "tolerance": TOLERANCE,
            "general_floor": GENERAL,
            "reached": self.reached,
            "looks": [look._asdict() for look in self.looks],
        }


def search_of(
    until: str | None, questions: Sequence[Question], model: Any, tokenizer: Any
) -> Search:
    """The search that --until asks for. BadInput where no question of its domain is of fold `tune`,
    or none is general."""
    if until is None:
        return Search()
    domain, _, target = until.partition("=")
    tune = [one for one in questions if one.domain == domain and one.fold == "tune"]
    general = [one for one in questions if one.domain == "general"]
    for found, what in ((tune, f"of domain {domain!r} and fold 'tune'"), (general, "general")):
        if not found:
            raise BadInput(f"--until {until}: no question of --questions is {what}")

    def ask(asked: Sequence[Question]) -> float:
        given = scoring.score(model, tokenizer, asked)
        return sum(one.correct for one in given) / len(given)

    return Until(domain, float(target), ask, tune, general)
