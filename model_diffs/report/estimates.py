"""A number of the signature, and the same number on resamples of the texts that it comes from.

Two numbers whose resamples drew the same texts can be compared pair by pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs import intervals
from model_diffs.report.signature import Source, Value

Floats = NDArray[np.float64]
# With fewer, resamples repeat the same few values and their percentiles are no interval.
LEAST_UNITS = 10


@dataclass(frozen=True)
class Sample:
    """What was resampled, and how the number came out each time."""

    resampled: Floats
    """`[resamples]`."""
    identity: str
    """Of the texts or questions and their draws: numbers pair only where it is the same."""
    units: str
    """`texts` or `questions`."""


@dataclass(frozen=True)
class Estimate:
    """One number, with its interval and resamples where there are such."""

    value: float
    source: Source
    low: float | None = None
    high: float | None = None
    sample: Sample | None = None
    unpaired: str = ""
    """Why there is no sample, where there should be one."""

    def as_value(self) -> Value:
        """Without the resamples, for the page."""
        return Value(self.value, self.source, self.low, self.high)


class Difference(NamedTuple):
    """How two numbers differ: B − A, or B / A where distances are ratios."""

    value: float
    low: float
    high: float
    neutral: float
    """What it is where they do not differ: 0 or 1."""

    @property
    def direction(self) -> int:
        """1 or −1 where the interval lies above or below the neutral value, else 0."""
        return int(self.low > self.neutral) - int(self.high < self.neutral)


@lru_cache(maxsize=64)
def weights(units: int, seed: int) -> Floats:
    """How often each text is drawn in each resample, as in every step: `[resamples, units]`."""
    return intervals.document_weights(units, seed)


def with_interval(
    value: float, source: Source, resampled: Floats, identity: str, units: str
) -> Estimate:
    """An estimate whose interval comes from its resamples."""
    found = intervals.percentile_interval(value, resampled)
    sample = Sample(resampled, identity, units)
    return Estimate(value, source, float(found.low), float(found.high), sample)


def difference(b: Estimate, a: Estimate | float, logarithmic: bool) -> Difference | None:
    """B against A, another estimate or a number, on the same resamples.

    None where they cannot be paired: no resamples, or of other texts.
    """
    if b.sample is None:
        return None
    if isinstance(a, Estimate):
        if a.sample is None or a.sample.identity != b.sample.identity:
            return None
        value, resampled = a.value, a.sample.resampled
    else:
        value, resampled = a, np.full_like(b.sample.resampled, a)
    if logarithmic and not (value > 0 and (resampled > 0).all()):
        return None
    combine: Callable[..., Floats] = np.divide if logarithmic else np.subtract
    found = intervals.percentile_interval(
        combine(b.value, value), combine(b.sample.resampled, resampled)
    )
    return Difference(
        float(found.mean), float(found.low), float(found.high), 1.0 if logarithmic else 0.0
    )
