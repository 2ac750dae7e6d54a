"""Where a number stands between the base and the filtered model."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from model_diffs.report.signature import Comparison, Measure, Signature, Value


class Mark(NamedTuple):
    """A place along a row and the ends of its interval, 0 to 1 from the row's left to its right."""

    at: float
    low: float
    high: float


class Row(NamedTuple):
    """One measure as it is drawn."""

    measure: Measure
    between: bool
    """Placed between base and filtered model; else on a scale of its own."""
    scale: tuple[float, float]
    """The numbers at the ends of that scale."""
    alike: float | None
    """Where a ratio of one is on it."""
    base: Mark | None
    filtered: Mark | None
    marks: Sequence[Mark | None]
    """Of the comparisons that are shown, in their order."""


def squeeze(position: float) -> float:
    """0 stays 0 and 1 stays 1; what lies beyond comes ever closer to −1 and 2.

    Smooth and rising, so that a number ten times farther than the filtered model's still has a
    place of its own: position p > 1 is at 2 − 1/p, p < 0 at 1/(1 − p) − 1.
    """
    if position > 1:
        return 2 - 1 / position
    if position < 0:
        return 1 / (1 - position) - 1
    return position


def shown(signature: Signature) -> tuple[list[Comparison], Comparison | None]:
    """The comparisons that get marks, and the filtered one that they are placed by.

    A filtered model alone is a comparison like others.
    """
    filtered = next((c for c in signature.comparisons if c.filtered), None)
    if filtered is None or len(signature.comparisons) == 1:
        return list(signature.comparisons), None
    return [c for c in signature.comparisons if c.label != filtered.label], filtered


def base_value(signature: Signature, measure: Measure) -> Value | None:
    """The base's own value, or what a model identical to it has."""
    own = signature.base_values.get(measure.key)
    if own is not None or measure.unchanged is None:
        return own
    anything = next(v.source for (_, key), v in signature.values.items() if key == measure.key)
    return Value(measure.unchanged, anything)


def _ends(value: Value) -> tuple[float, float, float]:
    low = value.value if value.low is None else value.low
    high = value.value if value.high is None else value.high
    return value.value, low, high


def _tells_apart(base: Value, filtered: Value) -> bool:
    """Whether base and filtered model differ, so that there is a between."""
    _, low, high = _ends(filtered)
    return base.value < low or base.value > high


# What a scale of its own shows at least, so that a difference of nothing does not fill a row.
_LEAST = {
    "share": (0.0, 1.0),
    "accuracy": (0.0, 1.0),
    "change": (-0.1, 0.1),
    "rank": (1.0, 10.0),
    "steps": (1.0, 10.0),
}


def own_scale(measure: Measure, values: Sequence[Value]) -> tuple[float, float]:
    """First and last number of a row that is not placed between base and filtered model."""
    default = (0.5, 2.0) if measure.logarithmic else (0.0, 0.0)
    low, high = _LEAST.get(measure.unit, default)
    ends = [end for value in values for end in _ends(value)]
    return min(low, *ends), max(high, *ends)


def row_of(signature: Signature, measure: Measure) -> Row:
    """Place the numbers of one measure."""
    comparisons, reference = shown(signature)
    values = [signature.values.get((c.label, measure.key)) for c in comparisons]
    filtered = signature.values.get((reference.label, measure.key)) if reference else None
    base = base_value(signature, measure)
    present = [value for value in (*values, base, filtered) if value is not None]
    # Ends of an interval may be zero where the number itself is not.
    logarithmic = measure.logarithmic and all(min(_ends(value)) > 0 for value in present)
    alike: float | None

    def scaled(value: float) -> float:
        return math.log(value) if logarithmic else value

    if base is not None and filtered is not None and _tells_apart(base, filtered):
        zero, one = scaled(base.value), scaled(filtered.value)

        def place(value: float) -> float:
            return (squeeze((scaled(value) - zero) / (one - zero)) + 1) / 3

        between, scale, alike = True, (base.value, filtered.value), None
    else:
        between, scale = False, own_scale(measure, present)
        low, width = scaled(scale[0]), scaled(scale[1]) - scaled(scale[0])

        def place(value: float) -> float:
            return 0.5 if width == 0 else 0.02 + 0.96 * (scaled(value) - low) / width

        alike = place(1.0) if measure.unit == "ratio" and logarithmic else None

    def mark(value: Value | None) -> Mark | None:
        return None if value is None else Mark(*(place(end) for end in _ends(value)))

    marks = [mark(value) for value in values]
    return Row(measure, between, scale, alike, mark(base), mark(filtered), marks)
