"""What acts on training beside the steps of the optimiser: changes of weights that a method makes
itself, each registered here, and the search for the step at which to stop.

`trainer` is the `Trainer` that calls them.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from model_diffs.core.errors import BadInput

Where = Literal["above", "within", "below"]


class Intervention:
    """Nothing: the optimiser alone changes weights."""

    grows_with_steps = True
    """More steps remove more. False: the strength is set when training is over."""

    def __init__(self) -> None:
        self.position = 0
        """How far it went; taken back together with the weights."""

    def start(self, trainer: Any, reference: Any) -> None:
        """Before the first step."""

    def after_step(self, trainer: Any, number: int) -> None:
        """After step `number` of the optimiser."""

    def finish(self, trainer: Any) -> None:
        """After the last step."""


class Search:
    """All steps are trained."""

    standing: Where | None = None
    """Of the last look; None before the first and without a target."""

    def after_step(self, trainer: Any, number: int) -> int:
        """The step after which training goes on: `number`, an earlier one, or the last to stop."""
        return number

    def strength(self, trainer: Any, apply: Callable[[float], None], most: float) -> float:
        """The strength, at most `most`, that was applied."""
        apply(most)
        return most

    def record(self) -> dict[str, Any] | None:
        """For unlearning.json."""
        return None


Kind = TypeVar("Kind", bound=type[Intervention])
INTERVENTIONS: dict[str, type[Intervention]] = {}


def intervention(method: str) -> Callable[[Kind], Kind]:
    """Decorator: register what a method does beside training, under its name."""

    def register(kind: Kind) -> Kind:
        INTERVENTIONS[method] = kind
        return kind

    return register


def of_method(name: str, alone: bool) -> Intervention:
    """That of a method. `alone`: whole weights in one process, without an adapter; BadInput where
    the method changes weights itself and this is not so."""
    kind = INTERVENTIONS.get(name, Intervention)
    if kind is not Intervention and not alone:
        raise BadInput(
            f"--method {name} changes whole weights: run it in one process, without --lora-rank "
            "and --checkpoint-every"
        )
    return kind()
