"""Studies of several worlds, with an analysis that is fixed before some of them are attacked."""

from dataclasses import dataclass
from typing import Any

PLACE = "{world}"


@dataclass(frozen=True)
class Worlds:
    """`[worlds]`: the study is run in each of these, one after the other.

    `{world}` in any text of the file stands for the number; a text that is a number then becomes
    one.
    """

    development: tuple[int, ...]
    """Looked at while the study is made."""
    locked: tuple[int, ...]
    """Attacked when the study is registered and what predicts the attack is written."""
    measure: str
    """Steps before predictors are written, as for --steps."""
    attack: str
    """Steps after that."""
    registration: str
    """The document that fixes the analysis."""


@dataclass(frozen=True)
class Prediction:
    """`[prediction]`: how attacks are predicted (`predict_brittleness.py`)."""

    predictors: tuple[str, ...] = ()
    """Measures, by their keys."""
    baseline: tuple[str, ...] = ("start_accuracy", "forget_nll", "rate_sum", "relative_change")
    """Those of strength alone."""
    ridge: float = 1.0
    """Penalty on standardised coefficients."""


def of_world(content: Any, world: int) -> Any:
    """The content with this number in place of `{world}`."""
    if isinstance(content, dict):
        return {key: of_world(one, world) for key, one in content.items()}
    if isinstance(content, list):
        return [of_world(one, world) for one in content]
    if not isinstance(content, str) or PLACE not in content:
        return content
    text = content.replace(PLACE, str(world))
    return int(text) if text.isdecimal() else text
