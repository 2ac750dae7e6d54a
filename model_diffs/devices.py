"""Device and dtype of a computation, apart from models: weight steps need no transformers."""

import os

import torch
from torch import Tensor

from model_diffs.errors import BadInput

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is cuda, then mps, then cpu; under several processes each has its own cuda device.

    Raises BadInput for a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {name!r} is not there; use --device auto or cpu") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on cuda, fp16 on mps, fp32 on cpu."""
    if name == "auto":
        return {"cuda": torch.bfloat16, "mps": torch.float16}.get(device.type, torch.float32)
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """`fp32`, `fp16` or `bf16`, as the options spell it."""
    return next(name for name, value in DTYPES.items() if value == dtype)


def processes() -> tuple[int, int]:
    """Rank of this process and how many there are; the group is opened when first asked for."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a CPU tensor over all processes, on each of them."""
    if processes()[1] == 1:
        return tensor
    from accelerate import PartialState

    device = PartialState().device
    total = tensor.to(device)
    torch.distributed.all_reduce(total)
    return total.cpu()


def wait_for_processes() -> None:
    """Return when all processes have come this far."""
    if processes()[1] > 1:
        torch.distributed.barrier()
