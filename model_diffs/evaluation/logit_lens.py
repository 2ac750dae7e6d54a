"""Knowledge by depth: four-choice questions answered from the state of every layer.

The state of a layer goes through the final norm and the head as if the blocks above it were not
there (nostalgebraist 2020, "interpreting GPT: the logit lens"). Sentences are scored as in
`scoring`; all layers come from one pass.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_diffs.data.questions import CHOICES, Question
from model_diffs.evaluation import contexts, scoring
from model_diffs.evaluation.scoring import Answer
from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy, locate
from model_diffs.stats.intervals import entity_interval


class Head(NamedTuple):
    """A model's output embedding, without the model."""

    module: Any
    cap: float | None
    """Gemma 2 caps its logits."""
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> "Head":
        """The head of a causal language model."""
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        module = model.get_output_embeddings()
        return cls(module, cap, len(module.weight))

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits `[…, vocabulary]` of final states `[…, d]`."""
        logits: Tensor = self.module(hidden)
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


def _logits(model: Any, anatomy: Anatomy, state: int, hidden: Tensor) -> Tensor:
    """`hidden` `[…, d]` through final norm and head; the last state is normed already."""
    if state < len(anatomy.blocks):
        if anatomy.final_norm is not None:
            hidden = anatomy.final_norm(hidden)
        # OPT may project to a smaller width after its blocks.
        project = getattr(anatomy.trunk, "project_out", None)
        hidden = hidden if project is None else project(hidden)
    return Head.of(model)(hidden)


def answers_by_layer(
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    batch_size: int = 64,
    shared: bool = False,
    states: Collection[int] | None = None,
) -> list[list[Answer]]:
    """The answers read from each state; those of the last are the model's own.

    With `states`, of those alone, in their order in the model: the head takes far longer than a
    block. `batch_size` counts sequences. The model is in evaluation mode; only what is read goes
    through its head. With `shared`, processes share the batches and all get all answers.
    """
    anatomy = locate(model)

    def read_batch(batch: loading.Batch, places: tuple[Tensor, Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        begun = contexts.beginning(anatomy.trunk, batch, places)
        at = places[0], places[1] - begun.length

        def receive(state: int, hidden: Tensor) -> None:
            if states is None or state in states:
                found.append(_logits(model, anatomy, state, hidden[at]))

        loading.stream_states(anatomy, begun.rest(batch), receive)
        return found

    return scoring.read_answers(model, tokenizer, questions, batch_size, read_batch, shared)


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


RESULT = "result"
"""In column `part`: what counts for a domain, fold `heldout` where it has that, else all of it."""


def question_rows(answers: Sequence[Sequence[Answer]]) -> list[dict[str, Any]]:
    """Rows of per_question.csv: 1 where the correct sentence is likelier than every other."""
    whose, counts = scoring.units(answers[0]), scoring.reported(answers[0])
    return [
        {
            "layer": layer,
            "id": one.id,
            "domain": one.domain,
            "correct": int(one.correct),
            "entity": whose[i],
            "fold": one.fold,
            "seen_form": one.seen_form,
            "part": RESULT if counts[i] else one.fold or "rest",
        }
        for layer, given in enumerate(answers)
        for i, one in enumerate(given)
    ]


def accuracy_rows(answers: Sequence[Sequence[Answer]], seed: int) -> list[dict[str, Any]]:
    """Rows of knowledge_by_layer.csv: accuracy per state, domain and fold, with its interval."""
    divided = {one.domain for one in answers[0] if one.fold == "heldout"}

    def part(found: scoring.Accuracy) -> str:
        counts = found.fold == ("heldout" if found.domain in divided else None)
        return RESULT if counts else found.fold or "all"

    return [
        {
            "layer": layer,
            "domain": found.domain,
            "accuracy": found.mean,
            "low": found.low,
            "high": found.high,
            "questions": found.questions,
            "fold": found.fold,
            "part": part(found),
        }
        for layer, given in enumerate(answers)
        for found in scoring.accuracies(given, seed)
        if found.seen_form is None
    ]


# ── the block that knows most ─────────────────────────────────────────────────────────────────────


class Inside(NamedTuple):
    """A domain's answers from the inner block that knows most."""

    layer: int
    chosen_on: str
    chosen_accuracy: float
    answers: list[Answer]
    """Read from that block; none of them took part in choosing it."""


def _choosing(own: Sequence[Answer], seed: int) -> tuple[NDArray[np.bool_], str]:
    """Which of a domain's answers a block is chosen on, and what they are called."""
    tuned = np.array([one.fold == "tune" for one in own])
    if tuned.any():
        return tuned, "fold tune"
    counts, whose = np.array(scoring.reported(own)), np.array(scoring.units(own))
    known = np.unique(whose[counts])
    half = np.random.default_rng(seed).permutation(known)[: len(known) // 2]
    return counts & np.isin(whose, half), "half of the entities"


def inside(answers: Sequence[Sequence[Answer]], domain: str, seed: int) -> Inside | None:
    """Read a domain at the inner block that answers best on other questions of it.

    The block is chosen on fold `tune`, else on half of the reported entities, seeded; ties go to
    the earlier block. Read are the other reported questions. None where there is nothing to choose
    from, on or for.
    """
    own = [[one for one in given if one.domain == domain] for given in answers]
    right = np.array([[one.correct for one in given] for given in own])
    chosen_on, name = _choosing(own[0], seed)
    read = np.array(scoring.reported(own[0])) & ~chosen_on
    if len(own) < 3 or not chosen_on.any() or not read.any():
        return None
    known = right[1:-1, chosen_on].mean(1)
    layer = 1 + int(known.argmax())
    kept = [one for one, counts in zip(own[layer], read, strict=True) if counts]
    return Inside(layer, name, float(known.max()), kept)


def corrected(accuracy: float) -> float:
    """Accuracy corrected for chance: 0 for guessing, 1 where all is known."""
    return (accuracy - 1 / CHOICES) / (1 - 1 / CHOICES)


def inside_rows(
    answers: Sequence[Sequence[Answer]], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of inside.csv, one per domain, and of inside_per_question.csv (see `inside`)."""
    rows, single = [], []
    for domain in dict.fromkeys(one.domain for one in answers[0]):
        found = inside(answers, domain, seed)
        if found is None:
            continue
        right, whose = [one.correct for one in found.answers], scoring.units(found.answers)
        ends = entity_interval(right, whose, seed)
        names = ("accuracy", "low", "high"), ("corrected", "corrected_low", "corrected_high")
        rows.append(
            {
                "domain": domain,
                "layer": found.layer,
                "chosen_on": found.chosen_on,
                "chosen_accuracy": found.chosen_accuracy,
                **dict(zip(names[0], map(float, ends), strict=True)),
                **dict(zip(names[1], (corrected(float(end)) for end in ends), strict=True)),
                "questions": len(right),
            }
        )
        single += [
            {
                "id": one.id,
                "domain": domain,
                "entity": unit,
                "correct": int(one.correct),
                "corrected": corrected(float(one.correct)),
            }
            for one, unit in zip(found.answers, whose, strict=True)
        ]
    return rows, single
