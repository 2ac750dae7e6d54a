"""Moved to `data.questions` and `evaluation.scoring`; this module goes when nothing imports it."""

from model_diffs.data.questions import CHOICES, Question, load_questions  # noqa: F401
from model_diffs.evaluation.scoring import (  # noqa: F401
    Accuracy,
    Answer,
    accuracies,
    accuracy,
    score,
)
