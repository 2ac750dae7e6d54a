"""What is measured on some texts only, estimated with a cheap number that is measured on all."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FEWEST = 4
"""Texts measured, for a line."""


def asked(total: int, count: int | None) -> int:
    """How many of `total` texts `count` stands for: 0 all of them, None a fifth, 12 to 64."""
    return min(total, max(12, min(64, total // 5)) if count is None else count or total)


def drawn(total: int, count: int | None, seed: int) -> list[int]:
    """As many of `total` places at random."""
    order = np.random.default_rng(seed).permutation(total)
    return sorted(order[: asked(total, count)].tolist())


def estimated(values: Floats, beside: Floats) -> Floats:
    """A number per text whose mean estimates that of `values` `[texts]`, NaN where not measured.

    `beside` is known of all texts. With N texts, n of them measured at random, the line ŷ through
    these, and their residuals e, text i has ŷᵢ + (N/n) √((n − 1)/(n − 3)) eᵢ, e = 0 where it was
    not measured: the mean is that of the regression estimator (Cochran 1977, section 7), and
    resampling texts gives its spread, that of ŷ over N texts and of e over n, the root correcting
    for the two numbers that the line was fitted with. With fewer than FEWEST, ŷ is their mean. The
    values themselves where all are measured, or only one.
    """
    measured = ~np.isnan(values)
    count, known = len(values), int(measured.sum())
    if known == count or known < 2:
        return values
    x, y = beside[measured], values[measured]
    slope, correction = 0.0, 1.0
    spread = ((x - x.mean()) ** 2).sum()
    if known >= FEWEST and spread > 0:
        slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
        correction = np.sqrt((known - 1) / (known - 3))
    line = y.mean() + slope * (beside - x.mean())
    residuals = np.where(measured, values - line, 0.0)
    return line + count / known * correction * residuals
