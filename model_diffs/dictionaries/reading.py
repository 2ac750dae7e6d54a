"""Texts of data sets as tokens, and activations of blocks: what dictionaries are trained on."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from model_diffs.activations.passes import Reader
from model_diffs.activations.tokens import TokenBatch, Tokens, tokenise
from model_diffs.core.errors import BadInput
from model_diffs.core.results import Run
from model_diffs.data import text_datasets
from model_diffs.data.texts import Split
from model_diffs.dictionaries.options import Diffing, Training
from model_diffs.models import loading
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.sites import counted_rows, watch


class Reading(NamedTuple):
    """Texts of one or several data sets, one after the other, as tokens."""

    splits: list[Split]
    texts: list[str]
    """All of them, including documents without a counted token."""
    tokens: Tokens
    sources: np.ndarray
    """`[documents]` index of the split that a document is from."""

    @property
    def names(self) -> list[str]:
        """A name per data set: the stem of its file where that is unique."""
        short = [split.path.stem for split in self.splits]
        return short if len(set(short)) == len(short) else [str(s.path) for s in self.splits]

    def sha256(self) -> str:
        """Of all texts, joined by newlines."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def read(
    names: Sequence[str],
    tokenizer: Any,
    options: Training | Diffing,
    keep_bos: bool = False,
    skip_first: int = 0,
) -> Reading:
    """Read data sets and tokenise them, cut to `options.seq_len` tokens per document.

    `options.max_samples` of each data set (0 = all) are drawn with the seed. Raises BadInput for
    what is missing, empty or unreadable.
    """
    chat, once = text_datasets.chat_of(tokenizer), options.drop_repeated
    splits = [
        text_datasets.read_dataset(name, options.max_samples, options.seed, chat, once)
        for name in names
    ]
    texts = [text for split in splits for text in split.texts]
    tokens = tokenise(tokenizer, texts, options.seq_len, keep_bos, skip_first)
    sources = np.repeat(np.arange(len(splits)), [len(split.texts) for split in splits])
    return Reading(splits, texts, tokens, sources[tokens.documents])


def describe(run: Run, models: Sequence[str], reading: Reading, **facts: Any) -> None:
    """Record models, texts and `facts`; a change of their files makes the result stale."""
    checkpoints = [Checkpoint.open(model) for model in models]
    run.reads(*(file for checkpoint in checkpoints for file in checkpoint.files))
    run.reads(*(file for split in reading.splits for file in text_datasets.files_of(split)))
    run.record(
        models={one.model: one.identity() for one in checkpoints},
        texts=[split.identity() for split in reading.splits],
        documents=len(reading.tokens.ids),
        tokens=int(reading.tokens.counts.sum()),
        left_out=reading.tokens.left_out,
        **facts,
    )


def tokenizer_sha256(tokenizer: Any) -> str:
    """Identifies a tokenizer by its vocabulary and by how it splits a probe."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    probe = tokenizer("A probe, 1 2 3:  it's écrit — 漢字\tand so on.")["input_ids"]
    return hashlib.sha256(repr((vocabulary, probe)).encode()).hexdigest()


def activations(
    reader: Reader, at: TokenBatch, layers: Sequence[int], site: str = "resid_post"
) -> dict[int, Tensor]:
    """Activations `[n, width]` fp32 of blocks at the counted tokens, where `site` says.

    The forward pass ends after the last of the blocks. Raises BadInput for a layer that the model
    does not have and for values that are not finite.
    """
    blocks, found = reader.anatomy.blocks, dict[int, Tensor]()
    if max(layers) >= len(blocks):
        raise BadInput(
            f"{reader.name} has blocks 0 to {len(blocks) - 1}: there is no layer {max(layers)}"
        )

    def keep(layer: int, x: Tensor) -> Tensor:
        found[layer] = counted_rows(x, at.counted).float()
        if not bool(found[layer].isfinite().all()):
            what = "the output" if site == "resid_post" else site
            raise BadInput(
                f"{reader.name}: {what} of block {layer} holds NaN or Inf: try --dtype fp32"
            )
        return x

    with watch(reader.anatomy, site, sorted(set(layers)), keep):
        loading.stream_states(reader.anatomy, at.batch, lambda *_: None, max(layers) + 1)
    return found


@contextmanager
def out_of_memory(batch_size: int) -> Iterator[None]:
    """Raise BadInput with the batch size to try where the memory of device or machine is full."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # Of a GPU, and of main memory.
        known = ("out of memory", "not enough memory", "can't allocate memory")
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in known):
            raise
        smaller = f"try --batch-size {batch_size // 2}"
        advice = smaller if batch_size > 1 else "lower --seq-len or --max-atoms"
        raise BadInput(f"out of memory with --batch-size {batch_size}: {advice}") from error
