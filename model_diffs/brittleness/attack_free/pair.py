"""A changed model with its base, and what is read of both."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.attacks.victim import Victim
from model_diffs.data.questions import Question
from model_diffs.evaluation.scoring import Answer

Floats = NDArray[np.float64]
CHOSEN_ON, READ_ON = "tune", "heldout"


class Declaration(NamedTuple):
    """A number that a file computes."""

    key: str
    meaning: str
    reads_base: bool = False
    """It needs the base's weights or states."""


@dataclass
class Pair:
    """A changed model, loaded, and its base."""

    victim: Victim
    """The changed model; `victim.base` is the checkpoint of the base."""
    hazard: Sequence[Question]
    """Questions on what was removed, of all folds."""
    known: Sequence[Question]
    """Other questions."""
    pooled: dict[tuple[str, str], Floats]
    """By split and `base` or `changed`: mean state of each text, `[texts, states, hidden]`."""
    shared: dict[str, Any]
    """What is the same for all changed models of a base: kept from the first on."""
    seed: int
    _own: list[Answer] = field(default_factory=list)

    @property
    def own(self) -> list[Answer]:
        """The model's answers to `hazard`, as it is."""
        if not self._own:
            self._own.extend(self.victim.ask(self.hazard))
        return self._own


def accuracy(given: Sequence[Answer], fold: str | None = None) -> float:
    """Share of right answers, of one fold or of all. NaN without any."""
    right = [one.correct for one in given if fold in (None, one.fold)]
    return float(np.mean(right)) if right else float("nan")


def margin(given: Sequence[Answer], fold: str | None = None) -> float:
    """Mean log-probability of the right sentence less that of the likeliest wrong one, nats."""
    found = [one.margin for one in given if fold in (None, one.fold)]
    return float(np.mean(found)) if found else float("nan")
