"""Texts as tokens: which positions count, and padded batches of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.data.texts import encode
from model_diffs.models import devices, loading


class Tokens(NamedTuple):
    """Documents as token ids, and which of their tokens count."""

    ids: list[list[int]]
    starts: list[int]
    """First position that counts, per document; all later ones do."""
    documents: np.ndarray
    """Position in the split of each document that has a token that counts."""
    left_out: dict[str, int]
    """Number of documents and tokens that do not count."""

    @property
    def lengths(self) -> list[int]:
        """Tokens per document, counted or not."""
        return [len(ids) for ids in self.ids]

    @property
    def counts(self) -> np.ndarray:
        """Counted tokens per document."""
        return np.array(self.lengths) - self.starts


def tokenise(
    tokenizer: Any, texts: Sequence[str], max_length: int, keep_bos: bool, skip_first: int
) -> Tokens:
    """Token ids, at most `max_length` per text; documents without a counted token are left out.

    BOS positions (unless `keep_bos`) and the first `skip_first` positions do not count. Raises
    BadInput where no document is left.
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


@dataclass(frozen=True)
class TokenBatch:
    """Some documents, padded on the right. B: documents, n: counted tokens, in reading order."""

    rows: list[int]
    """Documents, as rows of the `Tokens` that they are from."""
    batch: loading.Batch
    counted: Tensor
    """`[B, positions]` bool: neither padding nor left out."""

    @cached_property
    def places(self) -> Tensor:
        """`[n, 2]` document (as its place in `rows`) and position of each counted token."""
        return self.counted.nonzero()

    @cached_property
    def membership(self) -> Tensor:
        """`[B, n]` fp32, 1 where a counted token is of a document."""
        documents = torch.arange(len(self.rows), device=self.counted.device)
        return (documents[:, None] == self.places[:, 0]).float()

    @cached_property
    def first(self) -> Tensor:
        """`[B]` place among the n counted tokens of each document's first one."""
        counts = self.counted.sum(1)
        return counts.cumsum(0) - counts

    @cached_property
    def last(self) -> Tensor:
        """`[B]` position of the last token that is not padding."""
        return self.batch.attention_mask.sum(1) - 1


def padded_batches(
    tokens: Tokens, order: Iterable[Sequence[int]], pad_id: int, device: torch.device
) -> Iterator[TokenBatch]:
    """Batches of the documents named in `order`, such as `length_batches(tokens.lengths, 16)`."""
    for rows in order:
        batch = loading.pad_batch([tokens.ids[row] for row in rows], pad_id, device)
        positions = torch.arange(batch.input_ids.shape[1], device=device)
        starts = torch.tensor([tokens.starts[row] for row in rows], device=device)
        counted = batch.attention_mask.bool() & (positions >= starts[:, None])
        yield TokenBatch(list(rows), batch, counted)


def own_share(order: Sequence[list[int]], name: str = "the texts") -> list[list[int]]:
    """This process's share of the batches. BadInput where a process would have none."""
    count = devices.processes()[1]
    if count > len(order):
        raise BadInput(
            f"{name}: {count} processes share {len(order)} batches: "
            "lower --batch-size or --num_processes"
        )
    return devices.share(order)
