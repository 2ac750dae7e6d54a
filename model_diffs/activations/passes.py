"""Models on their way through a split: which tokens count, and in which order models are read.

Models that fit together run side by side, batch by batch, so that Δh needs nothing stored. Where
they do not fit, the base's states go to a disk cache that is removed at the end, and the changed
models are read against it one after the other. Under several processes the batches are shared out.
"""

import gc
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model_diffs.activations.store import FOLDER
from model_diffs.activations.sums import DifferenceSums, ModelSums, Place, place_of
from model_diffs.core import folders, naming
from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data.texts import Split, encode, length_batches
from model_diffs.models import devices, loading
from model_diffs.models.anatomy import Anatomy, locate

StateOf = Callable[[int], Tensor]
"""Gives a hidden state of the base, `[n, hidden]` fp32, by its number."""


class Tokens(NamedTuple):
    """A split as token ids, and which of its tokens count."""

    ids: list[list[int]]
    starts: list[int]
    """First position that counts, per document; all later ones do."""
    documents: np.ndarray
    """Position in the split of each document that has a token that counts."""
    left_out: dict[str, int]

    @property
    def counts(self) -> np.ndarray:
        """Tokens that count, per document."""
        return np.array([len(i) - s for i, s in zip(self.ids, self.starts, strict=True)])


def tokenise(
    tokenizer: Any, texts: Sequence[str], max_length: int, keep_bos: bool, skip_first: int
) -> Tokens:
    """Token ids, without the documents that have no token that counts (their number is kept).

    Raises BadInput where no document is left.
    """
    encoded = encode(tokenizer, texts, max_length)
    bos = None if keep_bos else tokenizer.bos_token_id
    starts = [max(int(bos is not None and ids[0] == bos), skip_first) for ids in encoded]
    kept = [n for n, ids in enumerate(encoded) if len(ids) > starts[n]]
    if not kept:
        raise BadInput("no text has a token that counts: lower --skip-first or pass --keep-bos")
    left_out = {
        "documents": len(encoded) - len(kept),
        "tokens": sum(min(len(i), s) for i, s in zip(encoded, starts, strict=True)),
    }
    return Tokens([encoded[n] for n in kept], [starts[n] for n in kept], np.array(kept), left_out)


@dataclass
class Reader:
    """One loaded model."""

    name: str
    model: nn.Module

    def __post_init__(self) -> None:
        self.anatomy: Anatomy = locate(self.model)


class AtBatch(NamedTuple):
    """One batch of a split."""

    number: int
    batch: loading.Batch
    place: Place


class Store(Protocol):
    """Where a base's states wait for the changed models."""

    def keep(self, h: Tensor) -> Tensor:
        """A state on its way into the store, where the store wants it."""

    def write(self, key: str, states: list[Tensor]) -> None:
        """Keep the states of one batch."""

    def read(self, key: str) -> StateOf:
        """The states of one batch."""


@dataclass
class SplitPass:
    """One split on its way through the models, and the sums that it leaves."""

    split: Split
    tokens: Tokens
    batch_size: int
    pad_id: int
    device: torch.device
    own: dict[str, ModelSums] = field(default_factory=dict)
    changes: dict[tuple[str, str], DifferenceSums] = field(default_factory=dict)

    def concerns(self, name: str) -> bool:
        """Whether a model has anything to do with this split."""
        return name in self.own or any(name in pair for pair in self.changes)

    def is_base(self, name: str) -> bool:
        """Whether a change is measured against this model."""
        return any(pair[0] == name for pair in self.changes)

    def batches(self, description: str) -> Iterator[AtBatch]:
        """This process's share of the batches, longest first."""
        batches = length_batches([len(ids) for ids in self.tokens.ids], self.batch_size)
        count = devices.processes()[1]
        if count > len(batches):
            raise BadInput(
                f"{self.split.name}: {count} processes share {len(batches)} batches: "
                "lower --batch-size or --num_processes"
            )
        own = devices.share(list(enumerate(batches)))
        for number, rows in progress(own, f"{description} {self.split.name}", unit="batch"):
            ids = [self.tokens.ids[row] for row in rows]
            batch = loading.pad_batch(ids, self.pad_id, self.device)
            starts = [self.tokens.starts[row] for row in rows]
            yield AtBatch(number, batch, place_of(batch, starts, rows))

    def run(self, reader: Reader, at: AtBatch, store: Store) -> None:
        """Run one model over one batch: its own sums, its changes from its bases, its states."""
        sums = self.own.get(reader.name)
        key = f"{self.split.name}-{at.number}"
        against = {
            pair: store.read(f"{key}-{naming.model_label(pair[0])}")
            for pair in self.changes
            if pair[1] == reader.name
        }
        kept: list[Tensor] | None = [] if self.is_base(reader.name) else None

        def receive(state: int, hidden: Tensor) -> None:
            h = hidden[at.place.counted.to(hidden.device)].float()
            if sums is not None:
                sums.add(state, hidden, h, at.place)
            for pair, base_state in against.items():
                self.changes[pair].add(state, base_state(state), h, at.place)
            if kept is not None:
                kept.append(store.keep(h))

        loading.stream_states(reader.anatomy, at.batch, receive)
        if sums is not None:
            sums.check()
        if kept is not None:
            store.write(f"{key}-{naming.model_label(reader.name)}", kept)


