"""Knowledge by depth: four-choice questions answered from the state of every layer.

The state of a layer goes through the final norm and the head as if the blocks above it were not
there (nostalgebraist 2020, "interpreting GPT: the logit lens"). Sentences are scored as in
`scoring`; all layers come from one pass.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_diffs.data.questions import Question
from model_diffs.evaluation import scoring
from model_diffs.evaluation.scoring import Answer
from model_diffs.models import loading
from model_diffs.models.anatomy import locate


class Lens:
    """Reads hidden states of a model as logits."""

    def __init__(self, model: Any) -> None:
        self.anatomy = locate(model)
        self.last = len(self.anatomy.blocks)
        # OPT may project to a smaller width after its blocks, Gemma 2 caps its logits.
        self.project = getattr(self.anatomy.trunk, "project_out", None)
        config = model.config.get_text_config()
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)

    def logits(self, state: int, hidden: Tensor) -> Tensor:
        """`hidden` `[…, d]` through final norm and head; the last state is normed already."""
        if state < self.last:
            if self.anatomy.final_norm is not None:
                hidden = self.anatomy.final_norm(hidden)
            if self.project is not None:
                hidden = self.project(hidden)
        logits = self.anatomy.head(hidden)
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


def scores_by_layer(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], batch_size: int = 64
) -> NDArray[np.float64]:
    """Log-probability of every completed sentence from every state, `[S, questions, choices]`.

    `batch_size` counts sentences. The model is in evaluation mode.
    """
    lens = Lens(model)

    def read(batch: loading.Batch, receive: scoring.Receive) -> None:
        loading.stream_states(
            lens.anatomy, batch, lambda state, hidden: receive(state, lens.logits(state, hidden))
        )

    return scoring.sentence_scores(
        model, tokenizer, questions, read, readings=lens.last + 1, batch_size=batch_size
    )


def answers_by_layer(
    model: nn.Module, tokenizer: Any, questions: Sequence[Question], batch_size: int = 64
) -> list[list[Answer]]:
    """The answers read from each state; those of the last are the model's own."""
    scores = scores_by_layer(model, tokenizer, questions, batch_size)
    return [scoring.answers(questions, layer) for layer in scores]


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
