"""Whose contexts are the latents that changed most: of which data set, and how often by chance?

A causal model's state at a position depends on the tokens up to it and on nothing else. So a
context is the beginning of a text, and one with which texts of several data sets begin belongs to
none of them.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from model_diffs.dictionaries.diffing import Comparison
from model_diffs.dictionaries.diffing_sums import Contexts
from model_diffs.dictionaries.itda_reading import Reading

SHARED = -1


class Share(NamedTuple):
    """The top latents in one direction, by the data set of the context where each is highest."""

    latents: int
    """How many there are, at most as many as asked for; shared contexts are passed over."""
    shared: int
    """How many were passed over on the way."""
    share: dict[str, float]
    """Of the latents, per data set; empty where there is no latent."""
    chance: dict[str, float]
    """The same share of all latents with a context of one data set."""
    p_value: dict[str, float]
    """Chance of as many or more where latents are drawn at random (hypergeometric)."""


class Shares(NamedTuple):
    """Both directions: contexts of the base for what fell, of the changed model for what rose."""

    fell: Share
    rose: Share


def shares(found: Comparison, reading: Reading, top: int) -> Shares | None:
    """Whose the `top` latents are that fell and rose most; None for a single data set."""
    if len(reading.splits) < 2:
        return None
    known = _sources_by_beginning(reading)
    difference = found.changes.difference
    by_fall = found.order[::-1]
    fell, rose = by_fall[difference[by_fall] < 0], found.order[difference[found.order] > 0]
    return Shares(
        _share(fell, _owners(found.base.totals.top, reading, known), reading.names, top),
        _share(rose, _owners(found.changed.totals.top, reading, known), reading.names, top),
    )


def _sources_by_beginning(reading: Reading) -> dict[int, int]:
    """Data set of every beginning of a text, or SHARED, under the hash of its tokens."""
    known: dict[int, int] = {}
    for ids, source in zip(reading.tokens.ids, reading.sources.tolist(), strict=True):
        key = 0
        for token in ids:
            key = hash((key, token))
            if known.setdefault(key, source) != source:
                known[key] = SHARED
    return known


def _owners(top: Contexts, reading: Reading, known: dict[int, int]) -> np.ndarray:
    """`[m]` data set of each latent's highest context, SHARED, or −2 where it has none."""
    owners = np.full(top.documents.shape[1], -2)
    places = zip(top.documents[0].tolist(), top.positions[0].tolist(), strict=True)
    for latent, (row, position) in enumerate(places):
        if row >= 0 and position >= 0:
            key = 0
            for token in reading.tokens.ids[row][: position + 1]:
                key = hash((key, token))
            owners[latent] = known[key]
    return owners


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
