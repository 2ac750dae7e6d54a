"""Interrupted runs: the log and the state of training, in memory and on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from model_diffs.core.errors import BadInput

STATE = "training_state.pt"


class StepLog(NamedTuple):
    """One optimiser step."""

    step: int
    loss: float
    forget: float
    """Forget term of the loss; 0 without one."""
    retain: float
    """Retain term of the loss, its weight included; 0 without one."""
    grad_norm: float
    """Before clipping."""
    lr: float


def resume_folder(outdir: Path) -> Path:
    """Where a run that fills `outdir` keeps its state: a hidden sibling that outlives a kill."""
    return outdir.parent / f".{outdir.name}.resume"


def trained_state(network: nn.Module, parts: Sequence[Any]) -> dict[str, Any]:
    """The weights that are trained, and the states of optimisers and schedules."""
    trained = {n: p.detach() for n, p in network.named_parameters() if p.requires_grad}
    return {"weights": trained, "parts": [one.state_dict() for one in parts]}


def take_up(state: Mapping[str, Any], network: nn.Module, parts: Sequence[Any]) -> None:
    """Load a `trained_state` into the same network, optimisers and schedules."""
    network.load_state_dict(state["weights"], strict=False)
    for one, kept in zip(parts, state["parts"], strict=True):
        one.load_state_dict(kept)


def save_state(folder: Path, state: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Write the state of training; a kill at any moment leaves this one or the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{STATE}.partial"
    torch.save({**state, "arguments": dict(arguments)}, partial)
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
    if state["arguments"] != arguments:
        print(f"{folder}: left by a run with other arguments, not used")
        return None
    return state
