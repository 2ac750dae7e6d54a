"""Two classes of documents, forget and retain: folds, resamples, out-of-fold accuracy and AUC.

Shared by separation (step 8) and probes (step 13). NumPy only: importing scikit-learn for the folds
would take longer than a small step.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import Split
from model_diffs.stats.intervals import document_weights

FOLDS = 5
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Estimate(NamedTuple):
    """A statistic on the documents, and on each of their resamples (first axis)."""

    value: Floats
    resampled: Floats


class Design(NamedTuple):
    """Documents of both classes, forget first; their folds; their resamples."""

    labels: NDArray[np.bool_]
    """`[documents]`, True for forget."""
    folds: NDArray[np.int64]
    """`[documents]` the fold in which each is tested."""
    forget: Floats
    """`[resamples, forget documents]` how often each is drawn, rows sum to their number."""
    retain: Floats
    """`[resamples, retain documents]`, drawn independently of forget."""


def _check_documents(name: str, documents: int, folds: int) -> None:
    if folds < 2:
        raise BadInput("--folds 1 leaves nothing to test on: at least 2 are needed")
    if documents < folds:
        raise BadInput(
            f"the {name} split has {documents} documents with tokens, {folds}-fold "
            f"cross-validation needs {folds}: give more texts, or raise --max-samples"
        )


def check_splits(splits: Sequence[Split], folds: int) -> None:
    """Raise BadInput where a split has too few texts for the folds, before any model is read."""
    for split in splits:
        _check_documents(split.name, len(split.texts), folds)


def groups(mentioned: Sequence[Collection[str]]) -> Indices:
    """The group of each document, by what it mentions: documents that share a thing are in one
    group, directly or through others, and one that mentions nothing is a group by itself."""
    found = np.arange(len(mentioned))
    first: dict[str, int] = {}
    for i, things in enumerate(mentioned):
        for thing in things:
            other = first.setdefault(thing, i)
            if found[i] != found[other]:
                found[found == max(found[i], found[other])] = min(found[i], found[other])
    return np.unique(found, return_inverse=True)[1]


def whole_groups(
    group: Indices, labels: NDArray[np.bool_], folds: int, seed: int
) -> Indices | None:
    """Folds `[documents]` that keep groups whole, with like numbers of both classes in each.

    The largest group is placed first, where the fold that is then fullest is emptiest; equal groups
    come in random order. None where a fold would lack a class.
    """
    sizes = np.stack([np.bincount(group, of_class) for of_class in (labels, ~labels)], 1)
    shares = sizes / sizes.sum(0)
    order = np.random.default_rng(seed).permutation(len(shares))
    order = order[np.argsort(-shares[order].max(1), kind="stable")]
    full, place = np.zeros((folds, 2)), np.empty(len(shares), dtype=np.int64)
    for one in order:
        after = full + shares[one]
        place[one] = np.lexsort((after.sum(1), after.max(1)))[0]
        full[place[one]] = after[place[one]]
    return place[group] if (full > 0).all() else None


def design(forget: int, retain: int, folds: int, seed: int, place: Indices | None = None) -> Design:
    """Stratified random folds and resamples for so many documents, equal for every model and layer.

    `place`: folds `[documents]` in place of random ones (see `whole_groups`).


    Both classes are resampled separately, so their sizes stay. A resample in which no fold has
    documents of both classes has no AUC and is left out, which only happens with a handful of
    documents. Raises BadInput where a class has fewer documents than there are folds.
    """
    labels = np.arange(forget + retain) < forget
    drawn = np.empty(len(labels), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for name, of_class in (("forget", labels), ("retain", ~labels)):
        documents = int(of_class.sum())
        _check_documents(name, documents, folds)
        drawn[generator.permutation(np.flatnonzero(of_class))] = np.arange(documents) % folds
    place = drawn if place is None else place
    # Two streams: with one seed and equal sizes both classes would get the same draws.
    draws = document_weights(forget, seed), document_weights(retain, seed + 1)
    members = np.eye(folds)[place]
    both = ((draws[0] @ members[labels]) * (draws[1] @ members[~labels])).sum(1) > 0
    return Design(labels, place, draws[0][both], draws[1][both])


def auc(scores: Floats, plan: Design) -> Estimate:
    """Area under the ROC curve of out-of-fold `scores` `[documents]`, higher for forget.

    The share of (forget, retain) pairs of one fold in the right order, ties half: scores of
    different folds come from different classifiers and are not compared. Intervals resample the
    scored documents; no classifier is fitted again.
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
