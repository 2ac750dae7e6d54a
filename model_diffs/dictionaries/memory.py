"""What dictionaries need, from configurations alone: training, and step 15."""

from collections.abc import Sequence
from typing import Any

from model_diffs.core.memory import Footprint, Need
from model_diffs.core.results import PlannedRun
from model_diffs.models import shapes

_GRAM = 1 << 30
"""Bytes above which products of atoms are not kept: `pursuit.GRAM_BYTES`, without torch."""


def _pass(options: Any, models: list[str], atoms: int, layers: int, wanted: str) -> Need:
    shape = shapes.of(models)
    if shape is None:
        return Need(unknown=models[0])
    size = shapes.compute_bytes(options)
    tokens = shapes.batch_tokens(shape, options.dataset, options.batch_size, options.seq_len)
    gram = atoms**2 * 4 if atoms**2 * 4 <= _GRAM else 0
    dictionary = layers * (atoms * shape.hidden * 4 + gram)
    chunk = tokens * (atoms + 4 * shape.hidden) * 4
    working = dictionary + chunk + shapes.inside_block(shape, tokens, size)
    several = shapes.together(shape, size, len(models), 0, wanted, options)
    count = len(models) if several else 1
    return shapes.loaded(shape, options, size, count, reads_head=False) + Need(device=working)


def train(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """One model, and a dictionary of each layer with the products of its atoms."""
    return _pass(options, [options.model], options.max_atoms, len(todo), "no")


def diff(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """Base and changed models, or one at a time; the dictionary's size is taken as 4,096."""
    models = [*dict.fromkeys(name for one in todo for name in (one.model_a, one.model_b))]
    return _pass(options, models, 4096, 1, options.side_by_side)


TRAIN = Footprint(train, ({"batch_size": 4}, {"dtype": "bf16"}, {"batch_size": 1}))
DIFF = Footprint(diff, ({"batch_size": 4}, {"dtype": "bf16"}, {"batch_size": 1}))