# ── side by side ──────────────────────────────────────────────────────────────────────────────────


class _InMemory:
    """States of the batch at hand."""

    def __init__(self) -> None:
        self.held: dict[str, list[Tensor]] = {}

    def keep(self, h: Tensor) -> Tensor:
        return h

    def write(self, key: str, states: list[Tensor]) -> None:
        self.held[key] = states

    def read(self, key: str) -> StateOf:
        return self.held[key].__getitem__


Finished = Callable[[SplitPass, Sequence[str]], None]
"""Called when models have read a split, so that its sums can be saved and let go."""


def run_side_by_side(
    readers: Sequence[Reader], passes: Sequence[SplitPass], finished: Finished
) -> None:
    """All models over each batch, bases first; a base's states live as long as the batch."""
    for one in passes:
        for at in one.batches("activations"):
            store = _InMemory()
            for reader in readers:
                if one.concerns(reader.name):
                    one.run(reader, at, store)
        finished(one, [reader.name for reader in readers])


# ── one by one, against a disk cache ──────────────────────────────────────────────────────────────


class _OnDisk:
    """States of all batches, in files of a folder."""

    def __init__(self, folder: Path, half: bool) -> None:
        self.folder, self.dtype = folder, torch.float16 if half else torch.float32

    def check_space(self, values: int) -> None:
        """Raise BadInput where the disk has no room for so many values."""
        needed, free = values * self.dtype.itemsize, shutil.disk_usage(self.folder).free
        if needed > 0.95 * free:
            raise BadInput(
                f"the base's states need {needed / 1e9:.1f} GB in {self.folder.parent} and "
                f"{free / 1e9:.1f} GB are free: lower --max-samples or use --cache-fp16"
            )

    def keep(self, h: Tensor) -> Tensor:
        return h.to("cpu", self.dtype).contiguous()

    def write(self, key: str, states: list[Tensor]) -> None:
        named = {str(i): h for i, h in enumerate(states)}
        save_file(named, self.folder / f"{key}.safetensors")

    def read(self, key: str) -> StateOf:
        handle = safe_open(self.folder / f"{key}.safetensors", framework="pt")
        return lambda state: handle.get_tensor(str(state)).float()


@contextmanager
def _on_disk(outroot: str, half: bool) -> Iterator[_OnDisk]:
    # A name that folders.remove_leftovers knows, so that a killed run's states are cleared later.
    final = Path(outroot) / FOLDER / "states"
    final.parent.mkdir(parents=True, exist_ok=True)
    folders.remove_leftovers(final)
    folder = final.parent / f".{final.name}.{os.getpid()}{folders.PARTIAL}"
    folder.mkdir()
    try:
        yield _OnDisk(folder, half)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class StateCache(NamedTuple):
    """Where the base's states go, and whether in half precision."""

    outroot: str
    half: bool


def run_one_by_one(
    load: Callable[[str], Reader],
    names: Sequence[str],
    passes: Sequence[SplitPass],
    finished: Finished,
    cache: StateCache,
) -> None:
    """One model in memory at a time, bases first. Raises BadInput where the disk is too small."""
    with _on_disk(*cache) as store:
        for name in names:
            reader = load(name)
            tokens = sum(int(p.tokens.counts.sum()) for p in passes if p.is_base(name))
            width = reader.anatomy.embedding.weight.shape[1]
            store.check_space(tokens * (len(reader.anatomy.blocks) + 1) * width)
            for one in passes:
                if one.concerns(name):
                    for at in one.batches(naming.model_label(name)):
                        one.run(reader, at, store)
                    finished(one, [name])
            del reader
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
