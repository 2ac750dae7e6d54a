"""What attacks need, from configurations alone: steps 14 and 18."""

from collections.abc import Sequence
from typing import Any

from model_diffs.attacks.material import LORA_RANK, Attack
from model_diffs.core.memory import Footprint, Need
from model_diffs.core.results import PlannedRun
from model_diffs.models import shapes
from model_diffs.models.shapes import Shape
from model_diffs.unlearning.memory import MOMENTS, graph, head


def _shape(todo: Sequence[PlannedRun], options: Any) -> Shape | None:
    attacked = [one.model_a for one in todo if one.model_a]
    return shapes.of([*attacked, *filter(None, [options.base, options.filtered])])


def relearn(options: Attack, todo: Sequence[PlannedRun]) -> Need:
    """One model, trained by one arm at a time."""
    shape = _shape(todo, options)
    if shape is None:
        return Need(unknown=todo[0].model_a)
    size, whole = shapes.BYTES[options.dtype], {*options.arm} - {"lora"}
    sides = sum(sum(m.shape) for m in shape.matrices if m.layer >= 0)
    weights = shape.weights if whole else sides * (options.lora_rank or LORA_RANK)
    held = size if whole else min(size, shape.itemsize)
    paths = (options.forget_text, options.retain_text, options.attack_data)
    texts = [path for path in (*paths, options.benign_text, options.permuted_text) if path]
    tokens = shapes.batch_tokens(shape, texts, options.batch_size, options.max_length)
    most = options.batch_tokens or 4 * tokens
    computed = 2 if shapes.mixed(options) else size
    recomputed = shapes.recomputes(options)
    passes = graph(shape, min(tokens, most), computed, shape.blocks, recomputed)
    passes += head(shape, min(tokens, most), computed)
    measured = min(4 * tokens, most) * shape.vocabulary * 2 * 4
    kept = weights * (1 + MOMENTS["adamw"]) * 4
    return shapes.loaded(shape, options, held) + Need(device=max(kept + passes, kept + measured))


def elicit(options: Any, todo: Sequence[PlannedRun]) -> Need:
    """One model, a tensor of it and of the base in fp32 and the change; passes of questions."""
    shape = _shape(todo, options)
    if shape is None:
        return Need(unknown=todo[0].model_a)
    size = shapes.compute_bytes(options)
    texts = (options.forget_text, options.retain_text)
    tokens = shapes.batch_tokens(shape, texts, options.batch_size, options.max_length)
    passes = graph(shape, tokens, size, shape.blocks, False) + head(shape, tokens, size)
    return shapes.loaded(shape, options, size) + Need(device=4 * 4 * shape.largest + passes)


RELEARN = Footprint(relearn, ({"batch_tokens": 2048}, {"arm": ("lora",)}, {"dtype": "bf16"}))
ELICIT = Footprint(elicit, ({"batch_size": 4}, {"dtype": "bf16"}, {"batch_size": 1}))
