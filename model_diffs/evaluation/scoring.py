"""Four-choice questions scored by the log-probability of completed sentences.

A question's prompt is completed by each of its choices; the choice with the likeliest sentence is
the model's answer. There is no sampling and no parsing of output.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data import texts
from model_diffs.data.questions import Question
from model_diffs.models import loading
from model_diffs.stats import intervals


class Answer(NamedTuple):
    """A model's answer to one question."""

    id: str
    domain: str
    fold: str | None
    correct: bool
    """Whether the correct choice is likelier than every other: a tie is not correct."""
    margin: float
    """log-probability of the correct sentence less that of the likeliest wrong one, in nats."""
    entity: str
    seen_form: bool


class Accuracy(NamedTuple):
    """Share of correct answers with its 95 % interval, entities resampled."""

    domain: str
    fold: str | None
    questions: int
    mean: float
    low: float
    high: float
    seen_form: bool | None = None
    """Of the facts told in the question's own words, or of the others; None: of both."""

    @property
    def name(self) -> str:
        """Such as `hazard`, `hazard_heldout` or `hazard_heldout_unseen`."""
        form = {True: "seen", False: "unseen", None: None}[self.seen_form]
        return "_".join(filter(None, (self.domain, self.fold, form)))


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def sentence_log_probabilities(logits: Tensor, batch: loading.Batch) -> Tensor:
    """Log-probability of each sentence given its first token: `[sentences]`, fp64, on the CPU.

    `logits`: `[sentences, positions, vocabulary]` of a batch padded on the right. Each token is
    predicted from the position before it; padding does not count.
    """
    predicted, token = logits[:, :-1].float(), batch.input_ids[:, 1:]
    chosen = predicted.gather(-1, token[..., None]).squeeze(-1)
    log_probability = (chosen - predicted.logsumexp(-1)).cpu().double()
    counted = batch.attention_mask[:, 1:].cpu().bool()
    return log_probability.masked_fill(~counted, 0.0).sum(-1)


def encode_sentences(
    tokenizer: Any, questions: Sequence[Question]
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Token ids of every distinct completed sentence, and the sentence of each choice.

    Returns the sequences and an index `[questions, choices]` into them. Raises BadInput for a
    sentence longer than the model takes, which would be scored without its choice if it were cut,
    and for one of a single token.
    """
    sentences = [question.sentences() for question in questions]
    place: dict[str, int] = {}
    index = np.array([[place.setdefault(s, len(place)) for s in four] for four in sentences])
    sequences = texts.encode(tokenizer, list(place), max_length=2**30)
    for sentence, ids in zip(place, sequences, strict=True):
        if len(ids) < 2:
            raise BadInput(f"the question {sentence[:60]!r} has a single token: nothing to score")
    return sequences, index


def answers(questions: Sequence[Question], scores: NDArray[np.float64]) -> list[Answer]:
    """Compare the scores of the choices, `[questions, choices]`.

    Raises BadInput for a score that is not finite.
    """
    result = []
    for question, row in zip(questions, scores, strict=True):
        if not np.isfinite(row).all():
            raise BadInput(
                f"question {question.id}: a log-probability is not finite; check the weights, or "
                "use a wider --dtype"
            )
        margin = float(row[question.answer] - np.delete(row, question.answer).max())
        result.append(
            Answer(
                id=question.id,
                domain=question.domain,
                fold=question.fold,
                correct=margin > 0,
                margin=margin,
                entity=question.entity,
                seen_form=question.seen_form,
            )
        )
    return result


@torch.inference_mode()
def read_answers(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    batch_size: int,
    score_batch: Callable[[loading.Batch], Sequence[Tensor]],
) -> list[list[Answer]]:
    """The answers of each reading of a model, the questions in their order.

    `score_batch` gives `sentence_log_probabilities` of a batch for each reading of it: one for a
    model's own output, one per hidden state for a logit lens. `batch_size` counts sentences and
    affects speed and memory only.
    """
    sequences, index = encode_sentences(tokenizer, questions)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    device = next(model.parameters()).device
    batches = texts.length_batches([len(ids) for ids in sequences], batch_size)
    scores = [
        torch.stack([*score_batch(loading.pad_batch([sequences[i] for i in rows], pad_id, device))])
        for rows in progress(batches, "questions", unit="batch")
    ]
    place = np.concatenate(batches).argsort()
    return [answers(questions, one[place[index]]) for one in torch.cat(scores, 1).numpy()]


def score(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], batch_size: int = 64
) -> list[Answer]:
    """A model's answers to the questions, in their order.

    Sentences are tokenised with the tokenizer's defaults. The model is in evaluation mode
    meanwhile.
    """

    def score_batch(batch: loading.Batch) -> list[Tensor]:
        logits = model(**batch._asdict(), use_cache=False).logits
        return [sentence_log_probabilities(logits, batch)]

    training = model.training
    model.eval()
    try:
        (given,) = read_answers(model, tokenizer, questions, batch_size, score_batch)
    finally:
        model.train(training)
    return given


def units(given: Sequence[Answer]) -> list[str]:
    """What is resampled, of each answer: its entity, or its id where all of a domain have one
    entity, which then tells nothing of what belongs together."""
    named: dict[str, set[str]] = {}
    for one in given:
        named.setdefault(one.domain, set()).add(one.entity)
    return [one.entity if len(named[one.domain]) > 1 else one.id for one in given]


def reported(given: Sequence[Answer]) -> list[bool]:
    """Whether each answer counts for its domain's result: those of fold `heldout` where a domain
    has that fold, else all of it."""
    divided = {one.domain for one in given if one.fold == "heldout"}
    return [one.fold == "heldout" or one.domain not in divided for one in given]


def accuracies(given: Sequence[Answer], seed: int = 42) -> list[Accuracy]:
    """Accuracy of each domain, of each fold of a domain that has folds, and of either form where
    both are asked."""
    result = []
    pairs = [*zip(given, units(given), strict=True)]
    for domain in dict.fromkeys(one.domain for one in given):
        own = [pair for pair in pairs if pair[0].domain == domain]
        for fold in dict.fromkeys([None, *(one.fold for one, _ in own)]):
            part = [pair for pair in own if fold in (None, pair[0].fold)]
            forms = {one.seen_form for one, _ in part}
            for form in (None, *((True, False) if len(forms) == 2 else ())):
                asked = [pair for pair in part if form in (None, pair[0].seen_form)]
                correct, unit = [one.correct for one, _ in asked], [unit for _, unit in asked]
                mean, low, high = map(float, intervals.entity_interval(correct, unit, seed))
                result.append(Accuracy(domain, fold, len(asked), mean, low, high, form))
    return result
