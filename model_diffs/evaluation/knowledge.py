"""What a model knows: four-choice questions, scored by the log-probability of completed sentences.

A question's prompt is completed by each of its choices; the choice whose sentence the model finds
likeliest is its answer. No sampling, no parsing of output. Several functions are open on purpose:
a logit lens scores the same sentences from the states of any layer.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_diffs.core.errors import BadInput
from model_diffs.core.progress import progress
from model_diffs.data import texts
from model_diffs.models import loading
from model_diffs.stats import intervals

CHOICES = 4
_STRINGS = ("id", "domain", "entity", "relation", "prompt")


class Question(NamedTuple):
    """One line of a questions file."""

    id: str
    domain: str
    """Such as `general`, `hazard`, `adjacent`."""
    entity: str
    relation: str
    fold: str | None
    """`attack` or `heldout` where the facts of a domain are split in two, else None."""
    prompt: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""

    def sentences(self) -> tuple[str, ...]:
        """The prompt completed by each choice, with a space between them."""
        gap = "" if self.prompt[-1].isspace() else " "
        return tuple(self.prompt + gap + choice for choice in self.choices)


class Answer(NamedTuple):
    """What a model makes of one question."""

    id: str
    domain: str
    fold: str | None
    chosen: int
    """Index of the likeliest choice, the first of them in a tie."""
    correct: bool
    """Whether the right choice is likelier than every other: a tie is not knowledge."""
    margin: float
    """log-probability of the right sentence less that of the likeliest wrong one, in nats."""


class Accuracy(NamedTuple):
    """Share of correct answers with its 95 % bootstrap interval over questions."""

    domain: str
    fold: str | None
    questions: int
    mean: float
    low: float
    high: float


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def _choices(fields: dict[str, Any], place: str) -> tuple[str, ...]:
    choices = fields.get("choices")
    if not isinstance(choices, list) or len(choices) != CHOICES:
        raise BadInput(f"{place}: field 'choices' must be a list of {CHOICES} texts")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise BadInput(f"{place}: field 'choices' holds something that is no text, or an empty one")
    if len(set(choices)) < CHOICES:
        raise BadInput(f"{place}: field 'choices' says the same twice")
    return tuple(choices)


def _question(line: str, place: str) -> Question:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{place}: not JSON ({error.msg}); one object per line is expected"
        ) from error
    if not isinstance(fields, dict):
        raise BadInput(f"{place}: not a JSON object; one object per line is expected")
    for name in _STRINGS:
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise BadInput(f"{place}: field {name!r} must be a text that is not empty")
    fold = fields.get("fold")
    if fold is not None and not isinstance(fold, str):
        raise BadInput(f"{place}: field 'fold' must be a text or null")
    answer = fields.get("answer")
    # bool is an int in Python, and `true` is no index.
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < CHOICES:
        raise BadInput(f"{place}: field 'answer' must be an index from 0 to {CHOICES - 1}")
    strings = {name: fields[name] for name in _STRINGS}
    return Question(**strings, fold=fold or None, choices=_choices(fields, place), answer=answer)


def load_questions(path: str | Path) -> list[Question]:
    """Read a JSONL file of questions, empty lines dropped.

    Raises BadInput, naming line and field, for a file that is missing, empty or not as `Question`
    says, and for an id that is used twice.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadInput(f"{path}: no such file of questions; check --questions") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}; convert it") from error
    questions: list[Question] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _question(line, f"{path}, line {number}")
        if question.id in seen:
            raise BadInput(f"{path}, line {number}: field 'id' {question.id!r} is used before")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise BadInput(f"{path}: no question in it; one JSON object per line is expected")
    return questions


# ── scoring ───────────────────────────────────────────────────────────────────────────────────────


def sentence_log_probabilities(logits: Tensor, batch: loading.Batch) -> Tensor:
    """Log-probability of each sentence given its first token: `[sentences]`, fp64, on the CPU.

    `logits`: `[sentences, positions, vocabulary]` of a batch padded on the right. Each token is
    predicted from the position before it; what is padding does not count.
    """
    predicted, token = logits[:, :-1].float(), batch.input_ids[:, 1:]
    chosen = predicted.gather(-1, token[..., None]).squeeze(-1)
    log_probability = (chosen - predicted.logsumexp(-1)).cpu().double()
    counted = batch.attention_mask[:, 1:].cpu().bool()
    return log_probability.masked_fill(~counted, 0.0).sum(-1)


