"""A number, the same number on resamples of the texts it comes from, and how two numbers differ.

Two numbers whose resamples drew the same texts or questions are compared resample by resample.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.core.tables import Absent, Source
from model_diffs.stats import intervals

Floats = NDArray[np.float64]
# With fewer units the resamples repeat the same few values: their percentiles are no interval.
LEAST_UNITS = 10
# Sums in another order differ by less than this.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Sample:
    """The number on each resample, and what was resampled."""

    resampled: Floats = field(compare=False)
    """`[resamples]`."""
    identity: str
    """Of the texts or questions and their draws: numbers pair only where it is equal."""
    units: str
    """`texts`, `questions` or `entities`."""


@dataclass(frozen=True)
class Estimate:
    """One number, with its 95 % interval and resamples where it has them."""

    value: float
    source: Source
    low: float | None = None
    high: float | None = None
    sample: Sample | None = None
    unpaired: str = ""
    """Why there is no sample although the measure should have one."""

    @property
    def ends(self) -> tuple[float, float]:
        """The interval, or the number twice."""
        if self.low is None or self.high is None:
            return self.value, self.value
        return self.low, self.high


class Difference(NamedTuple):
    """How two numbers differ: B − A, or B / A where distances are ratios."""

    value: float
    low: float
    high: float
    neutral: float
    """0 or 1: the value where they do not differ."""

    @property
    def direction(self) -> int:
        """1 or −1 where the interval lies above or below the neutral value, else 0."""
        low, high = self.low - self.neutral, self.high - self.neutral
        return int(low > ROUNDING) - int(high < -ROUNDING)


@lru_cache(maxsize=64)
def weights(units: int, seed: int) -> Floats:
    """How often each unit is drawn in each resample, as in every step: `[resamples, units]`.

    Raises Absent where there are fewer than LEAST_UNITS.
    """
    if units < LEAST_UNITS:
        raise Absent(f"{units} are too few for an interval: at least {LEAST_UNITS} are resampled")
    return intervals.document_weights(units, seed)


def resampled_sums(values: Floats, weight: Floats | None, seed: int) -> tuple[Floats, Floats]:
    """Σ weight·value and Σ weight over units, first as they are, then on each resample.

    Each `[1 + resamples]`; their ratio is the mean. None weights all units alike.
    """
    drawn = weights(len(values), seed)
    if weight is None:
        counts = np.full(len(drawn) + 1, float(len(values)))
        return np.append(values.sum(), drawn @ values), counts
    sums = weight * values
    return np.append(sums.sum(), drawn @ sums), np.append(weight.sum(), drawn @ weight)


def resampled(
    value: float, source: Source, units: str, draw: Callable[[], tuple[float, Floats, str]]
) -> Estimate:
    """An estimate with its interval, where `draw` has resamples for it.

    `draw` gives the number that the values per unit have, the number on each resample, and the
    identity of the sample; it may raise Absent. Without resamples, or where the values per unit
    give another number than the table, the estimate has no interval.
    """
    try:
        again, found, identity = draw()
    except Absent as absent:
        return Estimate(value, source, unpaired=absent.reason)
    if not np.isclose(again, value, rtol=1e-6, atol=1e-9):
        why = f"values of single {units} do not give the number of {source.path}"
        return Estimate(value, source, unpaired=f"failed, {why}: run the step with --force")
    if not np.isfinite(found).all():
        return Estimate(value, source, unpaired="undefined on some resamples")
    interval = intervals.percentile_interval(value, found)
    sample = Sample(found, identity, units)
    return Estimate(value, source, float(interval.low), float(interval.high), sample)


def difference(b: Estimate, a: Estimate | float, logarithmic: bool = False) -> Difference | None:
    """B against A, another estimate or a number, on the same resamples.

    None where they cannot be paired: no resamples, or resamples of other texts.
    """
    if b.sample is None:
        return None
    if isinstance(a, Estimate):
        if a.sample is None or a.sample.identity != b.sample.identity:
            return None
        value, other = a.value, a.sample
    else:
        value, other = a, Sample(np.full_like(b.sample.resampled, a), "", "")
    if logarithmic and not (value > 0 and (other.resampled > 0).all()):
        return None
    combine: Callable[..., Floats] = np.divide if logarithmic else np.subtract
    found = intervals.percentile_interval(
        combine(b.value, value), combine(b.sample.resampled, other.resampled)
    )
    low, high = float(found.low), float(found.high)
    return Difference(float(found.mean), low, high, 1.0 if logarithmic else 0.0)
