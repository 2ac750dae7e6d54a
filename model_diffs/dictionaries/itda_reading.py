"""What dictionaries are made from and applied to: outputs of blocks, batch by batch."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model_diffs.activations import passes
from model_diffs.activations.passes import Tokens
from model_diffs.core.errors import BadInput
from model_diffs.data import text_datasets
from model_diffs.data.texts import Split
from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy


class Reading(NamedTuple):
    """Texts of one or several data sets, one after the other, as tokens."""

    splits: list[Split]
    tokens: Tokens
    sources: np.ndarray
    """`[documents]` which of the splits a document is from."""

    @property
    def texts(self) -> list[str]:
        """All texts, also of documents without a token that counts."""
        return [text for split in self.splits for text in split.texts]

    @property
    def names(self) -> list[str]:
        """A short name of each data set: the file's own, where no two share it."""
        short = [split.path.stem for split in self.splits]
        return short if len(set(short)) == len(short) else [str(s.path) for s in self.splits]

    def sha256(self) -> str:
        """Of all texts, joined by newlines."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What run.json says of what was read."""
        return {
            "texts": [split.identity() for split in self.splits],
            "documents": len(self.tokens.ids),
            "tokens": int(self.tokens.counts.sum()),
            "left_out": self.tokens.left_out,
        }


def read(
    names: Sequence[str],
    tokenizer: Any,
    seq_len: int,
    keep_bos: bool = False,
    skip_first: int = 0,
    max_samples: int = 0,
    seed: int | None = None,
) -> Reading:
    """Read data sets and tokenise them, cut to `seq_len` tokens per document.

    `max_samples` of each data set (0 = all) are drawn with `seed`, or are the first ones without.
    Raises BadInput for what is missing, empty or unreadable.
    """
    splits = [text_datasets.read_dataset(name, max_samples, seed) for name in names]
    texts = [text for split in splits for text in split.texts]
    tokens = passes.tokenise(tokenizer, texts, seq_len, keep_bos, skip_first)
    sources = np.repeat(np.arange(len(splits)), [len(split.texts) for split in splits])
    return Reading(splits, tokens, sources[tokens.documents])


def tokenizer_sha256(tokenizer: Any) -> str:
    """Tells tokenizers apart: the vocabulary, and how a probe is split."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    probe = tokenizer("A probe, 1 2 3:  it's écrit — 漢字\tand so on.")["input_ids"]
    return hashlib.sha256(repr((vocabulary, probe)).encode()).hexdigest()


def check_layers(anatomy: Anatomy, layers: Sequence[int], model: str) -> None:
    """Raise BadInput for a layer that the model does not have."""
    count = len(anatomy.blocks)
    for layer in layers:
        if layer >= count:
            raise BadInput(f"{model} has blocks 0 to {count - 1}: there is no layer {layer}")


def stream_block_outputs(
    anatomy: Anatomy,
    batch: loading.Batch,
    layers: Sequence[int],
    receive: Callable[[int, Tensor], None],
) -> None:
    """Hand over the output `[texts, positions, hidden]` of each of `layers`, before any final norm.

    The pass ends with the last of them. The last block's output is what enters the final norm.
    """
    last_block = len(anatomy.blocks) - 1
    wanted = set(layers)
    normed = last_block in wanted and anatomy.final_norm is not None

    def state(number: int, hidden: Tensor) -> None:
        layer = number - 1
        if layer in wanted and not (normed and layer == last_block):
            receive(layer, hidden)

    def enters_norm(module: nn.Module, args: tuple[Any, ...]) -> None:
        receive(last_block, args[0])

    with loading.hooks() as handles:
        if normed and anatomy.final_norm is not None:
            handles.append(anatomy.final_norm.register_forward_pre_hook(enters_norm))
        end = None if last_block in wanted else max(wanted) + 1
        loading.stream_states(anatomy, batch, state, end)


class PaddedBatch(NamedTuple):
    """Some documents, and which of their positions count."""

    rows: list[int]
    """Documents, as rows of the tokens that were read."""
    batch: loading.Batch
    counted: Tensor
    """`[texts, positions]` bool."""
    documents: Tensor
    """`[n]` place in `rows` of each counted token, n of them in reading order."""
    positions: Tensor
    """`[n]` position of each counted token in its document."""


def padded_batches(
    tokens: Tokens, order: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> Iterator[PaddedBatch]:
    """The documents in batches; padding and positions left out do not count."""
    for rows in order:
        batch = loading.pad_batch([tokens.ids[row] for row in rows], pad_id, device)
        starts = torch.tensor([tokens.starts[row] for row in rows], device=device)
        places = torch.arange(batch.input_ids.shape[1], device=device)
        counted = batch.attention_mask.bool() & (places >= starts[:, None])
        documents, positions = counted.nonzero().cpu().unbind(1)
        yield PaddedBatch(list(rows), batch, counted, documents, positions)


@contextmanager
def out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn a device or machine that is full into one line with the batch size to try."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise BadInput(_memory_advice(batch_size)) from error
    except RuntimeError as error:
        # What torch's allocator of main memory says.
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise BadInput(_memory_advice(batch_size)) from error


def _memory_advice(batch_size: int) -> str:
    if batch_size == 1:
        return "out of memory with --batch-size 1: lower --seq-len or --max-atoms"
    return f"out of memory with --batch-size {batch_size}: try --batch-size {batch_size // 2}"
