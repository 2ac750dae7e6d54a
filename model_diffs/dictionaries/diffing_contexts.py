"""Whose are the latents that changed most: of which data set, and how often by chance?

A latent is a data set's where nearly all its activity comes from there. Most of the latents that
change by much are in use everywhere, as all texts begin alike and share their words; these belong
to none of the data sets.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from model_diffs.dictionaries.diffing import Comparison
from model_diffs.dictionaries.diffing_sums import ModelTotals
from model_diffs.dictionaries.itda_reading import Reading

# A latent is a data set's from this share of its activity per token.
OWN = 0.9
SHARED, UNUSED = -1, -2


class Share(NamedTuple):
    """The top latents in one direction, by the data set that each belongs to."""

    latents: int
    """How many there are, at most as many as asked for; shared ones are passed over."""
    shared: int
    """How many were passed over on the way."""
    share: dict[str, float]
    """Of the latents, per data set; empty where there is no latent."""
    chance: dict[str, float]
    """The same share of all latents that belong to one data set."""
    p_value: dict[str, float]
    """Chance of as many or more where latents are drawn at random (hypergeometric)."""


class Shares(NamedTuple):
    """By activity in the base for what fell, in the changed model for what rose."""

    fell: Share
    rose: Share


def shares(found: Comparison, reading: Reading, top: int) -> Shares | None:
    """Whose the `top` latents are that fell and rose most; None for a single data set."""
    if len(reading.splits) < 2:
        return None
    difference = found.changes.difference
    by_fall = found.order[::-1]
    fell, rose = by_fall[difference[by_fall] < 0], found.order[difference[found.order] > 0]
    return Shares(
        _share(fell, owners(found.base.totals), reading.names, top),
        _share(rose, owners(found.changed.totals), reading.names, top),
    )


def owners(totals: ModelTotals) -> np.ndarray:
    """`[m]` data set of each latent, SHARED, or UNUSED where the model has no use for it.

    Activity is Σ over documents of |Σ coefficients|, per token of the data set, so that a large
    data set does not own more for its size.
    """
    activity = totals.activity.numpy()
    per_token = activity / np.maximum(totals.source_tokens.numpy(), 1)[:, None]
    total = per_token.sum(0)
    most = per_token.argmax(0)
    own = per_token.max(0) >= OWN * total
    return np.where(total == 0, UNUSED, np.where(own, most, SHARED))


def _share(latents: np.ndarray, owners: np.ndarray, names: list[str], top: int) -> Share:
    """`latents` in order of rank."""
    own = np.flatnonzero(owners[latents] >= 0)[:top]
    chosen = owners[latents[own]]
    passed = latents[: own[-1]] if len(own) else latents
    everywhere = owners[owners >= 0]
    share, chance, p = {}, {}, {}
    for number, name in enumerate(names):
        if not len(chosen):
            break
        count, total = int((chosen == number).sum()), int((everywhere == number).sum())
        share[name], chance[name] = count / len(chosen), total / len(everywhere)
        drawn = stats.hypergeom(len(everywhere), total, len(chosen))
        p[name] = float(drawn.sf(count - 1))
    return Share(len(chosen), int((owners[passed] == SHARED).sum()), share, chance, p)
