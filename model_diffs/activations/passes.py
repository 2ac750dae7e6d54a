"""Models over the batches of a split: side by side, or one by one against a disk cache.

Models that fit into memory together read each batch side by side, so that nothing is stored for Δh.
Others are carried block by block (`blocks`), or, where that cannot be, the base's states go to a
disk cache, removed at the end, and the changed models are read against it one after another.
Several processes share the batches.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_diffs.activations.sinks import without_sinks
from model_diffs.activations.sums import DifferenceSums, ModelSums
from model_diffs.activations.tokens import (
    TokenBatch,
    Tokens,
    own_share,
    padded_batches,
    tokenise,
)
from model_diffs.core import folders, naming
from model_diffs.core.errors import BadInput
from model_diffs.core.options import Reading, Texts
from model_diffs.core.progress import progress
from model_diffs.core.results import Run
from model_diffs.data.texts import Split, length_batches, read_splits
from model_diffs.models import devices, loading
from model_diffs.models.anatomy import Anatomy, locate
from model_diffs.models.checkpoints import Checkpoint

WITHIN = 8  # arrays of a state's size that a block holds at once: queries, keys, values, its MLP


@dataclass
class Reader:
    """One loaded model."""

    name: str
    model: nn.Module

    def __post_init__(self) -> None:
        self.anatomy: Anatomy = locate(self.model)


@dataclass
class DiskStates:
    """States of bases by key, `[n, hidden]` each, in files of a folder, as fp32 or fp16."""

    folder: Path
    dtype: torch.dtype

    def __setitem__(self, key: str, h: Tensor) -> None:
        save_file({"h": h.to("cpu", self.dtype).contiguous()}, self.folder / f"{key}.safetensors")

    def __getitem__(self, key: str) -> Tensor:
        return load_file(self.folder / f"{key}.safetensors")["h"].float()


@dataclass
class SplitPass:
    """One split to read, and the sums to fill: of models by name, of changes by (base, changed)."""

    split: Split
    tokens: Tokens
    batch_size: int
    pad_id: int
    device: torch.device
    own: dict[str, ModelSums] = field(default_factory=dict)
    changes: dict[tuple[str, str], DifferenceSums] = field(default_factory=dict)

    @classmethod
    def of(cls, split: Split, tokenizer: Any, options: Texts, device: torch.device) -> "SplitPass":
        """A split, tokenised as the options say, without sums."""
        length, skip = options.max_length, options.skip_first
        tokens = tokenise(tokenizer, split.texts, length, options.keep_bos, skip or 0)
        return cls(split, tokens, options.batch_size, tokenizer.pad_token_id, device)

    def concerns(self, name: str) -> bool:
        """Whether a model is read on this split."""
        return name in self.own or any(name in pair for pair in self.changes)

    def is_base(self, name: str) -> bool:
        """Whether another model's change is measured against this one."""
        return any(a == name != b for a, b in self.changes)

    def batches(self, description: str | None) -> Iterator[TokenBatch]:
        """This process's share of the batches, longest first, with a progress bar where it has a
        description."""
        order = length_batches(self.tokens.lengths, self.batch_size)
        own: Iterable[list[int]] = own_share(order, self.split.name)
        if description is not None:
            own = progress(own, f"{description} {self.split.name}", unit="batch")
        return padded_batches(self.tokens, own, self.pad_id, self.device)

    def read(self, reader: Reader, at: TokenBatch, states: dict[str, Tensor] | DiskStates) -> None:
        """Run one model over one batch."""
        receive = self.receiver(reader.name, at, states)
        loading.stream_states(reader.anatomy, at.batch, receive, before_norm=True)
        self.check(reader.name)

    def check(self, name: str) -> None:
        """Raise BadInput where a state of a model was not finite."""
        if name in self.own:
            self.own[name].check()

    def receiver(
        self, name: str, at: TokenBatch, states: dict[str, Tensor] | DiskStates
    ) -> Callable[[int, Tensor], None]:
        """What takes the states of one model on one batch: its own sums, its changes from its
        bases, its `states` where it is a base."""
        sums, is_base = self.own.get(name), self.is_base(name)
        changes = {a: self.changes[a, b] for a, b in self.changes if b == name}

        def key(model: str, state: int) -> str:
            return f"{self.split.name}-{at.rows[0]}-{naming.model_label(model)}-{state}"

        def receive(state: int, hidden: Tensor) -> None:
            h = hidden[at.counted.to(hidden.device)].float()
            if sums is not None:
                sums.add(state, hidden, h, at)
            for base, change in changes.items():
                change.add(state, h if base == name else states[key(base, state)], h, at)
            if is_base:
                states[key(name, state)] = h

        return receive


