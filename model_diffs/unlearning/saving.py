"""What an unlearning run leaves: an ordinary transformers folder with its record and its card."""

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
from model_diffs.unlearning.summary import cell

# Names in files (BF16, or bfloat16 in .bin files) without the letters of "float".
_STORED = {"16": torch.float16, "B16": torch.bfloat16}


def stored_dtype(base: Checkpoint, choice: str) -> torch.dtype:
    """The dtype to save in: `base` is the one that most of the base's weights have."""
    if choice != "base":
        return DTYPES[choice]
    sizes: Counter[str] = Counter()
    for entry in base.entries.values():
        sizes[entry.dtype.upper().removeprefix("TORCH.")] += prod(entry.shape)
    (most, _), *_ = sizes.most_common(1)
    return _STORED.get(most.replace("FLOAT", "").replace("F", ""), torch.float32)


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
    weights = model.state_dict() if state_dict is None else state_dict
    # What shares memory is cast once: tied weights stay tied.
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}
    stored = {}
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{name} holds NaN or Inf after training: lower --lr; nothing is saved")
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


CARD = """\
# {base}, unlearned by {method}

{method}: {says}. Made from `{base}` by `unlearn.py` in {steps} steps and {seconds:.1f} s. Removed
knowledge may still be in the weights: see `relearn.py`.

| | base | this model |
|---|---|---|
{measured}

NLL in nats per token on texts held out of training; accuracies on four-choice questions.

| argument | value |
|---|---|
{given}
"""


def model_card(record: Mapping[str, Any]) -> str:
    """The README.md of an unlearned model, from what `unlearning.json` says."""
    before, after = record["before"], record["after"]
    measured = [f"| {name} | {cell(before[name])} | {cell(after[name])} |" for name in before]
    given = [f"| `--{k.replace('_', '-')}` | {v} |" for k, v in record["arguments"].items()]
    return CARD.format(**record, measured="\n".join(measured), given="\n".join(given))
