"""What the steps of weights need, and those with passes of their own: 1, 7, 10, 11, 12 and 17."""

from collections.abc import Sequence
from typing import Any

from model_diffs.core.memory import Footprint, Need
from model_diffs.core.results import PlannedRun
from model_diffs.models import shapes
from model_diffs.models.architectures import MLP_COMPONENTS
from model_diffs.models.shapes import Shape

_CHUNKS = 5 << 25
"""Bytes of the rows that step 1 converts at a time."""
_LOGITS = 1 << 26
"""Logits of each model at a time: `predictions`."""
_TOGETHER, _STATES = 256, 1 << 24
"""Tokens, and entries of their states, whose derivatives are sought together: `sensitivity`."""


def _shape(todo: Sequence[PlannedRun]) -> Shape | None:
    return shapes.of([name for one in todo for name in (one.model_a, one.model_b) if name])


def weights(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """Step 1: of the largest matrix, W and ΔW, the other one's copy, and Lanczos vectors."""
    shape = _shape(todo)
    if shape is None:
        return Need(unknown=todo[0].model_a)
    matrix = 4 * shape.largest
    copies = 1 if shape.itemsize < 4 else 0
    ranks = 8 * min(max(m.shape) for m in shape.matrices) ** 2 if options.empirical_rank else 0
    return Need(device=matrix + ranks, host=matrix * copies + _CHUNKS)


def subspaces(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """Steps 7 and 10: three fp32 matrices, and fp64 Gram matrices with their vectors."""
    shape = _shape(todo)
    if shape is None:
        return Need(unknown=todo[0].model_a)
    side = max(min(m.shape) for m in shape.matrices)
    return Need(device=3 * 4 * shape.largest + 6 * 8 * side**2)


def row_space(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """Step 11: the base, and every MLP matrix's change in reduced form for each comparison."""
    shape = _shape(todo)
    if shape is None:
        return Need(unknown=todo[0].model_a)
    size = shapes.compute_bytes(options)
    mlps = [m for m in shape.matrices if m.component in MLP_COMPONENTS]
    reduced = sum(min(m.shape) * m.shape[1] * size for m in mlps) * len(todo)
    texts = (options.forget_text, options.retain_text)
    tokens = shapes.batch_tokens(shape, texts, options.batch_size, options.max_length)
    passing = shapes.inside_block(shape, tokens, size) + 6 * tokens * shape.inner * 4
    weights = shapes.loaded(shape, options, size, reads_head=False)
    return weights + Need(device=passing, host=reduced)


def sensitivity(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """Step 12: one model, and the graph of a batch that derivatives are taken of: once for the
    loss, with its logits; half as much again, with vectors, for products with the Jacobian."""
    shape = _shape(todo)
    if shape is None:
        return Need(unknown=todo[0].model_a)
    size = shapes.BYTES[options.dtype]
    held = min(size, shape.itemsize)
    texts = (options.forget_text, options.retain_text)
    length = shapes.batch_tokens(shape, texts, 1, options.max_length)
    tokens = max(length, min(_TOGETHER, _STATES // (shape.hidden * shape.blocks)))
    inside = 4 * shape.inner + 8 * shape.hidden + 3 * shape.heads * length
    once = tokens * inside * size * shape.blocks
    logits = 4 * tokens * shape.vocabulary * 4
    vectors = 2 * min(options.max_iters, 30) * tokens * shape.hidden * 4
    graph = max(once + logits, 1.5 * once + vectors)
    return shapes.loaded(shape, options, held) + Need(device=graph)


def predictions(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """Step 17: one model, the base's head and last states, and the logits of some tokens."""
    shape = _shape(todo)
    if shape is None:
        return Need(unknown=todo[0].model_a)
    size = shapes.compute_bytes(options)
    texts = (options.forget_text, options.retain_text)
    tokens = shapes.batch_tokens(shape, texts, options.batch_size, options.max_length)
    length, most = tokens // options.batch_size, options.max_samples
    states = 2 * shapes.samples(texts, most) * length * shape.hidden * size
    logits = 4 * 4 * min(_LOGITS, tokens * shape.vocabulary)
    of_base = shape.vocabulary * shape.hidden * size
    passing = shapes.inside_block(shape, tokens, size)
    model = shapes.loaded(shape, options, size)
    return model + Need(device=of_base + max(logits, passing), host=states)


_BATCHES = ({"batch_size": 4}, {"dtype": "bf16"}, {"batch_size": 1})
WEIGHTS = Footprint(weights)
SUBSPACES = Footprint(subspaces)
ROW_SPACE = Footprint(row_space, _BATCHES)
SENSITIVITY = Footprint(sensitivity, ({"max_length": 128}, {"dtype": "bf16"}, {"max_length": 64}))
PREDICTIONS = Footprint(predictions, _BATCHES)
