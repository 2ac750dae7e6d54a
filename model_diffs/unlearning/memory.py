"""What making a model needs, from configurations alone: weights, gradients, optimiser, graph."""

import re
from collections.abc import Sequence
from typing import Any

from model_diffs.core import methods
from model_diffs.core.memory import Footprint, Need
from model_diffs.core.results import PlannedRun
from model_diffs.models import shapes
from model_diffs.models.shapes import Shape
from model_diffs.unlearning.settings import Options, parse_layers

MOMENTS = {"adamw": 2, "muon": 2, "sgd": 0, "adafactor": 0}
"""Numbers that an optimiser keeps beside each trained weight, at most."""


def graph(shape: Shape, tokens: float, size: int, blocks: int, recomputed: bool) -> float:
    """Bytes that a pass of `tokens` tokens keeps for its backward pass in `blocks` blocks.

    A block keeps what its MLP reads and gives at its inner width, twice, and nine states; where it
    is recomputed, its input, and one block at a time the rest.
    """
    inside = tokens * (2 * shape.inner + 9 * shape.hidden) * size
    inputs = tokens * shape.hidden * size
    return blocks * inputs + inside if recomputed else blocks * inside


def head(shape: Shape, tokens: float, size: int) -> float:
    """Bytes of the logits of so many tokens, of what their loss keeps and of its gradient."""
    return tokens * shape.vocabulary * (2 * 4 + size)


def trained_weights(shape: Shape, options: Options, layers: Sequence[int], reads: bool) -> int:
    """Weights that get a gradient; `reads`: the loss reads states of `layers` alone."""
    if options.lora_rank:
        sides = sum(sum(m.shape) for m in shape.matrices if m.layer >= 0)
        return sides * options.lora_rank
    blocks = {layer: shape.block_weights(layer) for layer in range(shape.blocks)}
    below = range(max(layers) + 1) if reads else range(shape.blocks)
    if options.trainable == "layers":
        return sum(blocks[layer] for layer in layers)
    if options.trainable == "all":
        outside = shape.outside // 2 if reads else shape.outside
        return sum(blocks[layer] for layer in below) + outside
    named = ((name, one.size) for name, one in shape.tensors.items())
    return sum(size for name, size in named if re.search(options.trainable, name))


def trained(shape: Shape, options: Options) -> Need:
    """A model that is trained, with its gradients, optimiser, and the passes of one step."""
    method, size = methods.METHODS[options.method], shapes.BYTES[options.dtype]
    reads = "layer_id" in method.options and options.method != "lat"
    by_layer = reads or options.trainable == "layers"
    layers = parse_layers(options.layer_id, shape.blocks) if by_layer else ()
    weights = trained_weights(shape, options, layers, reads)
    texts = [options.forget_text, options.retain_text, *filter(None, [options.text])]
    tokens = shapes.batch_tokens(shape, texts, options.batch_size, options.max_length)
    most, splits = options.batch_tokens or 2 * tokens, len(method.trains_on)
    computed = 2 if shapes.mixed(options) else size
    blocks = max(layers) + 1 if reads else shape.blocks
    passed = splits * min(tokens, most)
    passes = graph(shape, passed, computed, blocks, shapes.recomputes(options))
    passes += 0 if reads else head(shape, passed, computed)
    # Held-out texts are measured in batches of twice as many.
    measured = min(2 * tokens, most) * shape.vocabulary * 2 * 4
    kept = weights * MOMENTS[options.optimizer] * size
    held = (shape.weights - weights) * (size if options.dtype != "auto" else shape.itemsize)
    saved = shape.weights * min(size, shape.itemsize)
    step = max(weights * size + passes, measured, saved)
    model = Need(device=held + weights * size, passing=held + weights * size, disk=saved)
    return model + Need(device=kept + step)


def needs(options: Options, todo: Sequence[PlannedRun]) -> Need:
    """Of a model that is trained, or edited matrix by matrix and then measured."""
    shape = shapes.of([options.model])
    if shape is None:
        return Need(unknown=options.model)
    if methods.METHODS[options.method].making == "trained":
        return trained(shape, options)
    size = shapes.BYTES[options.dtype]
    texts = (options.forget_text, options.retain_text)
    tokens = shapes.batch_tokens(shape, texts, 2 * options.batch_size, options.max_length)
    measured = tokens * shape.vocabulary * 2 * 4
    edited = Need(host=5 * 4 * shape.largest)
    return edited + shapes.loaded(shape, options, size) + Need(device=measured)


def smaller() -> tuple[dict[str, Any], ...]:
    """The mildest first: what changes no number, then half precision, then an adapter."""
    return (
        {"gradient_checkpointing": True},
        {"batch_tokens": 2048},
        {"trainable": "layers"},
        {"dtype": "bf16"},
        {"lora_rank": 8},
    )


UNLEARN = Footprint(needs, smaller())
