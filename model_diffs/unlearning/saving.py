"""What an unlearning run leaves: an ordinary transformers folder."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from model_diffs.core.errors import BadInput
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import DTYPES

# As safetensors and .bin files name them.
_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}
_HALF |= {"float16": torch.float16, "bfloat16": torch.bfloat16}

_STORED = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def stored_dtype(base: Checkpoint, choice: str) -> torch.dtype:
    """The dtype to save in: `base` is the one that most of the base's weights have."""
    if choice != "base":
        return DTYPES[choice]
    sizes: Counter[torch.dtype] = Counter()
    for entry in base.entries.values():
        sizes[_HALF.get(entry.dtype, torch.float32)] += prod(entry.shape)
    return sizes.most_common(1)[0][0]


def check_space(folder: Path, weights: int, dtype: torch.dtype) -> None:
    """Raise BadInput where the disk has no room for so many weights, before any time is spent."""
    needed = weights * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BadInput(
            f"{folder.parent}: {needed / 1e9:.1f} GB needed for the model, {free / 1e9:.1f} GB "
            "free on that disk: make room or choose another --outdir"
        )


def save_model(
    model: Any,
    tokenizer: Any,
    folder: Path,
    dtype: torch.dtype,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write weights (safetensors, in `dtype`), configuration and tokenizer into `folder`.

    `state_dict` replaces the model's own where that is sharded. Raises BadInput for weights that
    are not finite and for a disk that is full.
    """
    weights = {}
    for name, tensor in (model.state_dict() if state_dict is None else state_dict).items():
        if not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{name} holds NaN or Inf after training: lower --lr; nothing is saved")
        weights[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    # What is tied is stored once.
    weights |= {name: weights[source] for name, source in model.all_tied_weights_keys.items()}
    model.config.dtype = dtype
    try:
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise BadInput(f"the weights could not be written ({error}): make room") from error


def write_weights(
    file: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Write a safetensors file tensor by tensor, one in memory at a time.

    `tensors` gives each name of `shapes` once, in any order, with its shape and dtype.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in shapes.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        kind = {"dtype": _STORED[dtype], "shape": [*shape]}
        header[name] = {**kind, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            if (tuple(tensor.shape), tensor.dtype) != shapes[name]:
                raise ValueError(f"{name}: {tensor.shape}, {tensor.dtype}, not {shapes[name]}")
            out.seek(8 + len(text) + header[name]["data_offsets"][0])
            out.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
