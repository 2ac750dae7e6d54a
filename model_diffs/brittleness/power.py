"""What the registered rule would find if the truth were so and so: by simulation, beforehand.

Targets and predictions are drawn from a Gaussian model: within a world a model's target is a family
effect plus noise, and the prediction and that of strength alone correlate with it as assumed.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from model_diffs.brittleness.analysis import draws_of, mean_rho, spearman


class Assumed(NamedTuple):
    """A truth."""

    rho: float
    """Correlation of prediction and target within a world."""
    baseline: float
    """The same of strength alone."""
    family: float = 0.5
    """Share of the prediction's errors that a family repeats in every world."""


def simulate(
    assumed: Assumed, worlds: int, families: int, studies: int, resamples: int, seed: int
) -> dict[str, float]:
    """Share of simulated studies in which Δρ's lower end is above 0, and in which the registered
    rule (that, and ρ ≥ 0.5) holds."""
    generator = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([range(worlds), range(families)], names=["world", "model"])
    rows = index.to_frame(index=False)
    place = rows["world"].to_numpy()
    draws = draws_of(rows, resamples, seed)
    above = confirmed = 0
    for _ in range(studies):
        y = _noise(generator, worlds, families, assumed.family)
        sides = [
            r * y + np.sqrt(1 - r**2) * _noise(generator, worlds, families, assumed.family)
            for r in (assumed.rho, assumed.baseline)
        ]
        rho = mean_rho(sides[0], y, place)
        gains = [
            np.mean([spearman(sides[0][own], y[own]) - spearman(sides[1][own], y[own])
                     for own in draw])
            for draw in draws if draw
        ]  # fmt: skip
        positive = np.percentile(gains, 2.5) > 0
        above += bool(positive)
        confirmed += bool(positive and rho >= 0.5)
    return {
        **assumed._asdict(),
        "gain_above_zero": above / studies,
        "confirmed": confirmed / studies,
    }


def _noise(generator: np.random.Generator, worlds: int, families: int, share: float) -> np.ndarray:
    """Standard normal, `share` of its variance common to a family's models in all worlds."""
    common = np.tile(generator.standard_normal(families), worlds)
    own = generator.standard_normal(worlds * families)
    found: np.ndarray = np.sqrt(share) * common + np.sqrt(1 - share) * own
    return found
