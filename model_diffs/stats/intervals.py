"""Bootstrap intervals over documents.

The document is what was sampled; its tokens are not independent. So documents are resampled with
replacement, all their tokens with them, and the statistic is computed again on each resample
(Efron & Tibshirani 1993, percentile interval). Two sides of a comparison use the same resamples.
"""

from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval; scalars or arrays of one shape."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def cells(self, column: str) -> dict[str, float]:
        """Cells of a table, for scalars: `column`, `column_low`, `column_high`."""
        names = (column, f"{column}_low", f"{column}_high")
        return {name: float(value) for name, value in zip(names, self, strict=True)}


@lru_cache(maxsize=4)  # every column of a table draws the same documents
def document_weights(documents: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """How often each document is drawn in each resample: `[resamples, documents]`, rows sum to it.

    The same seed and number of documents give the same draws, which is what pairs intervals. The
    array is shared: not to be written to.
    """
    generator = np.random.default_rng(seed)
    draws = generator.integers(documents, size=(resamples, documents))
    rows = np.arange(resamples)[:, None] * documents
    counts = np.bincount((draws + rows).ravel(), minlength=resamples * documents)
    weights = counts.reshape(resamples, documents).astype(np.float64)
    weights.setflags(write=False)
    return weights


def percentile_interval(estimate: ArrayLike, resampled: ArrayLike) -> Interval:
    """Percentile interval from the statistic on each resample (first axis)."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.asarray(resampled), [tail, 100 - tail], axis=0)
    return Interval(np.asarray(estimate, dtype=np.float64), low, high)


def ratio_interval(sums: ArrayLike, counts: ArrayLike, seed: int) -> Interval:
    """Mean over tokens, Σ sums / Σ counts, with documents resampled.

    `sums`: `[documents, …]` per-document sums; `counts`: `[documents]` tokens of each. Means over
    tokens are ratios of two document totals, so both are drawn anew together.
    """
    sums = np.asarray(sums, dtype=np.float64)
    counts = np.asarray(counts, dtype=np.float64)
    if len(sums) != len(counts) or len(sums) == 0:
        raise ValueError(f"{len(sums)} sums for {len(counts)} documents")
    flat = sums.reshape(len(sums), -1)
    weights = document_weights(len(sums), seed)
    totals = weights @ counts
    if not (totals > 0).all():
        raise ValueError("a resample has no tokens: documents without tokens must be left out")
    resampled = ((weights @ flat) / totals[:, None]).reshape(-1, *sums.shape[1:])
    return percentile_interval(sums.sum(0) / counts.sum(), resampled)


def mean_interval(values: ArrayLike, seed: int) -> Interval:
    """Mean of per-document values `[documents, …]`, each document weighing the same."""
    values = np.asarray(values, dtype=np.float64)
    return ratio_interval(values, np.ones(len(values)), seed)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Ends of Wilson's score interval for a share (Wilson 1927), which 0 and 1 still have."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, spread = successes / trials, z**2 / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return float(middle - half), float(middle + half)


def entity_sums(values: ArrayLike, entities: Sequence[str]) -> tuple[Floats, Floats]:
    """Σ of values `[questions]`, and number of questions, of each entity, by name: `[entities]`."""
    _, place = np.unique(np.asarray(entities, dtype=str), return_inverse=True)
    sums = np.bincount(place, weights=np.asarray(values, dtype=np.float64))
    return sums.astype(np.float64), np.bincount(place).astype(np.float64)


def entity_interval(correct: ArrayLike, entities: Sequence[str], seed: int) -> Interval:
    """Share of correct answers, with entities resampled: facts of one entity are not independent.

    `correct`: `[questions]`, 0 or 1; `entities`: of each question. Where all answers are right, or
    all wrong, every resample is the same: Wilson's interval then, with entities as its trials.
    """
    values = np.asarray(correct, dtype=np.float64)
    if len(values) != len(entities):
        raise ValueError(f"{len(values)} answers for {len(entities)} entities")
    sums, counts = entity_sums(values, entities)
    share = values.mean()
    if share in (0.0, 1.0):
        low, high = wilson(int(share) * len(counts), len(counts))
        # The share lies in its own interval, also after rounding.
        return Interval(share, np.minimum(low, share), np.maximum(high, share))
    return ratio_interval(sums, counts, seed)
