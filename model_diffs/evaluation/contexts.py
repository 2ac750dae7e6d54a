"""What a model has to read to answer four-choice questions, and what it reads once.

The choices of a question share its prompt: what their sentences have in common is as likely in each
of them and decides nothing, and what stands before the first difference is read once for all.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_diffs.core.errors import BadInput
from model_diffs.data import texts
from model_diffs.data.questions import Question
from model_diffs.models import loading


class Reads(NamedTuple):
    """What has to be read to compare the choices of questions.

    What the sentences of a question have in common is as likely in each of them, and a sentence's
    last token is only predicted: so sentences that differ in it are one context, read once. What
    follows tokens that several sentences begin with is read in the first of them.
    """

    contexts: list[list[int]]
    """Token ids of every distinct sentence without its last token."""
    needed: list[set[int]]
    """Positions of each context whose prediction is read."""
    terms: list[list[tuple[int, int, int]]]
    """Of each sentence: context, position and predicted token, where its question's differ."""
    choices: NDArray[np.int64]
    """`[questions, choices]`: the sentence of each choice."""


def what_to_read(tokenizer: Any, questions: Sequence[Question]) -> Reads:
    """Encode the completed sentences of the questions.

    Raises BadInput for a sentence longer than the model takes, which would be scored without its
    choice if it were cut, and for one of a single token.
    """
    sentences = [sentence for question in questions for sentence in question.sentences()]
    distinct = list(dict.fromkeys(sentences))
    encoded = texts.encode(tokenizer, distinct, max_length=2**30)
    for sentence, ids in zip(distinct, encoded, strict=True):
        if len(ids) < 2:
            raise BadInput(f"the question {sentence[:60]!r} has a single token: nothing to score")
    ids_of = dict(zip(distinct, encoded, strict=True))
    place: dict[tuple[int, ...], int] = {}
    first: dict[tuple[int, ...], tuple[int, int]] = {}
    needed: list[set[int]] = []
    terms: list[list[tuple[int, int, int]]] = []
    for question in questions:
        four = [ids_of[sentence] for sentence in question.sentences()]
        columns = enumerate(zip(*four, strict=False))
        common = next((i for i, one in columns if len(set(one)) > 1), min(map(len, four)))
        for ids in four:
            context = place.setdefault((*ids[:-1],), len(place))
            needed += [set() for _ in range(context == len(needed))]
            terms.append([])
            for at in range(max(common, 1), len(ids)):
                where, position = first.setdefault((*ids[:at],), (context, at - 1))
                needed[where].add(position)
                terms[-1].append((where, position, ids[at]))
    choices = np.arange(len(terms)).reshape(len(questions), -1)
    return Reads([[*context] for context in place], needed, terms, choices)


# A model that is trained or attacked is asked the same questions again and again.
again = lru_cache(maxsize=2)(what_to_read)


def batches(reads: Reads, size: int) -> list[list[int]]:
    """Contexts that something is read of, in an order in which few tokens are padding or read
    again: those of a question side by side, beside questions whose choices begin at the same
    position and are as long."""
    groups = []
    for choices in reads.choices:
        terms = [term for sentence in choices for term in reads.terms[sentence]]
        if terms:
            own = sorted({context for context, _, _ in terms})
            longest = max(len(reads.contexts[i]) for i in own)
            groups.append((min(position for _, position, _ in terms), longest, own))
    order = list(dict.fromkeys(i for *_, own in sorted(groups) for i in own))
    return [order[at : at + size] for at in range(0, len(order), size)]


class Beginning(NamedTuple):
    """Keys and values of the tokens that rows of a batch begin with."""

    past: Any
    """For transformers, of each row; None where nothing was read before."""
    length: int
    """Tokens."""

    def rest(self, batch: loading.Batch) -> dict[str, Any]:
        """What is left of a batch to read, as a model's arguments: the mask is that of all."""
        given = {**batch._asdict(), "input_ids": batch.input_ids[:, self.length :]}
        if self.past is None:
            return {**given, "use_cache": False}
        return {**given, "past_key_values": self.past, "use_cache": True}


def beginning(run: Callable[..., Any], batch: loading.Batch, places: tuple[Tensor, Tensor]
) -> Beginning:  # fmt: skip
    """Read what stands before the first of the places once for rows that begin alike.

    The choices of a question share its prompt, which is most of what would be read. `run` is the
    model or its trunk. Nothing is read where fewer than half of the rows would be saved; what a
    model reads without keeping keys and values is of no use, and the batch is read whole.
    """
    length = int(places[1].min())
    alike, row = torch.unique(batch.input_ids[:, :length], dim=0, return_inverse=True)
    if length == 0 or 2 * len(alike) > len(row):
        return Beginning(None, 0)
    past: Any = getattr(run(input_ids=alike, use_cache=True), "past_key_values", None)
    if not hasattr(past, "batch_select_indices"):
        return Beginning(None, 0)
    past.batch_select_indices(row.cpu())
    return Beginning(past, length)
