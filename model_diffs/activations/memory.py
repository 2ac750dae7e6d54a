"""What the pass over texts needs, from configurations alone: steps 4, 8, 9 and 13."""

from collections.abc import Sequence
from typing import Any

from model_diffs.core import memory
from model_diffs.core.memory import Footprint, Need
from model_diffs.core.options import Pass
from model_diffs.core.results import PlannedRun
from model_diffs.models import shapes
from model_diffs.models.shapes import Shape

SHARE = 0.25
"""Of the free memory, what the states of a chunk may take that are carried block by block."""
SMALLER = (
    {"side_by_side": "blocks"},
    {"batch_size": 4},
    {"cache_fp16": True},
    {"dtype": "bf16"},
    {"batch_size": 1},
    {"skip_first": 0},
)


def of_pass(shape: Shape, options: Pass, models: int, changes: bool) -> Need:
    """One pass of `models` models; with `changes` one of them is the base of the others."""
    size, states = shapes.compute_bytes(options), shape.blocks + 2
    texts = (options.forget_text, options.retain_text)
    tokens = shapes.batch_tokens(shape, texts, options.batch_size, options.max_length)
    kept = shapes.samples(texts, options.max_samples)
    moments = states * shape.hidden**2 * 8
    vectors = Need(host=2 * kept * states * shape.hidden * 4)
    working = tokens * shape.hidden * 4 * 4 + shapes.inside_block(shape, tokens, size)
    of_base = states * tokens * shape.hidden * 4 if changes else 0
    # A state's covariance, and what its eigenvalues are found in.
    saving = Need(host=3 * 8 * shape.hidden**2)
    together = shapes.loaded(shape, options, size, models, reads_head=False)
    together += Need(device=models * moments + working + of_base) + vectors + saving
    wanted = "no" if options.device_map and models > 1 else options.side_by_side
    if wanted == "auto" and models == 1:
        side_by_side = shape.weights * size + moments < memory.free(options)
    else:
        side_by_side = wanted != "blocks" and shapes.together(
            shape, size, models, models * moments, wanted, options
        )
    if side_by_side:
        return together
    if wanted != "no":
        return _by_blocks(shape, options, models) + vectors + saving + Need(device=working)
    disk = 0
    if changes:
        length = tokens // options.batch_size
        disk = 2 * kept * length * states * shape.hidden * (2 if options.cache_fp16 else 4)
    alone = shapes.loaded(shape, options, size, reads_head=False)
    return alone + Need(device=moments + working, disk=disk) + vectors + saving


def _by_blocks(shape: Shape, options: Pass, models: int) -> Need:
    """One block or embedding at a time, second moments, and the states of a chunk of texts."""
    size = shapes.compute_bytes(options)
    texts = (options.forget_text, options.retain_text)
    length = shapes.batch_tokens(shape, texts, 1, options.max_length)
    states = 2 * shapes.samples(texts, options.max_samples) * length * shape.hidden * size * models
    chunk = min(states, SHARE * memory.free(options))
    part = max(shape.block_weights(0), shape.vocabulary * shape.hidden) * size
    moments = models * (shape.blocks + 2) * shape.hidden**2 * 8
    # Looking for an attention sink (--skip-first auto) loads the base before all this, if it fits.
    whole = shape.weights * size
    sink = whole if options.skip_first is None and whole <= memory.free(options) else 0
    return Need(device=max(part + moments + chunk, sink), passing=sink)


def of_comparisons(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """The base and the changed models of all comparisons."""
    names = dict.fromkeys(name for one in todo for name in (one.model_a, one.model_b))
    shape = shapes.of([*names])
    if shape is None:
        return Need(unknown=todo[0].model_a)
    return of_pass(shape, options, len(names), changes=True)


def of_models(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """Each model by itself."""
    names = dict.fromkeys(one.model_a for one in todo)
    shape = shapes.of([*names])
    if shape is None:
        return Need(unknown=todo[0].model_a)
    return of_pass(shape, options, len(names), changes=False)


COMPARISONS = Footprint(of_comparisons, SMALLER)
MODELS = Footprint(of_models, SMALLER)
