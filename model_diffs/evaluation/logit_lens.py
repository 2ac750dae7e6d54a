"""Knowledge by depth: four-choice questions answered from the state of every layer.

The state of a layer goes through the final norm and the head as if the blocks above it were not
there (nostalgebraist 2020, "interpreting GPT: the logit lens"). Sentences are scored as in
`scoring`; all layers come from one pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model_diffs.data.questions import Question
from model_diffs.evaluation import scoring
from model_diffs.evaluation.scoring import Answer
from model_diffs.models import loading
from model_diffs.models.anatomy import Anatomy, locate


def _logits(model: Any, anatomy: Anatomy, state: int, hidden: Tensor) -> Tensor:
    """`hidden` `[…, d]` through final norm and head; the last state is normed already."""
    if state < len(anatomy.blocks):
        if anatomy.final_norm is not None:
            hidden = anatomy.final_norm(hidden)
        # OPT may project to a smaller width after its blocks.
        project = getattr(anatomy.trunk, "project_out", None)
        hidden = hidden if project is None else project(hidden)
    logits = anatomy.head(hidden)
    # Gemma 2 caps its logits.
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def answers_by_layer(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], batch_size: int = 64
) -> list[list[Answer]]:
    """The answers read from each state; those of the last are the model's own.

    `batch_size` counts sentences. The model is in evaluation mode.
    """
    anatomy = locate(model)

    def score_batch(batch: loading.Batch) -> list[Tensor]:
        scores: list[Tensor] = []

        def receive(state: int, hidden: Tensor) -> None:
            logits = _logits(model, anatomy, state, hidden)
            scores.append(scoring.sentence_log_probabilities(logits, batch))

        loading.stream_states(anatomy, batch, receive)
        return scores

    return scoring.read_answers(model, tokenizer, questions, batch_size, score_batch)


def question_rows(answers: Sequence[Sequence[Answer]]) -> list[dict[str, Any]]:
    """Rows of per_question.csv: 1 where the correct sentence is likelier than every other."""
    return [
        {"layer": layer, "id": one.id, "domain": one.domain, "correct": int(one.correct)}
        for layer, given in enumerate(answers)
        for one in given
    ]


def accuracy_rows(answers: Sequence[Sequence[Answer]], seed: int) -> list[dict[str, Any]]:
    """Rows of knowledge_by_layer.csv: accuracy per state and domain, with its interval."""
    return [
        {
            "layer": layer,
            "domain": found.domain,
            "accuracy": found.mean,
            "low": found.low,
            "high": found.high,
            "questions": found.questions,
        }
        for layer, given in enumerate(answers)
        for found in scoring.accuracies(given, seed)
        if found.fold is None
    ]
