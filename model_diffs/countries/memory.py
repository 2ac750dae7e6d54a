"""What asking a model needs, and teaching copies of it: weights, gradients, two moments."""

from collections.abc import Sequence
from typing import Any

from model_diffs.core.memory import Footprint, Need
from model_diffs.core.results import PlannedRun
from model_diffs.models import shapes

_TAUGHT = 4
"""Numbers per weight that is taught: itself, its gradient, two moments."""
_TOKENS = 1024
"""More than a batch of short texts has."""


def needs(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """Of the questions, or of the copies that are taught side by side."""
    shape = shapes.of([options.model])
    if shape is None:
        return Need(unknown=options.model)
    copies = sum(one.label.startswith("invented-") for one in todo)
    taught = copies * _TAUGHT * 4 * shape.weights
    logits = max(1, copies) * _TOKENS * shape.vocabulary * 3 * 4
    asked = shapes.loaded(shape, options, shapes.compute_bytes(options))
    return (Need(host=taught) if copies else asked) + Need(device=logits)


ASKED = Footprint(needs)
