"""Interrupted runs: the state of training on disk, and gradient checkpointing of blocks."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model_diffs.core.errors import BadInput

STATE = "training_state.pt"


def resume_folder(outdir: Path) -> Path:
    """Where a run that fills `outdir` keeps its state: a hidden sibling that outlives a kill."""
    return outdir.parent / f".{outdir.name}.resume"


def save_state(folder: Path, state: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Write the state of training; a kill at any moment leaves this one or the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{STATE}.partial"
    key = json.dumps(arguments, sort_keys=True, default=str)
    torch.save({**state, "arguments": key}, partial)
    partial.replace(folder / STATE)


def load_state(folder: Path, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that a run with these arguments left; None where there is none."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError) as error:
        raise BadInput(f"{path} cannot be read: remove {folder} to start afresh") from error
    if state["arguments"] != json.dumps(arguments, sort_keys=True, default=str):
        print(f"{folder}: left by a run with other arguments, not used")
        return None
    return state


@contextmanager
def gradient_checkpointing(model: Any, enabled: bool) -> Iterator[None]:
    """Recompute blocks in the backward pass while this is open, without switching dropout on.

    transformers checkpoints a block only in training mode; the blocks alone are put into it, with
    their own dropout at zero: a loss against a reference needs the same function on both sides.
    """
    if not enabled:
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise BadInput(f"{type(model).__name__} has no gradient checkpointing: switch it off")
    _switch(model, "enable", {"use_reentrant": False})
    blocks = [m for m in model.modules() if getattr(m, "gradient_checkpointing", None) is True]
    rates = [
        (block, name, value)
        for block in blocks
        for name, value in vars(block).items()
        if "dropout" in name and isinstance(value, float)
    ]
    try:
        for block, name, _ in rates:
            setattr(block, name, 0.0)
        for block in blocks:
            block.training = True  # not train(): that would reach the dropouts inside
        yield
    finally:
        for block in blocks:
            block.training = False
        for block, name, value in rates:
            setattr(block, name, value)
        _switch(model, "disable")


def _switch(model: Any, what: str, *arguments: Any) -> None:
    """Call the model's switch under its name in this transformers (renamed during version 5)."""
    renamed = getattr(model, f"activation_checkpointing_{what}", None)
    (renamed or getattr(model, f"gradient_checkpointing_{what}"))(*arguments)
