"""What an unlearning run leaves: an ordinary transformers folder with its record and its card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from model_diffs.core.errors import BadInput
from model_diffs.models.checkpoints import Checkpoint
from model_diffs.models.devices import DTYPES

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(base: Checkpoint, choice: str) -> torch.dtype:
    """The dtype to save in: `base` is the one that most of the base's weights have."""
    if choice != "base":
        return DTYPES[choice]
    sizes: dict[str, int] = {}
    for name in base.names:
        size = 1
        for side in base.shape(name):
            size *= side
        dtype = base.dtype(name).upper().removeprefix("TORCH.")
        sizes[dtype] = sizes.get(dtype, 0) + size
    most = max(sizes, key=lambda name: sizes[name])
    names = {**_STORED, "FLOAT32": torch.float32, "FLOAT16": torch.float16}
    return {**names, "BFLOAT16": torch.bfloat16}.get(most, torch.float32)


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

    `state_dict` stands in for the model's own where that is sharded. Raises BadInput for weights
    that are not finite and for a disk that is full.
    """
    weights = model.state_dict() if state_dict is None else state_dict
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{name} holds NaN or Inf after training: lower --lr; nothing is saved")
    # What shares memory is cast once: tied weights stay tied.
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}
    stored = {}
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in cast:
            cast[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        stored[name] = cast[place]
    training_dtype = model.config.dtype
    model.config.dtype = dtype
    try:
        model.save_pretrained(folder, state_dict=stored)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise BadInput(f"the weights could not be written ({error}): make room") from error
    finally:
        model.config.dtype = training_dtype


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def model_card(record: Mapping[str, Any]) -> str:
    """The README.md of an unlearned model, from what `unlearning.json` says."""
    rows = [
        f"| {name} | {_cell(record['before'][name])} | {_cell(record['after'][name])} |"
        for name in record["before"]
    ]
    arguments = [f"| `--{k.replace('_', '-')}` | {v} |" for k, v in record["arguments"].items()]
    return "\n".join(
        [
            f"# {record['base']}, unlearned by {record['method']}",
            "",
            f"{record['method']}: {record['says']}. Made from `{record['base']}` by `unlearn.py` "
            f"in {record['steps']} steps and {record['seconds']:.1f} s. What such a model no "
            "longer says it may still hold: see `relearn.py`.",
            "",
            "| | base | this model |",
            "|---|---|---|",
            *rows,
            "",
            "NLL in nats per token on texts held out of training; accuracies on four-choice "
            "questions.",
            "",
            "| argument | value |",
            "|---|---|",
            *arguments,
            "",
        ]
    )
