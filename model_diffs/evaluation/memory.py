"""What evaluate.py needs: one model at a time, and the logits of a batch."""

from collections.abc import Sequence
from typing import Any

from model_diffs.core.memory import Footprint, Need
from model_diffs.core.results import PlannedRun
from model_diffs.models import shapes

_TOKENS = 512
"""Of a sample, where its texts are not known before the harness has drawn them."""


def needs(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """Of the larger model."""
    shape = shapes.of([name for one in todo for name in (one.model_a, one.model_b) if name])
    if shape is None:
        return Need(unknown=todo[0].model_a)
    size = shapes.compute_bytes(options)
    logits = options.batch_size * _TOKENS * shape.vocabulary * (size + 4)
    return shapes.loaded(shape, options, size) + Need(device=logits)


HARNESS = Footprint(needs, ({"batch_size": 4}, {"dtype": "bf16"}, {"batch_size": 1}))