def of_splits(
    options: Reading, models: Sequence[str], loaded: Any = None
) -> tuple[list[SplitPass], Any]:
    """Both splits, tokenised for `models`, and their tokenizer. BadInput where theirs differ.

    `loaded`: the first model, where it is in memory already.
    """
    splits = read_splits(options.forget_text, options.retain_text, options.max_samples)
    tokenizer = loading.common_tokenizer(models, options.trust_remote_code)
    device = devices.pick_device(options.device)
    options = without_sinks(options, models[0], splits, loaded)
    found = [SplitPass.of(split, tokenizer, options, device) for split in splits]
    check_memory(found, Checkpoint.open(models[0]))
    return found, tokenizer


def state_shape(model: Checkpoint) -> tuple[int, int]:
    """Number of states that a pass reads, N + 2 with the one before the norm, and their width."""
    matrices = model.matrices()
    width = max(m.shape[1] for m in matrices if m.component == "embed")
    return max(matrix.layer for matrix in matrices) + 3, width


def check_memory(passes: Sequence[SplitPass], model: Checkpoint) -> None:
    """Raise BadInput where the largest batch of a split does not fit into the free memory.

    Counted are the states of every token, `[tokens, hidden]` in fp32: N + 2 that changed models are
    compared with, and WITHIN more inside a block. What a batch takes is more, not less.
    """
    states, width = state_shape(model)
    for one in passes:
        first = length_batches(one.tokens.lengths, one.batch_size)[0]  # the longest texts
        length = one.tokens.lengths[first[0]]
        needed = len(first) * length * (states + WITHIN) * width * 4
        free = devices.free_memory(one.device)
        if needed > free:
            raise BadInput(
                f"--batch-size {one.batch_size}: {len(first)} {one.split.name} texts of {length} "
                f"tokens take more than {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
                "lower it"
            )


def describe(
    run: Run, models: Sequence[str], sample: Sequence[SplitPass], dtype: torch.dtype
) -> None:
    """Record in a step's run.json which models and texts it read; it depends on their files."""
    checkpoints = [Checkpoint.open(model) for model in models]
    run.reads(*(file for one in checkpoints for file in one.files))
    run.reads(*(one.split.path for one in sample))
    run.record(
        models={one.model: one.identity() for one in checkpoints},
        texts={one.split.name: one.split.identity() for one in sample},
        tokens={one.split.name: int(one.tokens.counts.sum()) for one in sample},
        left_out={one.split.name: one.tokens.left_out for one in sample},
        device=str(sample[0].device),
        dtype=devices.dtype_name(dtype),
    )


Finished = Callable[[SplitPass, Sequence[str]], None]
"""Called with the models that have read a split, so that their sums can be saved and released."""


def run_side_by_side(
    readers: Sequence[Reader],
    passes: Sequence[SplitPass],
    finished: Finished,
    disk: DiskStates | None = None,
) -> None:
    """All models over each batch, bases first; a base's states live as long as the batch, unless
    they go to `disk`."""
    names = [reader.name for reader in readers]
    description = "activations" if len(names) > 1 else naming.model_label(names[0])
    for one in passes:
        concerned = [reader for reader in readers if one.concerns(reader.name)]
        for at in one.batches(description) if concerned else ():
            states: dict[str, Tensor] | DiskStates = {} if disk is None else disk
            for reader in concerned:
                one.read(reader, at, states)
        finished(one, names)


def run_one_by_one(
    load: Callable[[str], Reader],
    names: Sequence[str],
    passes: Sequence[SplitPass],
    finished: Finished,
    cache: Path,
    half: bool,
) -> None:
    """One model in memory at a time, bases first; their states wait in a folder inside `cache`.

    Raises BadInput where the disk is too small.
    """
    with folders.scratch_folder(cache / "states") as folder:
        disk = DiskStates(folder, torch.float16 if half else torch.float32)

        def read(reader: Reader) -> None:
            tokens = sum(int(p.tokens.counts.sum()) for p in passes if p.is_base(reader.name))
            width = reader.anatomy.embedding.weight.shape[1]
            needed = tokens * (len(reader.anatomy.blocks) + 2) * width * disk.dtype.itemsize
            free = shutil.disk_usage(folder).free
            if needed > 0.95 * free:
                raise BadInput(
                    f"the base's states need {needed / 1e9:.1f} GB in {folder.parent} and "
                    f"{free / 1e9:.1f} GB are free: lower --max-samples or use --cache-fp16"
                )
            run_side_by_side([reader], passes, finished, disk)

        loading.one_by_one(load, names, read)
