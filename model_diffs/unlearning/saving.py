"""What an unlearning run leaves: an ordinary transformers folder."""

import shutil
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from model_diffs.core.errors import BadInput
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import DTYPES

# As safetensors and .bin files name them.
_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}
_HALF |= {"float16": torch.float16, "bfloat16": torch.bfloat16}


def stored_dtype(base: Checkpoint, choice: str) -> torch.dtype:
    """The dtype to save in: `base` is the one that most of the base's weights have."""
    if choice != "base":
        return DTYPES[choice]
    sizes: Counter[torch.dtype] = Counter()
    for entry in base.entries.values():
        sizes[_HALF.get(entry.dtype, torch.float32)] += prod(entry.shape)
    return sizes.most_common(1)[0][0]


def check_space(folder: Path, model: nn.Module, dtype: torch.dtype) -> None:
    """Raise BadInput where the disk has no room for the weights, before any time is spent."""
    needed = sum(p.numel() for p in model.parameters()) * dtype.itemsize
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
