"""The processes that `accelerate launch` started: which one this is, and waiting for the others."""

import os
from typing import Any

from model_diffs.core.errors import BadInput


def state() -> Any:
    """The group of processes, opened when first asked for."""
    import torch
    from accelerate import PartialState

    # Asked for no device in particular, it takes processes of a machine without GPUs for strangers.
    return PartialState(cpu=True) if not torch.cuda.is_available() else PartialState()


def processes() -> tuple[int, int]:
    """Rank of this process and their number. Raises BadInput where the launcher's differs."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    found = state()
    if found.num_processes != world:
        raise BadInput(
            f"{world} processes were started and {found.num_processes} found each other: check "
            "the launcher"
        )
    return found.process_index, found.num_processes


def wait_for_processes() -> None:
    """Return when all processes have come this far."""
    if processes()[1] > 1:
        state().wait_for_everyone()
