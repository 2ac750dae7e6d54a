"""Two classes of documents, forget and retain: folds, resamples, and out-of-fold accuracy and AUC.

What separation (step 8) and probes (step 13) share. NumPy only: the folds are a few lines, and
importing scikit-learn for them takes longer than a small step does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import Split
from model_diffs.stats.intervals import document_weights

FOLDS = 5
Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A statistic on the documents, and on each of their resamples (first axis)."""

    value: Floats
    resampled: Floats


class Design(NamedTuple):
    """Documents of both classes, forget first; their folds; the draws that intervals come from."""

    labels: NDArray[np.bool_]
    """`[documents]`, True for forget."""
    folds: NDArray[np.int64]
    """`[documents]` the fold in which each is tested."""
    forget: Floats
    """`[resamples, forget documents]` how often each is drawn, rows sum to their number."""
    retain: Floats
    """`[resamples, retain documents]`, drawn independently of forget."""


def check_documents(counts: Sequence[tuple[str, int]], folds: int) -> None:
    """Raise BadInput where a split, `(name, documents)`, has too few documents for the folds."""
    if folds < 2:
        raise BadInput("--folds 1 leaves nothing to test on: at least 2 are needed")
    for name, documents in counts:
        if documents < folds:
            raise BadInput(
                f"the {name} split has {documents} documents with tokens, {folds}-fold "
                f"cross-validation needs {folds}: give more texts, or raise --max-samples"
            )


def check_splits(splits: Sequence[Split], folds: int) -> None:
    """`check_documents` before any model is read."""
    check_documents([(split.name, len(split.texts)) for split in splits], folds)


def stratified_folds(labels: NDArray[np.bool_], folds: int, seed: int) -> NDArray[np.int64]:
    """A fold for each document, drawn at random, each class spread evenly over them."""
    generator = np.random.default_rng(seed)
    result = np.empty(len(labels), dtype=np.int64)
    for label in (True, False):
        members = np.flatnonzero(labels == label)
        result[generator.permutation(members)] = np.arange(len(members)) % folds
    return result


def design(forget: int, retain: int, folds: int, seed: int) -> Design:
    """Folds and resamples for so many documents; the same for every model and layer.

    Both classes are resampled apart, so their sizes stay. A draw in which no fold has documents of
    both classes has no AUC and is left out: it happens with a handful of documents only.
    """
    check_documents([("forget", forget), ("retain", retain)], folds)
    labels = np.arange(forget + retain) < forget
    place = stratified_folds(labels, folds, seed)
    # Two streams: with one seed and equal sizes both classes would get the same draws.
    draws = document_weights(forget, seed), document_weights(retain, seed + 1)
    members = np.eye(folds)[place]
    both = ((draws[0] @ members[labels]) * (draws[1] @ members[~labels])).sum(1) > 0
    return Design(labels, place, draws[0][both], draws[1][both])


def auc(scores: Floats, plan: Design) -> Estimate:
    """Area under the ROC curve of out-of-fold `scores` `[documents]`, higher for forget.

    The share of (forget, retain) pairs of one fold in the right order, ties half: scores of
    different folds come from different classifiers and are not compared. Intervals resample the
    scored documents; nothing is fitted anew.
    """
    forget, retain = scores[plan.labels][:, None], scores[~plan.labels][None]
    pairs = plan.folds[plan.labels][:, None] == plan.folds[~plan.labels][None]
    right = np.where(pairs, (forget > retain) + 0.5 * (forget == retain), 0.0)
    counts = pairs.astype(np.float64)
    resampled = quadratic(plan.forget, right, plan.retain)
    resampled /= quadratic(plan.forget, counts, plan.retain)
    return Estimate(right.sum() / counts.sum(), resampled)


def mean(values: Floats, plan: Design) -> Estimate:
    """Mean over all documents of `values` `[documents]`, class sizes kept in every resample."""
    totals = plan.forget @ values[plan.labels] + plan.retain @ values[~plan.labels]
    return Estimate(values.mean(), totals / len(values))


def quadratic(left: Floats, matrix: Floats, right: Floats) -> Floats:
    """leftᵢᵀ · matrix · rightᵢ for every row i: `[rows]`."""
    return np.einsum("ri,ri->r", left @ matrix, right)
