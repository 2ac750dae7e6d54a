"""Which texts a step sees: seeded, bucketed by length, the same for any number of processes."""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import Split, encode
from model_diffs.models.loading import pad_batch

# Batches per window within which texts are sorted by length: wide enough that little is padding,
# narrow enough that a window is still a random sample.
WINDOW = 16
T = TypeVar("T")


class SplitBatch(NamedTuple):
    """One process's padded texts of a split."""

    indices: tuple[int, ...]
    """Positions in the split: the key of reference values."""
    input_ids: Tensor
    """`[texts, positions]`"""
    attention_mask: Tensor
    """`[texts, positions]`, 0 at padding"""
    step_texts: int
    """Texts of the split in the whole optimiser step: all processes and accumulated batches."""
    step_tokens: int


class Pair(NamedTuple):
    """What a loss is called on: a SplitBatch of each split that it reads, None of the others."""

    forget: Any = None
    retain: Any = None
    text: Any = None


class Step(NamedTuple):
    """Indices of the texts of one optimiser step, all processes together."""

    forget: list[int]
    retain: list[int]


class Tokens(NamedTuple):
    """A tokenised split, divided into what is trained on and what is only measured."""

    train: list[list[int]]
    held_out: list[list[int]]
    facts: dict[str, Any]
    """Counts for the records."""


def tokenise(tokenizer: Any, split: Split, max_length: int, share: float, seed: int) -> Tokens:
    """Encode a split and hold out a seeded `share` of it.

    Texts of a single token predict nothing: left out and counted. Raises BadInput where nothing is
    left to train on.
    """
    encoded = encode(tokenizer, split.texts, max_length)
    usable = [ids for ids in encoded if len(ids) > 1]
    held = max(1, round(share * len(usable))) if share else 0
    if len(usable) - held < 1:
        raise BadInput(
            f"{split.path}: {len(usable)} usable texts leave none to train on beside {held} "
            "held out; give more texts or --eval-split 0"
        )
    chosen = set(random.Random(f"{seed} {split.name} held out").sample(range(len(usable)), held))
    train = [ids for i, ids in enumerate(usable) if i not in chosen]
    facts = {
        **split.identity(),
        "trained_on": len(train),
        "held_out": held,
        "left_out_single_token": len(encoded) - len(usable),
        "at_max_length": sum(len(ids) >= max_length for ids in encoded),
        "tokens": sum(map(len, train)),
    }
    return Tokens(train, [usable[i] for i in sorted(chosen)], facts)


def _cycled(size: int, count: int, rng: random.Random) -> list[int]:
    """`count` indices below `size`: whole permutations, one after the other."""
    order: list[int] = []
    while len(order) < count:
        order.extend(rng.sample(range(size), size))
    return order[:count]


def _bucketed(order: list[Any], length: Any, batch: int, rng: random.Random) -> list[list[Any]]:
    """Cut `order` into batches, sorted by length within windows of it, batches shuffled."""
    batches: list[list[Any]] = []
    for start in range(0, len(order), batch * WINDOW):
        window = sorted(order[start : start + batch * WINDOW], key=length)
        cut = [window[i : i + batch] for i in range(0, len(window), batch)]
        rng.shuffle(cut)
        batches.extend(cut)
    return batches


def plan_epoch(
    forget: Sequence[int],
    retain: Sequence[int],
    batch: int,
    seed: int,
    epoch: int,
    paired: bool = False,
) -> list[Step]:
    """The steps of one epoch over texts of these lengths (`retain` empty: one split alone).

    Every text of the longer split is seen; the shorter is cycled, and the last step is filled up by
    cycling too. `batch` counts texts per split and step over all processes. `paired` keeps the k-th
    of both (modulo their sizes) together.
    """
    rng = random.Random(f"{seed} epoch {epoch}")
    longest = max(len(forget), len(retain))
    count = -(-longest // batch) * batch
    if paired:
        pairs = [(k % len(forget), k % len(retain)) for k in _cycled(longest, count, rng)]
        cut = _bucketed(pairs, lambda p: forget[p[0]] + retain[p[1]], batch, rng)
        return [Step([f for f, _ in pairs], [r for _, r in pairs]) for pairs in cut]
    cuts = [
        _bucketed(_cycled(len(lengths), count, rng), lengths.__getitem__, batch, rng)
        for lengths in (forget, retain)
        if lengths
    ]
    return [Step(indices[0], indices[1] if retain else []) for indices in zip(*cuts, strict=True)]


def share_of(indices: list[int], batch: int, rank: int, processes: int) -> list[list[int]]:
    """The batches of `batch` texts that process `rank` makes of a step, in order."""
    cut = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    return cut[rank::processes]


def cut(items: list[T], count: int) -> list[list[T]]:
    """`count` parts of nearly equal size, in order."""
    places = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(places)]


def parts_needed(batches: Sequence[list[int]], most: int) -> int:
    """Into how many parts batches of texts of these lengths are cut, all alike, so that no part has
    more than `most` tokens with its padding (0: any number); at most into single texts."""
    fewest = min(map(len, batches))
    for count in range(1, fewest if most else 1):
        parts = [part for lengths in batches for part in cut(lengths, count)]
        if all(len(part) * max(part) <= most for part in parts):
            return count
    return fewest if most else 1


def passes_of(
    step: Mapping[str, list[int]],
    texts: Mapping[str, Sequence[Sequence[int]]],
    batch: int,
    most: int,
    rank: int,
    processes: int,
) -> list[dict[str, list[int]]]:
    """The texts of each pass that process `rank` makes in a step, by split: its batches, cut where
    one of any process would have more than `most` tokens, so that all make equally many passes."""
    batches = [
        [len(texts[split][i]) for i in one]
        for split, indices in step.items()
        for one in share_of(indices, batch, 0, 1)
    ]
    count = parts_needed(batches, most)
    own = {
        split: [
            part for one in share_of(indices, batch, rank, processes) for part in cut(one, count)
        ]
        for split, indices in step.items()
    }
    return [dict(zip(own, parts, strict=True)) for parts in zip(*own.values(), strict=True)]


def split_batch(
    texts: Sequence[Sequence[int]],
    indices: Sequence[int],
    pad_id: int,
    device: torch.device,
    step_indices: Sequence[int] | None = None,
) -> SplitBatch:
    """Pad the texts `indices` of a step of `step_indices` (by default these texts alone)."""
    padded = pad_batch([texts[i] for i in indices], pad_id, device)
    whole = [len(texts[i]) for i in (indices if step_indices is None else step_indices)]
    return SplitBatch(tuple(indices), *padded, len(whole), sum(whole))
