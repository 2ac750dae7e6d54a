"""What the measures of step 19 need, from configurations alone."""

from collections.abc import Sequence
from typing import Any

from model_diffs.core.memory import Footprint, Need
from model_diffs.core.results import PlannedRun
from model_diffs.models import shapes
from model_diffs.unlearning.memory import graph, head


def attack_free(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """The changed model, and the base with a gradient and the Fisher information of both splits;
    the passes of one text that gradients are taken of."""
    shape = shapes.of([name for one in todo for name in (one.model_a, one.model_b)])
    if shape is None:
        return Need(unknown=todo[0].model_a)
    size = shapes.compute_bytes(options)
    texts = (options.forget_text, options.retain_text)
    tokens = shapes.batch_tokens(shape, texts, 1, options.max_length)
    passes = graph(shape, tokens, size, shape.blocks, False) + head(shape, tokens, size)
    models = shapes.loaded(shape, options, size, 2)
    return models + Need(device=3 * shape.weights * size + passes)


ATTACK_FREE = Footprint(attack_free, ({"max_length": 128}, {"dtype": "bf16"}))
