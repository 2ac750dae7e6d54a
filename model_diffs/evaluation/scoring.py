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
from model_diffs.data.questions import Question
from model_diffs.evaluation import contexts
from model_diffs.models import devices, loading
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


ReadBatch = Callable[[loading.Batch, tuple[Tensor, Tensor]], Sequence[Tensor]]
"""Of a batch and places in it (rows, positions), the logits there, `[places, vocabulary]`, for each
reading of the model."""


@torch.inference_mode()
def read_answers(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    batch_size: int,
    read_batch: ReadBatch,
    shared: bool = False,
) -> list[list[Answer]]:
    """The answers of each reading of a model, the questions in their order.

    There is one reading of a model's own output, and one per hidden state of a logit lens.
    `batch_size` counts sequences and affects speed and memory only. Padding on the right is behind
    every place that is read. With `shared`, processes share the batches and all get all answers.
    """
    reads = contexts.again(tokenizer, tuple(questions))
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    device = next(model.parameters()).device
    by_context: dict[int, list[tuple[int, int, int]]] = {}
    for sentence, terms in enumerate(reads.terms):
        for context, position, token in terms:
            by_context.setdefault(context, []).append((sentence, position, token))
    sums: NDArray[np.float64] | None = None
    batches = contexts.batches(reads, batch_size)
    own = devices.share(batches) if shared else batches
    for chosen in progress(own, "questions", unit="batch"):
        batch = loading.pad_batch([reads.contexts[i] for i in chosen], pad_id, device)
        places = [(row, at) for row, i in enumerate(chosen) for at in sorted(reads.needed[i])]
        rows, positions = torch.tensor(places, device=device).T
        number = {place: i for i, place in enumerate(places)}
        terms = [
            (sentence, number[row, position], token)
            for row, i in enumerate(chosen)
            for sentence, position, token in by_context.get(i, ())
        ]
        sentences, at, tokens = torch.tensor(terms, device=device).T
        for reading, logits in enumerate(read := read_batch(batch, (rows, positions))):
            predicted = logits.float()
            found = (predicted[at, tokens] - predicted.logsumexp(-1)[at]).cpu().double().numpy()
            if sums is None:
                sums = np.zeros((len(read), len(reads.terms)))
            np.add.at(sums[reading], sentences.cpu().numpy(), found)
    if shared:
        sums = _over_processes(sums, len(reads.terms))
    if sums is None:  # every choice reads the same tokens: all are ties
        sums = np.zeros((1, len(reads.terms)))
    return [answers(questions, one[reads.choices]) for one in sums]


def _over_processes(sums: NDArray[np.float64] | None, sentences: int) -> NDArray[np.float64] | None:
    """The sums `[readings, sentences]` of all processes; None where none has any."""
    readings = max(devices.gather_over_processes([0 if sums is None else len(sums)]))
    own = np.zeros((readings, sentences)) if sums is None else sums
    return devices.sum_over_processes(torch.from_numpy(own)).numpy() if readings else None


def score(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], batch_size: int = 64
) -> list[Answer]:
    """A model's answers to the questions, in their order.

    Sentences are tokenised with the tokenizer's defaults. The model is in evaluation mode
    meanwhile. Its head meets only the positions that are read: over a large vocabulary it is a good
    part of the pass, and its output most of the memory.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()

    def read_batch(batch: loading.Batch, places: tuple[Tensor, Tensor]) -> list[Tensor]:
        if head is None:
            return [model(**batch._asdict(), use_cache=False).logits[places]]
        with loading.hooks() as handles:
            handles.append(head.register_forward_pre_hook(lambda _, args: args[0][:1, -1:]))
            begun = contexts.beginning(model, batch, places)
        at = places[0], places[1] - begun.length
        with loading.hooks() as handles:
            handles.append(head.register_forward_pre_hook(lambda _, args: args[0][at]))
            return [model(**begun.rest(batch)).logits]

    training = model.training
    model.eval()
    try:
        (given,) = read_answers(model, tokenizer, questions, batch_size, read_batch)
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