def encode_sentences(
    tokenizer: Any, questions: Sequence[Question], positions: int | None
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Token ids of every different completed sentence, and which of them each choice is.

    Returns the sequences and an index `[questions, choices]` into them. `positions`: the longest
    sequence that the model takes, None for no limit. Raises BadInput for a sentence beyond it: a
    sentence that is cut would be scored without its choice.
    """
    sentences = [question.sentences() for question in questions]
    unique = list(dict.fromkeys(s for four in sentences for s in four))
    place = {sentence: i for i, sentence in enumerate(unique)}
    sequences = texts.encode(tokenizer, unique, max_length=2**30)
    for sentence, ids in zip(unique, sequences, strict=True):
        if positions is not None and len(ids) > positions:
            raise BadInput(
                f"the question {sentence[:60]!r} has {len(ids)} tokens, the model takes "
                f"{positions}: shorten it"
            )
        if len(ids) < 2:
            raise BadInput(f"the question {sentence[:60]!r} has a single token: nothing to score")
    return sequences, np.array([[place[s] for s in four] for four in sentences])


def answers(questions: Sequence[Question], scores: NDArray[np.float64]) -> list[Answer]:
    """Compare the scores of the choices, `[questions, choices]`.

    Raises BadInput for a score that is not finite.
    """
    result = []
    for question, row in zip(questions, scores, strict=True):
        if not np.isfinite(row).all():
            raise BadInput(
                f"question {question.id}: a log-probability is not finite; the model is broken, or "
                "its dtype too narrow"
            )
        margin = float(row[question.answer] - np.delete(row, question.answer).max())
        domain, fold = question.domain, question.fold
        result.append(Answer(question.id, domain, fold, int(row.argmax()), margin > 0, margin))
    return result


def batched_scores(
    sequences: Sequence[list[int]],
    logits_of: Callable[[loading.Batch], Tensor],
    pad_id: int,
    device: torch.device,
    batch_size: int,
) -> NDArray[np.float64]:
    """Log-probability of each sequence, `[sequences]`, from batches of similar length.

    `logits_of` maps a batch padded on the right to `[sequences, positions, vocabulary]`.
    """
    scores = np.empty(len(sequences))
    batches = texts.length_batches([len(ids) for ids in sequences], batch_size)
    for rows in progress(batches, "questions", unit="batch"):
        batch = loading.pad_batch([sequences[i] for i in rows], pad_id, device)
        scores[rows] = sentence_log_probabilities(logits_of(batch), batch).numpy()
    return scores


@torch.inference_mode()
def score(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], batch_size: int = 64
) -> list[Answer]:
    """Put the questions to a model; one answer each, in their order.

    Sentences are tokenised as the tokenizer does by default. The model is put into evaluation mode
    for the time and back. `batch_size` counts sentences and changes nothing but speed and memory.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    sequences, index = encode_sentences(tokenizer, questions, positions)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    device = next(model.parameters()).device

    def logits_of(batch: loading.Batch) -> Tensor:
        return model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits

    training = model.training
    model.eval()
    try:
        scores = batched_scores(sequences, logits_of, pad_id, device, batch_size)
    finally:
        model.train(training)
    return answers(questions, scores[index])


# ── accuracy ──────────────────────────────────────────────────────────────────────────────────────


def accuracy(
    given: Sequence[Answer], domain: str, fold: str | None = None, seed: int = 42
) -> Accuracy:
    """Share of correct answers of a domain, all folds unless one is named.

    Raises ValueError where there is no such question: an accuracy of nothing is not 0.
    """
    chosen = [a.correct for a in given if a.domain == domain and fold in (None, a.fold)]
    if not chosen:
        raise ValueError(f"no question of domain {domain!r} and fold {fold!r}")
    interval = intervals.mean_interval(np.array(chosen, dtype=np.float64), seed)
    return Accuracy(domain, fold, len(chosen), *(float(value) for value in interval))


def accuracies(given: Sequence[Answer], seed: int = 42) -> list[Accuracy]:
    """Accuracy of each domain, and of each fold where a domain has folds."""
    result = []
    for domain in dict.fromkeys(a.domain for a in given):
        result.append(accuracy(given, domain, seed=seed))
        folds = dict.fromkeys(a.fold for a in given if a.domain == domain and a.fold is not None)
        result += [accuracy(given, domain, fold, seed) for fold in folds]
    return result
